"""Ranking a feed: one score from several probabilities."""
