"""Classifiers on features: one file a probe; the file's name is `probe.name`."""
