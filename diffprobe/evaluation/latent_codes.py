"""The codes of a split of a feature table, with targets, groups and captions: of an autoencoder, or of a baseline.

Where a sample has several rows (timesteps, draws, positions), the activation of a latent is the largest over them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

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
_ROWS = 4096
"""Rows that are encoded at once."""


def autoencoder_codes(
    sae: KSAE,
    table: FeatureTable,
    cells: Sequence[str],
    *,
    group: str | None = None,
    max_images: int = MAX_IMAGES,
    embeddings: Mapping[str, NDArray[np.float32]] | None = None,
) -> SplitCodes:
    """Return the codes of an autoencoder.

    Args:
        sae: the autoencoder.
        table: features of the split.
        cells: cells that it reads.
        group: attribute whose values are groups; None for images that are independent.
        max_images: largest number of images, see `CodeCollector`.
        embeddings: key -> embedding of the image, (d,), by some encoder.

    Raises: as `split_codes`.
    """
    batches = ((code.values, code.indices, rows) for code, rows, _ in sample_codes(sae, table, cells))
    return split_codes(batches, table, sae.n_latents, group=group, max_images=max_images, embeddings=embeddings)


def baseline_codes(
    codes: LinearCodes,
    table: FeatureTable,
    cells: Sequence[str],
    *,
    group: str | None = None,
    max_images: int = MAX_IMAGES,
    embeddings: Mapping[str, NDArray[np.float32]] | None = None,
) -> SplitCodes:
    """Return the codes of neurons, components or random directions. Args: as `autoencoder_codes`."""
    batches = _linear(codes, table, cells)
    return split_codes(batches, table, codes.n_latents, group=group, max_images=max_images, embeddings=embeddings)


def split_codes(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    table: FeatureTable,
    n_latents: int,
    *,
    group: str | None = None,
    max_images: int = MAX_IMAGES,
    embeddings: Mapping[str, NDArray[np.float32]] | None = None,
) -> SplitCodes:
    """Collect codes, and put labels, attributes, groups and captions in their order.

    Args:
        batches: values and indices [batch, k] of the codes of samples, and their rows in the table [batch].
        table: features of the split.
        n_latents: number of latents.
        group, max_images, embeddings: as `autoencoder_codes`.

    Raises: ConfigError for a group that is not an attribute, or an image without an embedding; the errors of
        `CodeCollector`.
    """
    if group is not None and group not in table.attributes:
        raise ConfigError(f"group '{group}' is not an attribute.", f"attributes: {', '.join(table.attributes)}")
    collector = CodeCollector(n_latents, max_images)
    for values, indices, rows in batches:
        collector.update(values, indices, [table.keys[row] for row in rows.tolist()])
    codes = collector.result()
    row_of = {key: row for row, key in enumerate(table.keys)}
    order = np.array([row_of[key] for key in codes.keys], dtype=np.int64)
    targets = {CLASS: table.label, **{name: ids for name, ids in table.attributes.items() if name != group}}
    of_group = np.full(len(order), -1) if group is None else table.attributes[group].numpy()[order]
    return SplitCodes(
        codes=codes, targets={name: ids.numpy()[order].astype(np.int64) for name, ids in targets.items()},
        groups=Groups.of_values(of_group.astype(np.int64)),
        captions=[table.captions[row] for row in order.tolist()] if table.captions else None,
        embeddings=None if embeddings is None else _embeddings(embeddings, codes.keys),
    )  # fmt: skip


@torch.no_grad()
def baselines_of(
    train: FeatureTable, cells: Sequence[str], *, n_latents: int, k: int, seed: int = 0
) -> dict[str, LinearCodes]:
    """Return raw neurons, principal components, and a random dictionary of the same size and density.

    Args:
        train: features of the training split, whose mean and covariance they take.
        cells: cells that the autoencoder reads.
        n_latents: size of the autoencoder.
        k: its active latents per row.
        seed: seed of the random directions.
    """
    total, gram, n = None, None, 0
    for rows in _places(train, cells):
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
