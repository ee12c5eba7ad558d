"""What several tasks are put together from."""
