"""Pure Flax Linen modules."""
