"""Tests from raw log to prepared store to batches."""
