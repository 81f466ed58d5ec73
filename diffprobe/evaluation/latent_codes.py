"""The codes of a split of a feature table, with targets, groups and captions: of an autoencoder, or of a baseline.

Where a sample has several rows (timesteps, draws, positions), the activation of a latent is the largest over them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.analysis.latents.baselines import LinearCodes
from diffprobe.analysis.latents.sparse_codes import MAX_IMAGES, CodeCollector
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups
from diffprobe.evaluation.latent_numbers import SplitCodes
from diffprobe.evaluation.sample_codes import rows_of, sample_codes
from diffprobe.features.batch import FeatureTable
from diffprobe.features.row_layout import by_place
from diffprobe.probes.sae.topk import KSAE

CLASS = "class"
"""Name of the label among the targets."""
Tables = FeatureTable | Iterable[FeatureTable]
"""The features of a split: whole, or in parts, of which one is held at a time."""
Batch = tuple[Tensor, Tensor, Tensor]
"""Values and indices of the codes of samples, [batch, k], and the rows of these in their table, [batch]."""
_ROWS = 4096
"""Rows that are encoded at once."""


def autoencoder_codes(
    sae: KSAE,
    table: Tables,
    cells: Sequence[str],
    *,
    group: str | None = None,
    max_images: int = MAX_IMAGES,
    embeddings: Mapping[str, NDArray[np.float32]] | None = None,
) -> SplitCodes:
    """Return the codes of an autoencoder.

    Args:
        sae: the autoencoder.
        table: features of the split, whole or in parts.
        cells: cells that it reads.
        group: attribute whose values are groups; None for images that are independent.
        max_images: largest number of images, see `CodeCollector`.
        embeddings: key -> embedding of the image, (d,), by some encoder.

    Raises: as `split_codes`.
    """
    parts = (
        (part, ((code.values, code.indices, rows) for code, rows, _ in sample_codes(sae, part, cells)))
        for part in _parts(table)
    )
    return split_codes(parts, sae.n_latents, group=group, max_images=max_images, embeddings=embeddings)


def baseline_codes(
    codes: LinearCodes,
    table: Tables,
    cells: Sequence[str],
    *,
    group: str | None = None,
    max_images: int = MAX_IMAGES,
    embeddings: Mapping[str, NDArray[np.float32]] | None = None,
) -> SplitCodes:
    """Return the codes of neurons, components or random directions. Args: as `autoencoder_codes`."""
    parts = ((part, _linear(codes, part, cells)) for part in _parts(table))
    return split_codes(parts, codes.n_latents, group=group, max_images=max_images, embeddings=embeddings)


def split_codes(
    parts: Iterable[tuple[FeatureTable, Iterable[Batch]]],
    n_latents: int,
    *,
    group: str | None = None,
    max_images: int = MAX_IMAGES,
    embeddings: Mapping[str, NDArray[np.float32]] | None = None,
) -> SplitCodes:
    """Collect codes, and put labels, attributes, groups and captions in their order.

    Args:
        parts: the features of the split in parts, each with the codes of its samples.
        n_latents: number of latents.
        group, max_images, embeddings: as `autoencoder_codes`.

    Raises: ConfigError for a group that is not an attribute, or an image without an embedding; the errors of
        `CodeCollector`.
    """
    collector = CodeCollector(n_latents, max_images)
    known: dict[str, _Labels] = {}
    names: list[str] = []
    for table, batches in parts:
        if group is not None and group not in table.attributes:
            raise ConfigError(f"group '{group}' is not an attribute.", f"attributes: {', '.join(table.attributes)}")
        for values, indices, rows in batches:
            collector.update(values, indices, [table.keys[row] for row in rows.tolist()])
        names = [CLASS, *(name for name in table.attributes if name != group)]
        known.update(_labels(table, names, group, collector.keys()))
        if len(known) > 4 * max_images:  # forget images that are not in the sample any more
            kept = collector.keys()
            known = {key: labels for key, labels in known.items() if key in kept}
    codes = collector.result()
    found = [known[key] for key in codes.keys]
    columns = np.array([one.values for one in found], dtype=np.int64).reshape(len(found), len(names))
    return SplitCodes(
        codes=codes, targets={name: columns[:, i].copy() for i, name in enumerate(names)},
        groups=Groups.of_values(np.array([one.group for one in found], dtype=np.int64)),
        captions=[one.caption or "" for one in found] if any(one.caption is not None for one in found) else None,
        embeddings=None if embeddings is None else _embeddings(embeddings, codes.keys),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """What is known of an image."""

    values: tuple[int, ...]
    group: int
    caption: str | None


def _labels(
    table: FeatureTable, names: Sequence[str], group: str | None, kept: frozenset[str]
) -> Iterator[tuple[str, _Labels]]:
    columns = [(table.label if name == CLASS else table.attributes[name]).tolist() for name in names]
    of_group = [-1] * len(table) if group is None else table.attributes[group].tolist()
    captions: Sequence[str | None] = table.captions or [None] * len(table)
    for row, key in enumerate(table.keys):
        if key in kept:
            values = tuple(column[row] for column in columns)
            yield key, _Labels(values=values, group=of_group[row], caption=captions[row])


def _parts(table: Tables) -> Iterable[FeatureTable]:
    return (part for part in ([table] if isinstance(table, FeatureTable) else table) if len(part))


@torch.no_grad()
def baselines_of(
    train: Tables, cells: Sequence[str], *, n_latents: int, k: int, seed: int = 0
) -> dict[str, LinearCodes]:
    """Return raw neurons, principal components, and a random dictionary of the same size and density.

    Args:
        train: features of the training split, whole or in parts, whose mean and covariance they take.
        cells: cells that the autoencoder reads.
        n_latents: size of the autoencoder.
        k: its active latents per row.
        seed: seed of the random directions.
    """
    total, gram, n = None, None, 0
    for rows in (rows for part in _parts(train) for rows in _places(part, cells)):
        x = rows.double()
        total = x.sum(0) if total is None else total + x.sum(0)
        gram = x.T @ x if gram is None else gram + x.T @ x
        n += len(x)
    if total is None or gram is None:
        raise ConfigError("the training split has no features, and so no baselines.")
    mean = total / n
    covariance = gram / n - mean[:, None] * mean
    d = len(mean)
    return {
        "raw neurons": LinearCodes.neurons(mean, covariance.diagonal().clamp(min=0), min(k, 2 * d)),
        "PCA components": LinearCodes.components(mean, covariance, k),
        "random dictionary": LinearCodes.random(mean, n_latents, min(k, n_latents), seed=seed),
    }


@torch.no_grad()
def random_dictionary(tables: Tables, cells: Sequence[str], *, n_latents: int, k: int, seed: int = 0) -> LinearCodes:
    """Return a random dictionary alone, around the mean of some features. Args: as `baselines_of`.

    Raises: ConfigError without features.
    """
    total, n = None, 0
    for rows in (rows for part in _parts(tables) for rows in _places(part, cells)):
        total, n = rows.double().sum(0) + (0 if total is None else total), n + len(rows)
    if total is None:
        raise ConfigError("a random dictionary needs features; the split has none.")
    return LinearCodes.random(total / n, n_latents, min(k, n_latents), seed=seed)


def _embeddings(embeddings: Mapping[str, NDArray[np.float32]], keys: Sequence[str]) -> NDArray[np.float32]:
    missing = next((key for key in keys if key not in embeddings), None)
    if missing is not None:
        raise ConfigError(f"image '{missing}' has no embedding; each image of the split needs one.")
    return np.stack([embeddings[key] for key in keys])


def _places(table: FeatureTable, cells: Sequence[str]) -> Iterator[Tensor]:
    """Yield the rows of batches of samples, over cells, draws and positions, [rows, width]."""
    views = [by_place(table.features[cell], cell) for cell in cells]
    n_places = sum(view.shape[1:-1].numel() for view in views)
    for rows in torch.arange(len(table)).split(max(_ROWS // n_places, 1)):
        yield rows_of(views, rows).flatten(0, 1)


@torch.no_grad()
def _linear(codes: LinearCodes, table: FeatureTable, cells: Sequence[str]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield codes of samples and their rows."""
    start = 0
    views = [by_place(table.features[cell], cell) for cell in cells]
    n_places = sum(view.shape[1:-1].numel() for view in views)
    for x in _places(table, cells):
        n = len(x) // n_places
        values, indices = codes.encode(x)
        if n_places > 1:
            largest = values.new_zeros(n, codes.n_latents)
            largest.scatter_reduce_(1, indices.reshape(n, -1), values.reshape(n, -1), "amax")
            values, indices = largest.topk(min(codes.n_latents, n_places * codes.k), dim=1)
        yield values, indices, torch.arange(start, start + n)
        start += n
