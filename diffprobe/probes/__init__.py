"""Probes: what is trained or fitted on features. Plain modules that a notebook can use without Lightning.

Kinds: `sae` (sparse codes), `classifier` (class heads), `direction` (one axis each). One file per probe; the name of
the file is the name of the probe in a config. `training` wraps them for a Trainer: one file per kind in
`training/kinds`.
"""

SHARED = (
    "dense",
    "full_batch",
    "group_permutation",
    "grouped_folds",
    "l2_selection",
    "label_subset",
    "null_distribution",
    "neighbours",
    "predictions",
    "ridge_classifier",
    "score",
    "serialization",
    "shuffled_labels",
    "softmax_regression",
)
"""What is not a kind of probe that is fitted on features: shared code, `score`, which reads
the model itself, and `dense`, which matches places of maps."""
