"""Pairs of images with named points of `diffprobe eval correspondence`, and their targets mirrored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.pck import Matches
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, unknown

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.shards.dense_truth import PointSample


@dataclass(frozen=True, kw_only=True)
class PairedPoints:
    """The pairs of one split, with the points that both images of a pair have."""

    pairs: "list[tuple[PointSample, PointSample]]"
    """Source and target of each pair; the target is mirrored already where it is to be."""
    names: list[tuple[str, ...]]
    """The names of the points of each pair."""
    groups: list[object]
    """The groups of all images."""
    clusters: list[int]
    """Cluster of each pair: pairs that share a group."""
    resolution: int
    """Side of the images in pixels."""
    partner: Mapping[str, str]
    """Point -> its partner on the other side."""

    @property
    def digest(self) -> str:
        """Digest of pairs and points."""
        return digest_json(
            [[a.sample.key, b.sample.key, list(n)] for (a, b), n in zip(self.pairs, self.names, strict=True)]
        )

    @property
    def n_points(self) -> int:
        """Number of points of all pairs."""
        return sum(map(len, self.names))

    def points(self, number: int) -> "Tensor":
        """Return the points of a pair in its source image, float64 (points, 2)."""
        import torch

        source, _ = self.pairs[number]
        return torch.tensor([source.points[name] for name in self.names[number]], dtype=torch.float64)

    def measured(
        self, found: Mapping[str, Mapping[str, NDArray[np.float64]]]
    ) -> "tuple[dict[str, dict[str, Matches]], list[int], NDArray[np.float64], NDArray[np.bool_]]":
        """Return rung -> cell -> matches; the clusters of the pairs; the partners of all points, and which have one."""
        pair = np.repeat(np.arange(len(self.pairs)), [len(names) for names in self.names])
        names = [name for own in self.names for name in own]
        targets = [self.pairs[number][1] for number in pair]
        true = np.array([target.points[name] for target, name in zip(targets, names, strict=True)])
        partners, known = np.zeros_like(true), np.zeros(len(names), np.bool_)
        for i, (target, name) in enumerate(zip(targets, names, strict=True)):
            other = self.partner.get(name)
            if other is not None and other in target.points:
                partners[i], known[i] = target.points[other], True
        boxes = [target.box for target in targets]
        box = np.array([max(one) for one in boxes if one is not None]) if all(boxes) else None
        source = np.array([self.pairs[number][0].points[name] for number, name in zip(pair, names, strict=True)])
        here = {**found, "same_place": {"": source}}

        def matches(places: NDArray[np.float64]) -> Matches:
            return Matches(pair=pair, name=tuple(names), true=true, found=places, box=box, resolution=self.resolution)

        by_rung = {rung: {cell: matches(places) for cell, places in cells.items()} for rung, cells in here.items()}
        return by_rung, self.clusters, partners, known


def listed_pairs(path: Path, split: str, keys: Sequence[str], *, n: int) -> list[tuple[int, int]]:
    """Read the pairs of a split from a JSON file, {split: [[source key, target key], ...]}.

    Args:
        keys: the samples of the split, in order.
        n: largest number of pairs; the first ones are taken.

    Returns: the positions of source and target of each pair.
    Raises: ConfigError for a file of another form, or without this split; UnknownName for a key that no sample has.
    """
    form = 'expected {"val": [["source key", "target key"], ...], "test": ...}'
    try:
        tree = json.loads(path.read_text("utf-8"))
        pairs = [(str(source), str(target)) for source, target in tree[split]]
    except FileNotFoundError as error:
        raise ConfigError(f"pairs_file '{path}' does not exist.") from error
    except KeyError as error:
        raise ConfigError(
            f"pairs_file '{path}' has no split '{split}'.", f"it has: {', '.join(map(str, tree))}"
        ) from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigError(f"pairs_file '{path}' cannot be read as pairs.", form, str(error)[:200]) from error
    place = {key: i for i, key in enumerate(keys)}
    for name in (name for pair in pairs[:n] for name in pair):
        if name not in place:
            raise unknown(f"image of split '{split}' in pairs_file '{path}':", name, keys)
    if len(pairs) < 2:
        raise ConfigError(f"pairs_file '{path}' has {len(pairs)} pairs of split '{split}'; at least 2.", form)
    return [(place[source], place[target]) for source, target in pairs[:n]]


def attribute_of(one: "PointSample", name: str) -> str:
    """Return the value of an attribute or the class of a sample, "" for none."""
    return one.sample.class_name if name == "label" else one.sample.attributes.get(name, "")


def mirrored(one: "PointSample", partner: Mapping[str, str], resolution: int) -> "PointSample":
    """Return a sample mirrored at its vertical axis; points with a partner take its name."""
    from PIL import ImageOps

    points = {partner.get(name, name): (resolution - x, y) for name, (x, y) in one.points.items()}
    return replace(one, sample=replace(one.sample, image=ImageOps.mirror(one.sample.image)), points=points)
