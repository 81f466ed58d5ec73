"""Tables, figures and pages from result files. Nothing here imports torch or recomputes a metric."""
