"""One file a family of diffusion models, and the file's name is the family's. The contract: `backbones/base.py`."""

from typing import cast

from diffprobe.backbones.base import Checkpoint, Family
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.registry import FAMILIES


def family_of(checkpoint: Checkpoint) -> Family:
    """Choose the family by the pipeline's own index. Raises: WeightsMismatch if no family takes it."""
    for name in FAMILIES.names():
        family = cast(Family, FAMILIES.load(name))
        if family.matches(checkpoint.index):
            return family
    raise WeightsMismatch(
        f"no family of backbones takes '{checkpoint.name}', a {checkpoint.index.get('_class_name')}.",
        f"families: {', '.join(FAMILIES.names())}",
    )
