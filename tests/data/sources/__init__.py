"""Tests of the readers of raw logs."""
