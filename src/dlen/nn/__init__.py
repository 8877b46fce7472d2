"""Pure torch blocks."""
