"""The pipeline folder that a training starts from, located and digested."""

from diffprobe.backbones.base import Checkpoint
from diffprobe.backbones.families import describe
from diffprobe.backbones.locate import locate
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import WeightsMismatch


def pipeline_checkpoint(name: str, *, key: str) -> Checkpoint:
    """Locate a pipeline in diffusers' format.

    Args:
        name: its folder, or the name of a shipped model.
        key: the setting that names it, for the error.

    Raises: WeightsMissing; WeightsMismatch for anything but a pipeline folder.
    """
    found = locate(name)
    if found.folder is None:
        raise WeightsMismatch(f"{key} '{name}' is not a pipeline folder in diffusers' format.")
    return found


def pipeline_digest(checkpoint: Checkpoint) -> str:
    """Return the digest of the weights of a pipeline. Raises: WeightsMissing, WeightsMismatch."""
    family, _ = describe(checkpoint, None)
    return digest_json(family.digests(checkpoint, True))
