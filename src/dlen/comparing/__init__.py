"""Comparisons: models x seeds on one data set, with cached runs, paired statistics and tables."""
