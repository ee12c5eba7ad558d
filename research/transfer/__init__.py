"""Pretrained weights in and out, and what is built on them."""
