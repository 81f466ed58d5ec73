"""Families of diffusion models, one file per family with the family's name. The interface is in `backbones/base.py`."""

from typing import cast

from diffprobe.backbones.base import BackboneSpec, Checkpoint, Family
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.foreign import naming
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


def describe(checkpoint: Checkpoint, resolution: int | None) -> tuple[Family, BackboneSpec]:
    """Return the family of a checkpoint and its description from its configs; no weights are read.

    Args:
        resolution: image side in pixels; None takes the checkpoint's own.
    Raises: WeightsMissing, WeightsMismatch, ConfigError.
    """
    family = family_of(checkpoint)
    with naming(checkpoint.folder or checkpoint.name, "a checkpoint whose configurations fit together"):
        return family, family.spec(checkpoint, resolution)
