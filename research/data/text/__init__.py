"""Texts: their store, their tokens and their batches."""
