"""Tests of the pure torch blocks."""
