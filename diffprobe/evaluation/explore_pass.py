"""The first pass of the explorer over the images of a split: sums and top images of all latents, and their maps.

Memory grows with latents x (top images + values of labels), never with images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.activity import ActivitySums
from diffprobe.analysis.top_samples import TopSamples
from diffprobe.evaluation.explore_codes import ImageCodes
from diffprobe.evaluation.explore_runs import ExploredRun
from diffprobe.evaluation.latent_codes import CLASS
from diffprobe.report.explorer.records import ActivationMap


class LatentPass:
    """Sums and top images over a stream of codes.

    Args:
        n_latents: number of latents.
        labels: name of each label ("class", or an attribute) -> names of its values.
        timesteps: timesteps that the autoencoder reads.
        n_top: top images per latent.
    """

    def __init__(
        self, n_latents: int, labels: dict[str, tuple[str, ...]], timesteps: Sequence[int], n_top: int
    ) -> None:
        self.labels = labels
        self.sums = ActivitySums(n_latents, {name: len(values) for name, values in labels.items()}, timesteps)
        self.top = TopSamples(n_latents, n_top)

    def update(self, codes: ImageCodes) -> None:
        """Add a batch of images."""
        labels = {name: codes.labels(name) for name in self.labels}
        self.sums.update(codes.code.values, codes.code.indices, labels, codes.captions)
        for number, (values, indices) in enumerate(codes.by_timestep()):
            self.sums.update_rows(number, values, indices)
        self.top.update(codes.code.values, codes.code.indices, codes.keys)

    def read(self, stream: Iterable[ImageCodes]) -> None:
        """Add all batches of a stream."""
        for codes in stream:
            self.update(codes)

    def merge(self, other: "LatentPass") -> None:
        """Add what another process found on other images. Raises: ConfigError for other latents or labels."""
        self.sums.merge(other.sums)
        self.top.merge(other.top)


@dataclass(frozen=True, kw_only=True)
class FoundImage:
    """A top image of a latent."""

    image: int
    """Number of the image in the split."""
    activation: float
    map: ActivationMap | None
    """None where features have no map."""
    labels: tuple[int, ...]
    """Value of each label, in the order of the pass; -1 for none."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PassResult:
    """What the pages of latents need from the images."""

    sums: ActivitySums
    labels: dict[str, tuple[str, ...]]
    """Name of each label that is shown -> names of its values."""
    left_out: dict[str, int]
    """Labels with too many values -> number of their values."""
    top: list[list[FoundImage]]
    """Top images of each latent, the most active first."""

    def top_labels(self, name: str, n_top: int) -> NDArray[np.int64]:
        """Return the values of one label of the top images, (latents, n_top), -1 for none."""
        place = list(self.labels).index(name)
        found = np.full((len(self.top), n_top), -1, dtype=np.int64)
        for latent, images in enumerate(self.top):
            known = [image.labels[place] for image in images if image.labels[place] >= 0]
            found[latent, : len(known)] = known
        return found


def shown_labels(run: ExploredRun, max_values: int) -> tuple[dict[str, tuple[str, ...]], dict[str, int]]:
    """Return the labels whose values are few enough to be summed, and the number of values of the others."""
    known = {CLASS: run.features.classes, **run.features.attributes}
    known = {name: tuple(values) for name, values in known.items() if values}
    return (
        {name: values for name, values in known.items() if len(values) <= max_values},
        {name: len(values) for name, values in known.items() if len(values) > max_values},
    )


def new_pass(run: ExploredRun, n_top: int, max_values: int) -> tuple[LatentPass, dict[str, int]]:
    """Return a pass over the images of a run that has read none, and the labels that it leaves out."""
    labels, left_out = shown_labels(run, max_values)
    timesteps = [int(cell.partition("@t")[2].partition(":")[0]) for cell in run.cells]
    return LatentPass(run.sae.n_latents, labels, timesteps, n_top), left_out


def locate(found: LatentPass, stream: Iterable[ImageCodes]) -> list[list[FoundImage]]:
    """Return the top images of each latent with their numbers, labels and maps, in one more pass.

    Held: one map per latent and top image.
    """
    return joined([located(found, stream)])


def joined(parts: Sequence[list[list[FoundImage | None]]]) -> list[list[FoundImage]]:
    """Return the top images of each latent from what each part of the split has of them."""
    return [
        [image for same in zip(*images, strict=True) for image in same if image is not None]
        for images in zip(*parts, strict=True)
    ]


def located(found: LatentPass, stream: Iterable[ImageCodes]) -> list[list[FoundImage | None]]:
    """Return the top images of each latent that are in a part of the split, in order; None for the others."""
    samples = found.top.result()
    wanted: dict[str, list[tuple[int, int]]] = {}
    for latent, images in enumerate(samples):
        for place, sample in enumerate(images):
            wanted.setdefault(sample.key, []).append((latent, place))
    top: list[list[FoundImage | None]] = [[None] * len(images) for images in samples]
    for codes in stream:
        labels = [codes.labels(name).tolist() for name in found.labels]
        for i, key in enumerate(codes.keys):
            places = wanted.get(key)
            if places is None:
                continue
            maps = maps_of(codes, i, [latent for latent, _ in places], found.sums.maximum)
            values = tuple(label[i] for label in labels)
            for (latent, place), shown in zip(places, maps, strict=True):
                top[latent][place] = FoundImage(
                    image=codes.first + i, activation=samples[latent][place].activation, map=shown, labels=values
                )  # fmt: skip
    return top


def maps_of(
    codes: ImageCodes, image: int, latents: Sequence[int], maximum: NDArray[np.float64]
) -> list[ActivationMap | None]:
    """Return the maps of some latents on an image of a batch; None for each where features have no map."""
    if codes.rows.map_size is None or not latents:
        return [None] * len(latents)
    height, width = codes.rows.map_size
    values = codes.maps(image, latents) / np.maximum(maximum[list(latents)], 1e-30)[:, None, None]
    scaled = np.ceil(np.clip(values, 0.0, 1.0) * 255).astype(np.uint8)  # an active place is never 0
    return [ActivationMap(height=height, width=width, values=one.tobytes()) for one in scaled]
