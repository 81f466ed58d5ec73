"""The inputs of a run: the splits that it reads, and the digests in the `artifacts` of its `result.json`.

A backbone has one digest whatever is read from it and whatever its folder is called, so that results can be grouped by
weights.
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffprobe.config.schema import DataConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import SplitLeak, unknown
from diffprobe.core.result import BACKBONE, SHARDS, STORE

if TYPE_CHECKING:
    from diffprobe.features.datamodule import FeatureSource
    from diffprobe.shards.index import ShardSet

_OWN = ("family", "weights", "random_seed", "schedule")
"""Keys of a fingerprint that identify the model. The others describe what was read from it, as the config does."""


def require_splits(data: DataConfig, shard_set: "ShardSet") -> None:
    """Check that a shard set has the splits that a run reads, or that `data.val_fraction` makes the validation split.

    Raises: UnknownName with the key that names another; ConfigError, see `Holdout.of`.
    """
    from diffprobe.shards.holdout import Holdout

    splits = shard_set.splits()
    if Holdout.of(data, shard_set) is not None:
        splits = (*splits, data.val_split)
    for key in ("train_split", "val_split", "test_split"):
        name = getattr(data, key)
        if name not in splits:
            error = unknown(f"data.{key} of '{shard_set.name}':", name, splits)
            error.fix = (
                f"data.{key}=NAME for one that it has; or name shards {name}-0000.tar and index the folder again"
            )
            if key == "val_split":
                error.fix += "; or cut it out of the training split: data.val_fraction=0.1"
            if key != "train_split":
                error.fix += (
                    f"; or draw it from an image folder: diffprobe data build folder DIR --out SHARDS"
                    f" --{key.removesuffix('_split')} 0.1"
                )
            raise error


def require_no_leak(data: DataConfig, shard_set: "ShardSet") -> None:
    """Check that what a run is scored on was not seen in its training or its selection.

    The group of a set that was indexed with it has to stay in one split. The sets that diffprobe builds name a group
    without recording it: `val` of `emoji` holds seen bases on purpose.

    Raises: SplitLeak for one split in two roles, and for a group with samples in two of the splits that the run reads.
    """
    from diffprobe.shards.shared_groups import require_disjoint_splits

    roles = {key: getattr(data, key) for key in ("train_split", "val_split", "test_split")}
    for one, other in itertools.combinations(roles, 2):
        if roles[one] == roles[other]:
            seen = "labels of training" if one == "train_split" else "what selection has seen"
            raise SplitLeak(
                f"data.{one} and data.{other} are both '{roles[one]}': the score on it would be of {seen}.",
                f"splits of '{shard_set.name}': {', '.join(shard_set.splits())}",
                fix=f"data.{other}=NAME for another split"
                + ("" if "val_split" not in (one, other) else "; or data.val_split=val data.val_fraction=0.1"),
            )
    if shard_set.grouped_by is not None:
        require_disjoint_splits(
            shard_set.shared_groups, roles.values(), group=shard_set.grouped_by, name=shard_set.name,
            folder=shard_set.root,
        )  # fmt: skip


def backbone_digest(fingerprint: Mapping[str, Any]) -> str:
    """Return the digest of a backbone's files, from `RunPlan.fingerprint` or the copy of it in a store's manifest."""
    return digest_json({name: fingerprint[name] for name in _OWN})


def checkpoint_digest(path: str) -> str:
    """Return the digest of a checkpoint with its trained weights; equal to `backbone_digest` of what is read from it.

    Raises: WeightsMissing, WeightsMismatch.
    """
    from diffprobe.backbones.families import describe
    from diffprobe.backbones.locate import locate

    checkpoint = locate(path)
    family, spec = describe(checkpoint, None)
    weights = family.digests(checkpoint, True)
    return backbone_digest(
        {"family": spec.family, "weights": weights, "random_seed": None, "schedule": spec.schedule.digest}
    )


def inputs_of(source: "FeatureSource") -> dict[str, str]:
    """Return the digests of the shard set, of the backbone, and of the feature stores if there are any."""
    from diffprobe.features.stored import StoredFeatures

    request = source.request
    inputs = {SHARDS: request.shard_set.digest, BACKBONE: backbone_digest(request.plan.fingerprint)}
    if isinstance(source, StoredFeatures):
        inputs[STORE] = source.store.manifest.digest
        for number, store in enumerate(source.view_stores):
            inputs[f"{STORE}/view/{number}"] = store.manifest.digest
    return inputs
