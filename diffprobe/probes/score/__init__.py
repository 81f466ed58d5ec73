"""Probes that read the model by its own scores: which text fits an image, by denoising error."""

SHARED = ()
