"""What the numbers of a run rest on: the splits that it reads, and digests in the `artifacts` of its `result.json`.

Owns the name of a backbone: one for all that is read from it, so that results of the same weights can be told from
those of others, whatever the folder was called.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffprobe.config.schema import DataConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import unknown
from diffprobe.core.result import BACKBONE, SHARDS, STORE

if TYPE_CHECKING:
    from diffprobe.features.datamodule import FeatureSource
    from diffprobe.shards.index import ShardSet

_OWN = ("family", "weights", "random_seed", "schedule")
"""Of a backbone's fingerprint: what the model is. The rest says what was read from it, and stands in the config."""


def require_splits(data: DataConfig, shard_set: "ShardSet") -> None:
    """Check that a shard set has the splits that a run reads. Raises: UnknownName with the key that names another."""
    splits = shard_set.splits()
    for key in ("train_split", "val_split", "test_split"):
        name = getattr(data, key)
        if name not in splits:
            error = unknown(f"data.{key} of '{shard_set.name}':", name, splits)
            error.fix = (
                f"data.{key}=NAME for one that it has; or name shards {name}-0000.tar and index the folder again"
            )
            raise error


def backbone_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the digest of a backbone's files, from `RunPlan.fingerprint` or the copy of it in a store's manifest."""
    return digest_json({name: fingerprint[name] for name in _OWN})


def checkpoint_digest(path: str) -> str:
    """Return the digest of a checkpoint with its trained weights; equal to `backbone_digest` of what is read from it.

    Raises: WeightsMissing, WeightsMismatch.
    """
    from diffprobe.backbones.families import family_of
    from diffprobe.backbones.weights import locate

    checkpoint = locate(path)
    family = family_of(checkpoint)
    spec = family.spec(checkpoint, None)
    weights = family.digests(checkpoint, True)
    return backbone_digest(
        {"family": spec.family, "weights": weights, "random_seed": None, "schedule": spec.schedule.digest}
    )


def inputs_of(source: "FeatureSource") -> dict[str, str]:
    """Name what features rest on: the shard set, the backbone, and the feature store if there is one."""
    from diffprobe.features.stored import StoredFeatures

    request = source.request
    inputs = {SHARDS: request.shard_set.digest, BACKBONE: backbone_digest(request.plan.fingerprint)}
    if isinstance(source, StoredFeatures):
        inputs[STORE] = source.store.manifest.digest
    return inputs
