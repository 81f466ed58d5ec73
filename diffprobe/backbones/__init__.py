"""Frozen diffusion models as feature extractors. The public class is `extractor.DiffusionFeatures`.

A file under `families/` handles one kind of pipeline. Everything that must not differ between families (noise, hooks,
pruning, pooling, digests) is implemented here once.
"""
