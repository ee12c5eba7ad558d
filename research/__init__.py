"""Rootstock: a functional research codebase on JAX and Flax."""
