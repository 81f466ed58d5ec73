"""What the numbers of a run rest on, as digests in the `artifacts` of its `result.json`.

Owns the name of a backbone: one for all that is read from it, so that results of the same weights can be told from
those of others, whatever the folder was called.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffprobe.core.digest import digest_json

if TYPE_CHECKING:
    from diffprobe.features.source import FeatureSource

SHARDS, BACKBONE, STORE = "input/shards", "input/backbone", "input/store"
"""Names of what a run may rest on."""

_OWN = ("family", "weights", "random_seed", "schedule")
"""Of a backbone's fingerprint: what the model is. The rest says what was read from it, and stands in the config."""


def backbone_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the digest of a backbone's files, from `Plan.fingerprint` or the copy of it in a store's manifest."""
    return digest_json({name: fingerprint[name] for name in _OWN})


def checkpoint_digest(path: str) -> str:
    """Return the digest of a checkpoint with its trained weights; equal to `backbone_digest` of what is read from it.

    Raises: WeightsMissing, WeightsMismatch.
    """
    from diffprobe.backbones.families import family_of
    from diffprobe.backbones.weights import locate

    checkpoint = locate(path)
    family = family_of(checkpoint)
    outline = family.outline(checkpoint, None)
    weights = family.digests(checkpoint, True)
    return backbone_digest(
        {"family": outline.family, "weights": weights, "random_seed": None, "schedule": outline.schedule.digest}
    )


def inputs_of(source: "FeatureSource") -> dict[str, str]:
    """Name what features rest on: the shard set, the backbone, and the feature store if there is one."""
    from diffprobe.features.stored import StoredFeatures

    request = source.request
    inputs = {SHARDS: request.shard_set.digest, BACKBONE: backbone_digest(request.plan.fingerprint)}
    if isinstance(source, StoredFeatures):
        inputs[STORE] = source.store.manifest.digest
    return inputs
