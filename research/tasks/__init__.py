"""What is learned: a loss, its metrics, its prediction and its data."""
