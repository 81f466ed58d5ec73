"""Denoising error of any family, computed in one place: plain, or with an intervention at a tap."""
