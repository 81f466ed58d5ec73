"""The panels of a report page as plain data: the input of `report/pages/page.py`.

`evaluation/latent_panels.py` and `evaluation/direction_panels.py` fill them from runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite
from diffprobe.core.result import MetricRecord


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image with caption, key and value."""

    data: bytes
    """An encoded PNG, WebP, JPEG or GIF."""
    caption: str
    """Caption of the sample; it is escaped."""
    key: str = ""
    """Key of the sample."""
    value: float | None = None
    """Activation or projection of this sample."""
    place: str = ""
    """Where in the image the value was found, if it is of one place; the picture has a frame there."""


@dataclass(frozen=True, kw_only=True)
class LatentPanel:
    """One latent: its most active samples and its statistics (fields as in `analysis/latent_selection.py`)."""

    latent: int
    """Index of the latent."""
    pictures: tuple[Picture, ...]
    """Its most active samples, strongest first."""
    n_active: int
    """Samples on which it is active."""
    density: float
    """n_active over all samples, 0..1."""
    mean_activation: float
    """Mean over the samples on which it is active."""
    max_activation: float
    """Largest activation."""
    label_entropy: float | None
    """Entropy of the labels of its active samples, in bits; None without an active labelled sample."""
    chance_entropy: float = 0.0
    """Mean entropy of the labels of an equal number of random samples, of as many groups, in bits."""
    chance_entropy_sd: float = 0.0
    """Standard deviation of that entropy, in bits."""
    top_label: str = ""
    """Most frequent label among its active samples."""
    top_label_share: float = 0.0
    """Share of that label, 0..1."""
    n_groups: int | None = None
    """Groups of its active labelled samples; None where samples have no groups."""


@dataclass(frozen=True, kw_only=True)
class LatentSection:
    """The displayed latents of one autoencoder."""

    panels: tuple[LatentPanel, ...]
    """The latents, in order."""
    rule: str = ""
    """How they were chosen."""
    cell: str = ""
    """Cells on whose features the autoencoder was trained."""
    n_classes: int = 0
    """Number of classes of the label behind the entropies; 0 if unknown."""
    name: str = ""
    """Name of the autoencoder, where a page shows several."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How well one estimator's direction separates the poles on held-out samples."""

    estimator: str
    """"mean_difference", "ridge", "logistic"."""
    auroc: float
    """Held-out area under the ROC curve, 0..1; 0.5 is chance."""
    n: int
    """Held-out samples."""
    interval: tuple[float, float] | None = None
    """Bootstrap interval of the AUROC, if computed."""
    random_mean: float | None = None
    """Mean AUROC of random directions."""
    random_sd: float | None = None
    """Standard deviation of the AUROC of random directions."""
    shuffled: float | None = None
    """AUROC of the same estimator fitted to shuffled labels."""
    random_weights: float | None = None
    """AUROC of the same estimator in the same cell of the network with random weights."""
    raw_pixels: float | None = None
    """AUROC of the same estimator on the raw pixels."""

    @property
    def strongest_control(self) -> tuple[str, float] | None:
        """The control with the largest AUROC and its value; None if none was measured."""
        controls = {
            "random directions": self.random_mean,
            "shuffled labels": self.shuffled,
            "random weights": self.random_weights,
            "raw pixels": self.raw_pixels,
        }
        measured = [(name, value) for name, value in controls.items() if value is not None]
        return max(measured, key=lambda control: control[1], default=None)

    @property
    def below_control(self) -> bool:
        """Whether the AUROC fails to beat the strongest control; False if none was measured."""
        control = self.strongest_control
        return control is not None and self.auroc <= control[1]

    @classmethod
    def from_record(cls, record: MetricRecord) -> "Estimate":
        """Build an estimate from the record of a result.

        Optional controls: `random_direction`, `shuffled_labels`, `random_weights`, `raw_pixels`. Optional detail:
        `interval` = [low, high], `control_spread` = {"random_direction": sd}.
        """
        interval = record.detail.get("interval")
        return cls(
            estimator=record.probe or record.name,
            auroc=record.value,
            n=record.n,
            interval=(float(interval[0]), float(interval[1])) if interval else None,
            random_mean=record.controls.get("random_direction"),
            random_sd=record.detail.get("control_spread", {}).get("random_direction"),
            shuffled=record.controls.get("shuffled_labels"),
            random_weights=record.controls.get("random_weights"),
            raw_pixels=record.controls.get("raw_pixels"),
        )


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts of projections by class, over common bins."""

    edges: tuple[float, ...]
    """n_bins + 1 ascending edges, in the unit of the projection."""
    counts: dict[str, tuple[int, ...]]
    """Class name -> count per bin."""

    def __post_init__(self) -> None:
        wrong = [name for name, counts in self.counts.items() if len(counts) != len(self.edges) - 1]
        if wrong or not self.counts or list(self.edges) != sorted(self.edges):
            raise ConfigError(f"histogram: {len(self.edges)} ascending edges do not fit the counts of {wrong}.")


@dataclass(frozen=True, kw_only=True)
class DirectionPanel:
    """One direction: its estimates, the samples at both ends, the projections of both classes."""

    target: str
    """Attribute of the direction, for example "style"."""
    positive: str
    """Value at the positive pole."""
    negative: str
    """Value at the negative pole."""
    cell: str
    """Cell of the features."""
    estimates: tuple[Estimate, ...]
    """One per estimator."""
    shown: str
    """Estimator whose ends and projections are shown."""
    positive_end: tuple[Picture, ...]
    """Held-out samples with the largest projections, most extreme first."""
    negative_end: tuple[Picture, ...]
    """Held-out samples with the smallest projections, most extreme first."""
    histogram: Histogram | None = None
    """Held-out projections by class, with the keys `positive` and `negative`."""
    note: str = ""
    """Note below the direction."""
    source: str = ""
    """What its features were read from, where a page shows several backbones or data sets."""

    def __post_init__(self) -> None:
        if self.histogram is not None and set(self.histogram.counts) != {self.positive, self.negative}:
            raise ConfigError(
                f"direction '{self.target}': the histogram has the classes {sorted(self.histogram.counts)}.",
                f"expected: {self.positive}, {self.negative}",
            )


def make_histogram(values: Mapping[str, Sequence[float]], n_bins: int = 36) -> Histogram:
    """Count projections by class over equal bins from the smallest to the largest value.

    Raises: EmptyClass if a class has no value, NonFinite on NaN or infinity.

    >>> make_histogram({"a": [0.0, 1.0], "b": [4.0]}, n_bins=2)
    Histogram(edges=(0.0, 2.0, 4.0), counts={'a': (2, 0), 'b': (0, 1)})
    """
    empty = [name for name, numbers in values.items() if len(numbers) == 0]
    if empty or not values:
        raise EmptyClass(f"histogram: no values of class {', '.join(map(repr, empty)) or '(none given)'}.")
    everything = [float(number) for numbers in values.values() for number in numbers]
    if any(number != number or abs(number) == float("inf") for number in everything):
        raise NonFinite("histogram: the projections contain NaN or infinity.")
    low, high = min(everything), max(everything)
    if high == low:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / n_bins
    counts = {}
    for name, numbers in values.items():
        bins = [0] * n_bins
        for number in numbers:
            bins[min(int((float(number) - low) / width), n_bins - 1)] += 1
        counts[name] = tuple(bins)
    return Histogram(edges=tuple(low + i * width for i in range(n_bins + 1)), counts=counts)
