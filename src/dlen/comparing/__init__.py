"""Comparisons: models x seeds on one data set, cached runs, paired statistics and tables."""
