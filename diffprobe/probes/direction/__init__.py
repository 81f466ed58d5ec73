"""Directions: one axis of feature space each. One file an estimator; the file's name is `probe.name`."""

from diffprobe.probes.direction.base import ContrastPair, Direction, DirectionConfig, class_means, random_directions

SHARED = ("base",)
"""Files of this folder that are no estimators."""

__all__ = ["ContrastPair", "DirectionConfig", "Direction", "class_means", "random_directions"]
