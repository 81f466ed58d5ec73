"""What the explorer shows, as records: `evaluation` fills them, and the writer of this package turns them into files.

Records of latents and images come one at a time, in order, so neither side holds all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number per latent, by which the table of latents can be sorted and filtered."""

    key: str
    """Unique name, as of a variable: `frequency`."""
    title: str
    """Head of the column."""
    help: str
    """What the number is, on which split it was measured, and its unit: a sentence or two."""
    values: Sequence[float | None]
    """One value per latent; None where it cannot be measured (a latent that is never active)."""
    kind: Literal["number", "share", "count", "p"] = "number"
    """How it is written: as a number, in per cent, as an integer, or as a p or q."""
    controls: Sequence[tuple[str, float]] = ()
    """Controls of the same number, as name and value: the median of raw neurons, of a random dictionary."""


@dataclass(frozen=True, kw_only=True)
class TextColumn:
    """One text per latent, by which the table of latents can be searched, sorted and filtered."""

    key: str
    """Unique name among all columns."""
    title: str
    """Head of the column."""
    help: str
    """What the text is."""
    values: Sequence[str]
    """One text per latent, "" for none."""
    beside: str = ""
    """Key of the number before which it is shown; "" for before all numbers."""


@dataclass(frozen=True, kw_only=True)
class Name:
    """A candidate name of a latent, with its test on held-out images."""

    text: str
    score: float
    """How much oftener images with the word activate the latent, on the training split: a log odds ratio."""
    auroc: float | None
    """How well the word predicts the latent's activity on held-out images; None if no held-out image has the word."""
    q: float | None
    """Benjamini-Hochberg over all latents and words tested; None without a test."""
    shown: bool
    """Whether the test was passed, so that the latent has this name."""


@dataclass(frozen=True, kw_only=True)
class ActivationMap:
    """Activation of one latent over the places of one image."""

    height: int
    width: int
    values: bytes
    """height x width bytes, row by row, from 0 (inactive) to 255 (the latent's largest shown activation)."""


@dataclass(frozen=True, kw_only=True)
class TopImage:
    """An image on which a latent is active."""

    image: int
    """Index of the image in the explorer's order."""
    activation: float
    map: ActivationMap | None = None
    """None where the features are pooled over places."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """Activity of a latent among the images of one class or attribute value."""

    value: str
    n_images: int
    n_active: int
    mean_activation: float
    """Mean over all n_images, 0 where inactive."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """Activity of a latent by class or by the values of one attribute."""

    group: str
    """Name of the attribute, or "class"."""
    bars: Sequence[Bar]


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """Activity of a latent at one timestep."""

    timestep: int
    frequency: float
    """Share of the rows (images, or places of images) on which it is active."""
    mean_activation: float
    """Mean over the rows on which it is active."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """Another latent and the cosine of both decoder vectors."""

    latent: int
    cosine: float
    run: str = ""
    """Name of the other run, where the latent is one of another run; "" for the same one."""


@dataclass(frozen=True, kw_only=True)
class LatentPage:
    """What the page of one latent shows."""

    latent: int
    names: Sequence[Name]
    """Best first; none without captions."""
    top: Sequence[TopImage]
    """Most active first; none for a latent that is never active."""
    histogram: Sequence[int]
    """Counts of positive activations in equal bins from 0 to `histogram_end`."""
    histogram_end: float
    groups: Sequence[Bars]
    curve: Sequence[CurvePoint]
    """By timestep; one point for a run of one timestep."""
    neighbours: Sequence[Neighbour]
    """Nearest latents of the same dictionary, largest absolute cosine first."""
    recurrence: Sequence[Neighbour]
    """The matched latent in each other seed of the run; none if there is one seed."""


@dataclass(frozen=True, kw_only=True)
class ActiveLatent:
    """A latent that is active on an image."""

    latent: int
    activation: float
    map: ActivationMap | None = None


@dataclass(frozen=True, kw_only=True)
class ImagePage:
    """What the page of one image shows."""

    key: str
    caption: str
    """"" without a caption. Text of the data set: it may hold anything."""
    label: str
    """Name of the class; "" without one."""
    attributes: Sequence[tuple[str, str]]
    latents: Sequence[ActiveLatent]
    """Most active first."""
    thumbnail: bytes | None
    """An encoded PNG or JPEG; None where images are not at hand."""


@dataclass(frozen=True, kw_only=True)
class ExplorerFacts:
    """Facts of one run that the explorer prints above its table."""

    run: str
    """Name of the run on the page."""
    experiment: str
    model: str
    """Name of the diffusion model."""
    data: str
    """Name of the data set and of the split that is shown."""
    cells: Sequence[str]
    n_latents: int
    k: int
    n_images: int
    notes: Sequence[str]
    """Sentences on how the numbers were made, and what is missing and why."""


@dataclass(frozen=True, kw_only=True)
class LatentMatch:
    """The most similar latent of another run."""

    latent: int
    """Latent of the first run."""
    other: int
    """Latent of the second run."""
    similarity: float
    """Cosine of decoder vectors if both read the same cell, else correlation of activations on shared images."""
