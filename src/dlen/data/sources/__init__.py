"""One module per kind of raw log."""
