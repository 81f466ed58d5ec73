"""Steer a generative model of the world along directions, and read the factors of what it generates."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, EmptyClass, WeightsMismatch
from diffprobe.evaluation.certificates.settings import in_unit_range

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.analysis.certification.check import Check
    from diffprobe.analysis.certification.steering import SteeredReadings
    from diffprobe.backbones.cell import Cell
    from diffprobe.shards.scenes.spec import WorldSpec

_AT_ONCE = 64
"""Images that are read at once."""


@dataclass(frozen=True, kw_only=True)
class SteeringSettings:
    """Settings of the effect of steering. None but `generator` has an effect without it."""

    generator: str | None = None
    """Generative model that is steered: the folder of a text-to-image model of the world, or the name of a
    shipped one. None leaves the effect of steering out."""
    reader: str | None = None
    """Folder of the attribute reader, or of runs of `experiment=scenes/train_reader`."""
    strengths: tuple[float, ...] = (-4.0, -2.0, 0.0, 2.0, 4.0)
    """Strengths, in standard deviations of the pairs' coordinate along the direction."""
    window: tuple[int, int] | None = None
    """Smallest and largest timestep at which the direction is added; None for all."""
    n_images: int = 96
    """Images per strength: prompts that state one role each, all roles equally often."""
    n_random_steered: int = 19
    """Random directions of equal norm; p is at least one over one more."""
    sampling_steps: int = 20
    """Sampling steps: DDIM, or Euler for a flow model."""
    guidance: float = 0.0
    """Added to the scale of classifier-free guidance: 0 is none. The direction is added on the pass with the prompt."""
    least_dose: float = 0.8
    """Least rank correlation of strength and the rate of the positive value."""
    least_effect: float = 0.2
    """Least difference of this rate between both ends."""
    most_collateral: float = 0.5
    """Largest share of images whose reading of another factor changes, for each of them."""

    def check_steering(self) -> None:
        """Check the settings. Raises: ConfigError for one out of range, or one without an effect."""
        if self.generator is None:
            changed = [one.name for one in fields(SteeringSettings) if getattr(self, one.name) != one.default]
            if changed:
                raise ConfigError(
                    f"without generator, {', '.join(changed)} has no effect." if len(changed) == 1 else
                    f"without generator, {', '.join(changed)} have no effect.",
                    fix="generator=FOLDER, a text-to-image model of the world",
                )  # fmt: skip
            return
        if self.reader is None:
            raise ConfigError(
                f"generator={self.generator} is given, but no reader of its images.",
                fix="reader=FOLDER, trained by: diffprobe train experiment=scenes/train_reader",
            )
        from diffprobe.analysis.certification.steering import check_strengths

        check_strengths(self.strengths)
        at_least(8, n_images=self.n_images)
        at_least(19, n_random_steered=self.n_random_steered)
        at_least(1, sampling_steps=self.sampling_steps)
        at_least(0, guidance=self.guidance)
        in_unit_range(least_effect=self.least_effect, most_collateral=self.most_collateral)
        if not -1 <= self.least_dose <= 1:
            raise ConfigError(f"least_dose={self.least_dose} is out of range: -1 to 1.")
        if self.window is not None and not 0 <= self.window[0] <= self.window[1]:
            raise ConfigError(
                f"window=[{self.window[0]},{self.window[1]}] is not a window of timesteps.",
                "allowed: [smallest,largest], from 0",
            )


class SteeredGenerator:
    """A model of the world that is steered at the tap of one cell, and the reader of its images.

    Args:
        spec: of the world.
        settings: with `generator` and `reader`.
        cell: of the direction: its tap is steered, with its pooling.
        seed: seed of the noise.

    Attributes:
        prompts: prompt of each image, which states the role alone.
        facts: what was opened, for the certificate.

    Raises: WeightsMismatch for a model that takes no prompts, or whose images the reader does not take;
        UnknownTap for a tap that it lacks; ConfigError for a tap or pooling that cannot be replaced; errors of
        `load_reader`.
    """

    def __init__(self, spec: "WorldSpec", settings: SteeringSettings, cell: "Cell", *, seed: int) -> None:
        from diffprobe.backbones.intervention import Splice
        from diffprobe.evaluation.steered_model import SteeredModel, plan_steered
        from diffprobe.generative.scene_reader import load_reader
        from diffprobe.runs.provenance import checkpoint_digest

        assert settings.generator is not None and settings.reader is not None
        model = settings.generator
        Splice(cell.pool)
        self._reader = load_reader(settings.reader, spec)
        planned = plan_steered(model, cell, fix="generator=FOLDER of a text-to-image model of the world")
        plan = planned.plan
        if plan.resolution != self._reader.resolution:
            raise WeightsMismatch(
                f"generator '{model}' draws images of {plan.resolution} pixels, the reader reads "
                f"{self._reader.resolution}.",
                fix="train a reader with data.resolution of the model",
            )
        self._cell, (self.width,) = cell, set(plan.widths.values())
        texts = prompts_of_roles(spec)
        names = [role.name for role in spec.roles]
        rows = range(settings.n_images)
        self.prompts = [texts[row % len(texts)] for row in rows]
        keys = [f"{names[row % len(names)]}-{row // len(names):04d}" for row in rows]
        self._model = SteeredModel(
            planned, cell, self.prompts, keys, sampling_steps=settings.sampling_steps, guidance=settings.guidance,
            seed=seed, window=settings.window, edits_unconditional=False,
        )  # fmt: skip
        self.facts = {
            "generator": f"{model}, digest {checkpoint_digest(model)[:12]}", "reader": settings.reader,
            "steered images": f"{settings.n_images} per strength, {len(set(self.prompts))} prompts",
        }  # fmt: skip

    def read(self, vector: NDArray[np.float64], strengths: Sequence[float]) -> "SteeredReadings":
        """Generate at each strength, and read all factors.

        Args:
            vector: what strength 1 adds, (d_in,).
            strengths: see `SteeredReadings`.

        Raises: ConfigError for a vector of another width, or a window without a sampling step; NonFinite.
        """
        import torch

        from diffprobe.analysis.certification.steering import SteeredReadings
        from diffprobe.scoring.edits.direction import AddVector

        if len(vector) != self.width:
            raise ConfigError(
                f"the direction has {len(vector)} numbers; the features of '{self._cell.name}' in the generator have "
                f"{self.width}.",
                fix="a generator with the network of the backbone",
            )
        found = [
            self._codes(latents) for latents in self._model.latents(AddVector(torch.from_numpy(vector)), strengths)
        ]
        return SteeredReadings(
            strengths=tuple(strengths), codes={name: np.stack([one[name] for one in found]) for name in found[0]}
        )

    def _codes(self, latents: "Tensor") -> dict[str, NDArray[np.int64]]:
        parts: dict[str, list[NDArray[np.int64]]] = {}
        for chunk in latents.split(_AT_ONCE):
            for name, probabilities in self._reader.read(self._model.images(chunk).numpy()).items():
                parts.setdefault(name, []).append(probabilities.argmax(1).astype(np.int64))
        return {name: np.concatenate(values) for name, values in parts.items()}


def prompts_of_roles(spec: "WorldSpec") -> list[str]:
    """Return for each role the caption that states it and nothing else.

    Raises: EmptyClass if no rule of the world states the role alone.
    """
    from diffprobe.shards.scenes.captions import write

    chosen = [set(rule.factors) == {"role"} for rule in spec.rules]
    if not any(chosen):
        raise EmptyClass("no caption rule of the world states the role alone, so there are no prompts for steering.")
    return [write(spec, {"role": role.name}, chosen) for role in spec.roles]


def steering_effects(
    generator: SteeredGenerator, vector: NDArray[np.float64], coordinates: NDArray[np.float64],
    settings: SteeringSettings, *, factor: str, value: int, alpha: float, level: float, n_resamples: int, seed: int,
) -> "tuple[tuple[Check, ...], tuple[Check, ...]]":  # fmt: skip
    """Measure the effect of steering along a direction, and along a random one of equal norm.

    Args:
        vector: the direction, of any norm but 0.
        coordinates: of the pairs' members along the unit vector; their standard deviation is strength 1.
        factor, value: the direction's factor, and the code of its positive value.

    Returns: the checks of the direction, and those of a random direction. Both are compared with further random ones.
    Raises: EmptyClass if the coordinate does not vary; errors of `SteeredGenerator.read`.
    """
    from diffprobe.analysis.certification.steering import SteeringRules, steering_checks
    from diffprobe.core.progress import ProgressDisplay
    from diffprobe.core.rng import derive_seed

    spread = float(coordinates.std())
    if not spread > 0:
        raise EmptyClass("the coordinate of the pairs does not vary along the direction, so it has no strength.")
    rules = SteeringRules(
        least_dose=settings.least_dose, least_effect=settings.least_effect, most_collateral=settings.most_collateral,
        alpha=alpha, level=level, n_resamples=n_resamples, seed=seed,
    )  # fmt: skip
    drawn = np.random.default_rng(derive_seed("random_steering", seed)).standard_normal(
        (settings.n_random_steered + 1, len(vector))
    )
    first, *rest = (spread * row / np.linalg.norm(row) for row in drawn)
    strengths = settings.strengths
    with (
        ProgressDisplay(transient=True) as progress,
        progress.bar(2 + len(rest), "directions: steering", unit="directions", keep=False) as bar,
    ):
        own = generator.read(spread * vector / np.linalg.norm(vector), strengths)
        bar.update(1)
        wrong = generator.read(first, strengths)
        bar.update(1)
        random = []
        for one in rest:
            random.append(generator.read(one, (strengths[0], 0.0, strengths[-1])))
            bar.update(1)
    checks = (
        steering_checks(one, random, generator.prompts, rules, factor=factor, value=value) for one in (own, wrong)
    )
    of_own, of_wrong = checks
    return of_own, of_wrong
