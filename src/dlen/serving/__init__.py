"""Serving a finished run: scores of new rows, and an exported model."""
