"""Tests; the folders mirror src/dlen."""
