"""Tables and, later, pages made from the figures of runs."""
