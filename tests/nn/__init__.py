"""Tests of the pure PyTorch blocks."""
