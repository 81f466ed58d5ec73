"""Sparse autoencoders: one file a variant; the file's name is `probe.name`."""

SHARED = ("sparse_step",)
"""Files of this folder that are no variants: what the variants share."""
