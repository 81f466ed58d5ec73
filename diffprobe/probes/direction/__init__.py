"""Directions: one axis of feature space each. One file an estimator; the file's name is `probe.name`."""

from diffprobe.probes.direction.base import Axis, AxisConfig, Direction, class_means, random_directions

SHARED = ("base",)
"""Files of this folder that are no estimators."""

__all__ = ["Axis", "AxisConfig", "Direction", "class_means", "random_directions"]
