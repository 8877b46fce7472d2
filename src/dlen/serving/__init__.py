"""A finished run in use: scores of new rows, and an exported model."""
