"""Tests of raw log -> prepared store -> batches."""
