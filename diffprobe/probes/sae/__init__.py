"""Sparse autoencoders: one file a variant; the file's name is `probe.name`."""
