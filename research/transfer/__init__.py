"""Pretrained weights in and out."""
