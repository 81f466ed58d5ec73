"""Metrics: one file a concept, a pure function and a torchmetrics class over float64 sums, exact at any batch split."""
