"""The codes of samples, in batches of bounded size: those that an autoencoder selects, or all its activations.

Where a sample has several rows (timesteps, draws, positions), the activation of a latent is the largest over them.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffprobe.backbones.cell import Cell
from diffprobe.features.batch import FeatureTable
from diffprobe.features.row_layout import by_place
from diffprobe.probes.sae.topk import KSAE, Code

_ROWS = 1024
_DENSE_VALUES = 1 << 23
"""Largest number of activations that are held at once."""


@torch.no_grad()
def sample_codes(sae: KSAE, table: FeatureTable, cells: Sequence[str]) -> Iterator[tuple[Code, Tensor, FeatureTable]]:
    """Yield the codes of samples, the rows of these samples in the table, and the table."""
    views = [by_place(table.features[cell], cell) for cell in cells]
    n_places = sum(view.shape[1:-1].numel() for view in views)
    for rows in torch.arange(len(table)).split(max(_ROWS // n_places, 1)):
        code = bound(sae, views, cells, len(rows)).encode(_flat(sae, views, rows))
        yield (code if n_places == 1 else largest_of_samples(code, len(rows), sae.n_latents)), rows, table


@torch.no_grad()
def dense_codes(sae: KSAE, table: FeatureTable, cells: Sequence[str]) -> Iterator[tuple[Code, Tensor, FeatureTable]]:
    """Yield the activations of all latents before the selection, with negative ones set to 0, as `sample_codes` does.

    Values are [samples, n_latents], in the order of the latents.
    """
    views = [by_place(table.features[cell], cell) for cell in cells]
    n_places = sum(view.shape[1:-1].numel() for view in views)
    for rows in torch.arange(len(table)).split(max(_DENSE_VALUES // (n_places * sae.n_latents), 1)):
        activation = bound(sae, views, cells, len(rows)).preactivations(_flat(sae, views, rows)).relu()
        values = activation.reshape(len(rows), n_places, -1).amax(1)
        yield Code(values, torch.arange(sae.n_latents, device=values.device).expand_as(values)), rows, table


def rows_of(views: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Return all rows of some samples over cells, draws and positions: [samples, places, width]."""
    return torch.cat([view[rows].reshape(len(rows), -1, view.shape[-1]) for view in views], dim=1)


def bound(sae: KSAE, views: Sequence[Tensor], cells: Sequence[str], n_samples: int) -> KSAE:
    """Return the autoencoder for the rows of some samples (`rows_of`): with their timesteps, where it reads them.

    Args:
        sae: an autoencoder.
        views, cells: features of the samples by place, and the cells that they are from.
        n_samples: number of samples.

    Raises: BadTimestep for a cell whose timestep it was not trained on.
    """
    if sae.reads != "timesteps":
        return sae
    counts = torch.tensor([view.shape[1:-1].numel() for view in views])
    timesteps = torch.tensor([Cell.parse(cell).timestep for cell in cells]).repeat_interleave(counts)
    return sae.at(timesteps.repeat(n_samples).to(sae.W_enc.device))


def _flat(sae: KSAE, views: Sequence[Tensor], rows: Tensor) -> Tensor:
    return rows_of(views, rows).reshape(-1, views[0].shape[-1]).to(sae.W_enc.device)


def largest_of_samples(code: Code, n_samples: int, n_latents: int) -> Code:
    """Return the code of samples from that of their rows, which follow each other."""
    activation = code.values.new_zeros(n_samples, n_latents)
    values, indices = code.values.reshape(n_samples, -1), code.indices.reshape(n_samples, -1)
    activation.scatter_reduce_(1, indices, values, "amax")
    return Code(*activation.topk(min(n_latents, values.shape[1]), dim=1))
