"""Tests; their folders mirror src/dlen."""
