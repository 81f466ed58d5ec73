"""Frozen diffusion models as feature extractors. The public door is `extractor.DiffusionFeatures`.

A family file under `families/` knows one kind of pipeline; everything that must not differ between families (noise,
capture, prune_after, pooling, digests) is here once.
"""
