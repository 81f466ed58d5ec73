"""How often and how strongly each latent is active, overall, by label and by timestep: sums over a stream of codes.

Sums can be merged over processes. Memory grows with the number of latents, of labels and of timesteps, never with the
number of images.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.analysis.latents.growing_histogram import GrowingHistograms
from diffprobe.core.errors import ConfigError, NonFinite

_STEP = 2.0**24
"""Activations are rounded to 1 / _STEP before they are summed. Sums up to 2**29 are then exact, and depend
on neither the order of images nor their split over processes. Features are scaled, so activations are of order 1."""


class ActivitySums:
    """Activity of latents on images.

    Args:
        n_latents: number of latents of the code.
        labels: name of each label (the class, an attribute) -> number of its values.
        timesteps: timesteps of the rows of an image.
        n_bins: bins of the histograms, see `GrowingHistograms`.
    """

    def __init__(
        self, n_latents: int, labels: Mapping[str, int], timesteps: Sequence[int], *, n_bins: int = 32
    ) -> None:
        if n_latents < 1 or not all(n > 0 for n in labels.values()):
            raise ConfigError(f"activity: n_latents={n_latents}, values of labels={dict(labels)}; allowed: at least 1.")
        self.n_latents, self.timesteps = n_latents, tuple(timesteps)
        self.n_images = 0
        self.n_captions = 0
        """Images with a caption."""
        self.n_active = np.zeros(n_latents, dtype=np.int64)
        """Images on which each latent is active."""
        self.total = np.zeros(n_latents)
        """Sum of its activations over images, (n_latents,)."""
        self.maximum = np.zeros(n_latents)
        """Its largest activation."""
        self.histograms = GrowingHistograms(n_latents, n_bins)
        """Its positive activations on images."""
        self.by_label = {name: LabelActivity(n_latents, n) for name, n in labels.items()}
        self.n_rows = np.zeros(len(self.timesteps), dtype=np.int64)
        """Rows of each timestep."""
        self.row_active = np.zeros((n_latents, len(self.timesteps)), dtype=np.int64)
        """Rows of each timestep on which each latent is active."""
        self.row_total = np.zeros((n_latents, len(self.timesteps)))
        """Sum of its activations over these rows."""

    def update(
        self,
        values: Float[Tensor, "batch k"],
        indices: Int[Tensor, "batch k"],
        labels: Mapping[str, Int[Tensor, " batch"]],
        captions: Sequence[str] = (),
    ) -> None:
        """Add a batch of codes of images.

        Args:
            values: activation of each listed latent; one that is not positive is not active.
            indices: number of each listed latent; no active latent twice in a row.
            labels: value of each label of each image, -1 for none.
            captions: caption of each image, "" for none; () where none are known.

        Raises: ConfigError for other shapes or labels, NonFinite.
        """
        if values.ndim != 2 or values.shape != indices.shape or set(labels) != set(self.by_label):
            raise ConfigError(
                "a batch of codes needs values and indices of one shape [batch, k] and the labels of the sums.",
                f"values: {tuple(values.shape)}  indices: {tuple(indices.shape)}  labels: {sorted(labels)}, "
                f"expected: {sorted(self.by_label)}",
            )
        row, latent, value = _active(values, indices, self.n_latents)
        self.n_images += len(values)
        self.n_captions += sum(bool(caption) for caption in captions)
        np.add.at(self.n_active, latent, 1)
        np.add.at(self.total, latent, _rounded(value))
        np.maximum.at(self.maximum, latent, value)
        self.histograms.update(latent, value)
        for name, sums in self.by_label.items():
            sums.add(row, latent, _rounded(value), labels[name].cpu().numpy())

    def update_rows(self, timestep: int, values: Float[Tensor, "rows k"], indices: Int[Tensor, "rows k"]) -> None:
        """Add the codes of single rows (images, or places of images) of one timestep.

        Args:
            timestep: index into `timesteps`.
            values, indices: as in `update`.
        """
        _, latent, value = _active(values, indices, self.n_latents)
        self.n_rows[timestep] += len(values)
        np.add.at(self.row_active[:, timestep], latent, 1)
        np.add.at(self.row_total[:, timestep], latent, _rounded(value))

    def merge(self, other: "ActivitySums") -> None:
        """Add the sums of other images. Raises: ConfigError for other latents, labels or timesteps."""
        mine, theirs = (
            (one.n_latents, one.timesteps, {name: sums.n_values for name, sums in one.by_label.items()})
            for one in (self, other)
        )
        if mine != theirs:
            raise ConfigError("activities of different latents, labels or timesteps cannot be merged.",
                              f"{theirs} and {mine}")  # fmt: skip
        self.n_images += other.n_images
        self.n_captions += other.n_captions
        self.n_active += other.n_active
        self.total += other.total
        np.maximum(self.maximum, other.maximum, out=self.maximum)
        self.histograms.merge(other.histograms)
        for name, sums in self.by_label.items():
            sums.merge(other.by_label[name])
        self.n_rows += other.n_rows
        self.row_active += other.row_active
        self.row_total += other.row_total


class LabelActivity:
    """Activity of latents among the images of each value of one label.

    Args:
        n_latents: number of latents.
        n_values: number of values of the label.
    """

    def __init__(self, n_latents: int, n_values: int) -> None:
        self.n_values = n_values
        self.n_images = np.zeros(n_values, dtype=np.int64)
        """Images of each value."""
        self.n_active = np.zeros((n_latents, n_values), dtype=np.int64)
        """Images of each value on which each latent is active."""
        self.total = np.zeros((n_latents, n_values))
        """Sum of its activations over these images."""

    def add(
        self,
        row: NDArray[np.int64],
        latent: NDArray[np.int64],
        value: NDArray[np.float64],
        label: NDArray[np.int64],
    ) -> None:
        """Add activations: image, latent and value of each, and the label of each image, -1 for none."""
        np.add.at(self.n_images, label[label >= 0], 1)
        owner = label[row]
        known = owner >= 0
        np.add.at(self.n_active, (latent[known], owner[known]), 1)
        np.add.at(self.total, (latent[known], owner[known]), value[known])

    def merge(self, other: "LabelActivity") -> None:
        """Add the sums of other images."""
        self.n_images += other.n_images
        self.n_active += other.n_active
        self.total += other.total


def _rounded(value: NDArray[np.float64]) -> NDArray[np.float64]:
    rounded: NDArray[np.float64] = np.round(value * _STEP) / _STEP
    return rounded


def _active(
    values: Tensor, indices: Tensor, n_latents: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return row, latent and value of each positive activation. Raises: NonFinite, ConfigError for other latents."""
    activation = values.detach().to("cpu").double().numpy()
    if not np.isfinite(activation).all():
        raise NonFinite("the code of an image contains NaN or infinity.")
    row, column = np.nonzero(activation > 0)
    latent = indices.cpu().numpy()[row, column].astype(np.int64)
    if len(latent) and not (0 <= latent.min() and latent.max() < n_latents):
        raise ConfigError(f"latents {latent.min()}..{latent.max()} in a code; allowed: 0..{n_latents - 1}.")
    return row.astype(np.int64), latent, activation[row, column]
