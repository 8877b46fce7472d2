"""Ranking a feed: combine several probabilities into one score."""
