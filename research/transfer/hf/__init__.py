"""Hugging Face folders in and out: where one is, what its config.json says, and how one is written."""
