"""The arithmetic that models share."""
