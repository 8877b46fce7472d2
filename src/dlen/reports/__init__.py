"""Tables and pages made from the metrics of runs."""
