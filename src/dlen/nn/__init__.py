"""Building blocks in plain torch."""
