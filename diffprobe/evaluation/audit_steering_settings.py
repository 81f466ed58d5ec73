"""The block `steering` of an audit: whether moving along the directions moves what a reader perceives in images."""

from dataclasses import dataclass, field

from diffprobe.analysis.certification.steering import check_strengths
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, unknown

BRANCHES = ("text", "both")


@dataclass(frozen=True, kw_only=True)
class AuditSteering:
    """Settings of the steering of an audit: images of some subjects, with the direction of each axis added."""

    generator: str
    """Text-to-image model that is steered, the one whose latents the audit reads: a folder, or the name of a
    shipped model."""
    reader: str | None = None
    """Reader of images of the world of `scenes`: `scenes-reader`, or the folder of a finished run of kind
    `train_reader`."""
    confusion: str | None = None
    """Result of `diffprobe eval rates` with this reader, whose labels of generated images give its confusion; None for
    rendered images of the world."""
    labelled: str | None = None
    """Data set with attributes, instead of `reader`: a classifier of clean latents is fitted to its training images,
    and its confusion is that on the test images."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Axis -> attribute (or factor) that the reader perceives; its values have to include the words of the axis. Empty:
    every axis, with its own name (spaces as underscores)."""
    strengths: tuple[float, ...] = (-4.0, -2.0, 0.0, 2.0, 4.0)
    """Strengths, in standard deviations of the prompts of subjects without an attribute along the direction; 0 is one
    of them."""
    n_subjects: int = 10
    """Subjects that are drawn, evenly spaced in the list; all if there are fewer."""
    n_templates: int = 1
    """Templates that they are put into, the first ones."""
    seeds: int = 4
    """Images per prompt and strength; all strengths and directions start from the same noise."""
    n_random: int = 5
    """Random directions of equal norm that are steered, too."""
    window: tuple[int, int] | None = None
    """Smallest and largest timestep at which the direction is added; None for all."""
    branch: str = "text"
    """Pass of guidance on which it is added: "text", or "both"."""
    guidance: float = 0.0
    """Added to the scale of classifier-free guidance: 0 is none (scale 1 in diffusers)."""
    sampling_steps: int = 20
    """Sampling steps: DDIM, or Euler for a flow model."""
    shown: int = 4
    """Images of each strength on the page."""
    neighbours: int = 5
    """Nearest prompts whose mean distance is that of a generated image from them."""

    def __post_init__(self) -> None:
        if (self.reader is None) == (self.labelled is None):
            raise ConfigError(
                f"steering: reader={self.reader} with labelled={self.labelled}; one of both reads the images.",
                fix="steering.reader=scenes-reader, or steering.labelled=DATA_SET with the attributes of the axes",
            )
        if self.confusion is not None and self.reader is None:
            raise ConfigError("steering.confusion has no effect without steering.reader.",
                              "a classifier fitted to labelled images is validated on its test split")  # fmt: skip
        check_strengths(self.strengths)
        at_least(1, n_templates=self.n_templates, seeds=self.seeds, n_random=self.n_random)
        at_least(1, sampling_steps=self.sampling_steps, shown=self.shown, neighbours=self.neighbours)
        at_least(2, n_subjects=self.n_subjects)
        at_least(0, guidance=self.guidance)
        if self.branch not in BRANCHES:
            raise unknown("steering.branch", self.branch, BRANCHES)
        if self.branch == "both" and self.guidance == 0:
            raise ConfigError("steering.branch=both has no effect without guidance: there is one pass.",
                              fix="steering.guidance=2")  # fmt: skip
        if self.window is not None and not 0 <= self.window[0] <= self.window[1]:
            raise ConfigError(f"steering.window={list(self.window)}: needed is [smallest,largest], from 0.")

    def attribute_of(self, axis: str) -> str | None:
        """Return the attribute that the reader perceives of an axis; None for an axis that is not steered.

        >>> AuditSteering(generator="m", labelled="d").attribute_of("skin tone")
        'skin_tone'
        """
        return self.attributes.get(axis) if self.attributes else axis.replace(" ", "_")

    def n_images(self, n_subjects: int, n_templates: int) -> int:
        """Return the images per strength and direction, of an audit with so many subjects and templates."""
        return min(self.n_subjects, n_subjects) * min(self.n_templates, n_templates) * self.seeds

    def n_passes(self, n_subjects: int, n_templates: int, n_axes: int) -> int:
        """Return the rows that go through the denoiser, without those of reading labelled or finished images."""
        directions = n_axes * (1 + self.n_random) * (len(self.strengths) - 1)
        branches = 2 if self.guidance > 0 else 1
        return self.n_images(n_subjects, n_templates) * (1 + directions) * self.sampling_steps * branches


def evenly_spaced(n: int, wanted: int) -> list[int]:
    """Return the numbers of up to `wanted` of n entries, evenly spaced, the first one among them.

    >>> evenly_spaced(10, 4), evenly_spaced(2, 5)
    ([0, 2, 5, 7], [0, 1])
    """
    kept = min(n, wanted)
    return [i * n // kept for i in range(kept)]
