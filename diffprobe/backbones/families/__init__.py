"""Families of diffusion models, one file per family with the family's name. The interface is in `backbones/base.py`."""

from typing import cast

from diffprobe.backbones.base import Checkpoint, Family
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.registry import FAMILIES


def family_of(checkpoint: Checkpoint) -> Family:
    """Return the family of a checkpoint, by its `model_index.json`. Raises: WeightsMismatch if there is none."""
    for name in FAMILIES.names():
        family = cast(Family, FAMILIES.load(name))
        if family.matches(checkpoint.index):
            return family
    raise WeightsMismatch(
        f"no family of backbones supports '{checkpoint.name}', a {checkpoint.index.get('_class_name')}.",
        f"families: {', '.join(FAMILIES.names())}",
    )
