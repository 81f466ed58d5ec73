"""Samples on which a dictionary is certified: features with the values of factors, and masks where they are known.

Two kinds: rendered scenes, of which everything is known, and a shard set, of which the attributes are known.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, unknown

if TYPE_CHECKING:
    from diffprobe.backbones.extractor import DiffusionFeatures
    from diffprobe.shards.index import ShardSet
    from diffprobe.shards.scenes.factors import Scenes
    from diffprobe.shards.scenes.spec import WorldSpec

Features = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
PARTS_OF = {"hat": "hat", "tool": "tool", "object": "object", "texture": "body", "colour": "body", "build": "figure"}
"""Factor -> the mask of the part that shows it; hat and tool follow from the role."""
LABEL = "label"
"""Name of the class of a sample, beside its attributes."""
_AT_ONCE = 64
"""Images that are read at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shown:
    """Where the parts that show a factor are."""

    part: str
    """Name of the part."""
    labels: tuple[Ints, Ints]
    """Value of the factor of each sample of train and of test."""
    covered: Bools
    """At which places of the map the part of each test sample is, (samples, height, width)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DictionarySamples:
    """Features of samples to choose latents on (train) and to score them on (test), with what is known of them."""

    cell: str
    """Name of the cell."""
    train: Features
    """(samples, d), or (samples, d, height, width) in a cell with places."""
    test: Features
    """As `train`."""
    labels: dict[str, tuple[Ints, Ints]]
    """Factor -> value of each sample of train and of test, -1 for none."""
    groups: tuple[Ints, Ints] | None = None
    """Group of each sample of train and of test; None for independent samples."""
    shown: dict[str, Shown] = field(default_factory=dict)
    """Factor -> where it is shown, for the pointing game; empty without masks."""
    not_measured: dict[str, str] = field(default_factory=dict)
    """Measure -> why these samples do not allow it."""
    facts: dict[str, str] = field(default_factory=dict)
    """What they are."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How features are read."""

    backbone: str
    """Folder or name of the backbone."""
    cell: str
    """Name of the cell."""
    resolution: int = 64
    """Side of the images in pixels."""
    noise_seed: int = 0
    """Seed of the noise."""
    random_weights: bool = False
    """Whether the denoiser has random weights, as a control."""


def scene_samples(
    spec: "WorldSpec", reading: Reading, *, world: str, seed: int, n_train: int, n_test: int, factors: tuple[str, ...],
    pointing: tuple[str, ...], tolerance: int,
) -> DictionarySamples:  # fmt: skip
    """Read scenes of the splits train and test.

    Args:
        spec, world, seed: of the scenes.
        reading: how they are read.
        n_train, n_test: number of scenes.
        factors: whose values single latents have to equal.
        pointing: factors whose latents have to be largest on the part that shows them, in a cell with places.
        tolerance: places around those of the part that count as on it.

    Raises: UnknownName for an unknown factor; the errors of `SceneReader`.
    """
    from diffprobe.analysis.certification.pointing import covered_places
    from diffprobe.shards.scenes.render import render

    for factor in factors:
        spec.names(factor)
    parts = [
        scenes_of(spec, split, n, world=world, seed=seed) for split, n in (("train", n_train), ("test", n_test))
    ]  # fmt: skip
    cell, (train, test) = read_scenes(spec, reading, parts)
    shown, not_measured = {}, {}
    if test.ndim == 4:
        drawn = render(spec, parts[1], resolution=reading.resolution)
        height, width = test.shape[2:]
        for factor in pointing:
            covered = covered_places(drawn.mask(PARTS_OF[factor]), (height, width), tolerance)
            labels = labels_of(spec, parts[0], factor), labels_of(spec, parts[1], factor)
            shown[factor] = Shown(part=PARTS_OF[factor], labels=labels, covered=covered)
    else:
        not_measured["pointing game"] = f"cell '{reading.cell}' is pooled; a cell with pool none has places"
    return DictionarySamples(
        cell=cell, train=train, test=test, shown=shown, not_measured=not_measured,
        labels={factor: (parts[0].factors[factor], parts[1].factors[factor]) for factor in factors},
        facts={"world": f"{world}, digest {spec.digest[:12]}"},
    )  # fmt: skip


def scenes_of(spec: "WorldSpec", split: str, n: int, *, world: str, seed: int) -> "Scenes":
    """Return the first n scenes of a split. Raises: UnknownName for an unknown split; ConfigError."""
    from diffprobe.shards.scenes.factors import sample
    from diffprobe.shards.scenes.splits import split_indices

    return sample(spec, seed, split_indices(spec, seed, split, n, world=world), world=world)


def read_scenes(spec: "WorldSpec", reading: Reading, parts: "list[Scenes]") -> tuple[str, list[Features]]:
    """Read scenes, and return the name of the cell and the features of each part. Raises: see `SceneReader`."""
    from diffprobe.evaluation.certificates.scene_features import SceneReader

    reader = SceneReader(
        spec, reading.backbone, reading.cell, resolution=reading.resolution, noise_seed=reading.noise_seed,
        random_weights=reading.random_weights,
    )  # fmt: skip
    return reader.cell.name, [reader.read(part) for part in parts]


def labels_of(spec: "WorldSpec", scenes: "Scenes", factor: str) -> Ints:
    """Return the code of a factor's value in each scene; of `hat` and `tool` by the role."""
    if factor not in ("hat", "tool"):
        return scenes.factors[factor]
    names = list(spec.hats if factor == "hat" else spec.tools)
    codes = np.array([names.index(getattr(role, factor)) for role in spec.roles], dtype=np.int64)
    found: Ints = codes[scenes.factors["role"]]
    return found


def shard_samples(
    path: str, reading: Reading, *, n_train: int, n_test: int, factors: tuple[str, ...], most_values: int,
    n_fit: int = 0,
) -> tuple[DictionarySamples, Features | None]:  # fmt: skip
    """Read samples of the splits train and test of a shard set; its attributes are the factors.

    Args:
        path: folder of the shard set, or the name of a shipped one.
        reading: how they are read.
        n_train, n_test: largest number of samples, the first of each split.
        factors: attributes, or "label" for the class.
        most_values: number of values of a factor, the most frequent ones on train; samples with others have none.
        n_fit: the first samples of train whose features are returned, too, to train dictionaries on; they may be more
            than `n_train`. 0 for none.

    Returns: the samples, and the features of the first `n_fit` samples of train.
    Raises: UnknownName for an attribute that the set does not have; ConfigError for a condition that needs more than
        captions; the errors of opening the set and the backbone.
    """
    from diffprobe.backbones.extractor import DiffusionFeatures
    from diffprobe.backbones.library_logging import quiet_libraries
    from diffprobe.evaluation.certificates.scene_features import keeps_places
    from diffprobe.report.query import parse_cell
    from diffprobe.shards.index import ShardSet

    shard_set, cell = ShardSet.load(path), parse_cell(reading.cell)
    for factor in factors:
        if factor not in (LABEL, *shard_set.attributes):
            raise unknown(f"attribute of '{shard_set.name}'", factor, (LABEL, *shard_set.attributes))
    if cell.condition not in ("empty", "caption"):
        raise ConfigError(f"cell '{reading.cell}' has the condition '{cell.condition}'.", "allowed: empty, caption")
    with quiet_libraries():
        extractor = DiffusionFeatures.from_pretrained(
            reading.backbone, taps=[cell.tap], timesteps=[cell.timestep], condition=cell.condition,
            pool="none" if keeps_places(cell) else cell.pool, seed=reading.noise_seed, resolution=reading.resolution,
            random_weights=reading.random_weights,
        )  # fmt: skip
    train, columns = _read_split(shard_set, extractor, "train", max(n_train, n_fit), cell.condition == "caption")
    test, test_columns = _read_split(shard_set, extractor, "test", n_test, cell.condition == "caption")
    labels = {
        factor: _most_frequent(columns[factor][:n_train], test_columns[factor], most_values) for factor in factors
    }
    group = shard_set.group
    groups = None if group is None else (_singles(columns[group][:n_train]), _singles(test_columns[group]))
    found = DictionarySamples(
        cell=cell.name, train=train[:n_train], test=test, labels=labels, groups=groups,
        not_measured={"pointing game": f"'{shard_set.name}' has no masks of parts"},
        facts={
            "data": f"{shard_set.name}, digest {shard_set.digest[:12]}", "groups": group or "single samples",
            "samples": f"{len(train[:n_train]):,} train, {len(test):,} test",
        },
    )  # fmt: skip
    return found, train[:n_fit] if n_fit else None


def _read_split(
    shard_set: "ShardSet", extractor: "DiffusionFeatures", split: str, n: int, has_captions: bool
) -> tuple[Features, dict[str, Ints]]:
    """Return features and ids of attributes and label of the first n samples of a split."""
    from diffprobe.shards.stream import SampleStream, make_loader

    stream = SampleStream(shard_set, split, resolution=extractor.resolution, limit=n)
    found: list[Features] = []
    columns: dict[str, list[Ints]] = {}
    for batch in make_loader(stream, _AT_ONCE):
        features = extractor(batch.images, keys=batch.keys, captions=batch.captions if has_captions else None)
        found.append(next(iter(features.values())).cpu().numpy())
        for name, ids in {LABEL: batch.label, **batch.attributes}.items():
            columns.setdefault(name, []).append(ids.numpy())
    return np.concatenate(found), {name: np.concatenate(parts) for name, parts in columns.items()}


def _most_frequent(train: Ints, test: Ints, most_values: int) -> tuple[Ints, Ints]:
    """Number the most frequent values of train from 0, in the order of their ids; others become -1.

    >>> [part.tolist() for part in _most_frequent(np.array([7, 7, 2, 5, 5, -1]), np.array([5, 2]), 2)]
    [[1, 1, -1, 0, 0, -1], [0, -1]]
    """
    values, counts = np.unique(train[train >= 0], return_counts=True)
    kept = np.sort(values[np.argsort(-counts, kind="stable")[:most_values]])

    def numbered(ids: Ints) -> Ints:
        place = np.searchsorted(kept, ids).clip(max=max(len(kept) - 1, 0))
        known: Ints = np.where(kept[place] == ids, place, -1) if len(kept) else np.full(len(ids), -1)
        return known.astype(np.int64)

    return numbered(train), numbered(test)


def _singles(values: Ints) -> Ints:
    """Number groups from the ids of an attribute; a sample without a value is a group of its own."""
    from diffprobe.core.groups import Groups

    return Groups.of_values(values).ids
