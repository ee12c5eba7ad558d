"""What makes, reads and applies a tokenizer; `research.data.tokenizer` is the door to it."""
