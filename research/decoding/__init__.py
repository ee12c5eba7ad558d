"""From a model's logits to what it says: tokens drawn one after another, and their text as it comes."""
