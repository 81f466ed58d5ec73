"""Tensor shapes shared by several packages. Axes are full words; a single axis has a leading space."""

from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch 3 height width"]
"""RGB images in [0, 1]."""

FeatureMap = Float[Tensor, "batch channels map_height map_width"]
"""The output of a tap before pooling."""

Features = Float[Tensor, "batch d_in"]
"""Pooled features of one cell, draws averaged."""
