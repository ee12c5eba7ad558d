"""What --mode=export writes, by kind."""
