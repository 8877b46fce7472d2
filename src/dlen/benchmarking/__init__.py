"""The benchmark: many models on many data sets, each model searched with the same budget."""
