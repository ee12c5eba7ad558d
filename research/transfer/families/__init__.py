"""Whose weights each model takes and gives: one file per module of research/models, under its name."""
