"""Sample latents with a tap ablated or patched during a band of timesteps; the rest of the run is untouched.

The sampler is deterministic (DDIM; for flows Euler, which is the same step), so two runs from the same noise differ by
the intervention alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.base import ConditionInput
from diffprobe.backbones.noise import NoiseSchedule, PredictionKind
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.shapes import FeatureMap
from diffprobe.scoring.edits.text import EditedText
from diffprobe.scoring.intervention_network import Change, InterventionNetwork, keep_in, put_from
from diffprobe.scoring.noise_sets import stack_noise

ChangeAt = Callable[[int], Change]
"""Returns what replaces the map of a tap at a timestep."""


def sampling_timesteps(n_steps: int, n_timesteps: int) -> tuple[int, ...]:
    """Return evenly spaced timesteps, the noisiest first; the first is the last one of the grid.

    Raises: ConfigError for more steps than timesteps.
    Source: "trailing" spacing, Lin et al., 2305.08891, table 2.

    >>> sampling_timesteps(4, 1000)
    (999, 749, 499, 249)
    """
    if not 1 <= n_steps <= n_timesteps:
        raise ConfigError(f"sampling_steps={n_steps} is out of range: 1 to {n_timesteps}, the timesteps of the grid.")
    return tuple(round((i + 1) * n_timesteps / n_steps) - 1 for i in reversed(range(n_steps)))


def bands(steps: Sequence[int], timesteps: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Assign each sampling step to the nearest of some timesteps (of two, the smaller): timestep -> its steps.

    Raises: ConfigError for a timestep without a step.

    >>> bands((999, 749, 499, 249), (200, 800))
    {200: (499, 249), 800: (999, 749)}
    """
    found: dict[int, list[int]] = {t: [] for t in timesteps}
    for step in steps:
        found[min(timesteps, key=lambda t: (abs(t - step), t))].append(step)
    empty = [t for t, band in found.items() if not band]
    if empty:
        raise ConfigError(
            f"no sampling step is nearest to {', '.join(f't={t}' for t in empty)}.",
            f"steps: {', '.join(map(str, steps))}",
            fix="more sampling_steps, or fewer features.timesteps",
        )
    return {t: tuple(band) for t, band in found.items()}


def denoised(
    kind: PredictionKind, predicted: Tensor, x_t: Tensor, t: int, schedule: NoiseSchedule
) -> tuple[Tensor, Tensor]:
    """Return the clean latents and the noise that a prediction stands for: x_t = signal[t] clean + noise[t] noise."""
    signal, noise = float(schedule.signal[t]), float(schedule.noise[t])
    if kind == "epsilon":
        return (x_t - noise * predicted) / signal, predicted
    if kind == "v":
        return signal * x_t - noise * predicted, noise * x_t + signal * predicted
    if kind == "flow":
        return x_t - noise * predicted, x_t + signal * predicted
    return predicted, (x_t - signal * predicted) / noise


@dataclass(frozen=True)
class PromptSampler:
    """Samples one latent per prompt.

    Args:
        network: the backbone.
        inputs: the prompt (or class) of each sample; a prompt may have its embedding edited.
        keys: with `seed`, they fix the noise that a sample starts from.
        steps: timesteps, the noisiest first.
        guidance: scale of classifier-free guidance; 1 is none, and needs half the passes.
        seed: seed of the noise.
        edits_unconditional: whether an intervention acts on the unconditional pass of guidance, too.
    """

    network: InterventionNetwork
    inputs: Sequence[ConditionInput | EditedText]
    keys: Sequence[str]
    steps: tuple[int, ...]
    guidance: float
    seed: int
    edits_unconditional: bool = True

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def untouched(self) -> list[Float[Tensor, "sample c h w"]]:
        """The latents before each step, and the finished ones last; on the CPU."""
        return self._run({})

    def sample(self, tap: str, band: Sequence[int], change: ChangeAt) -> Float[Tensor, "sample c h w"]:
        """Return finished latents, on the CPU, with the map of a tap replaced at the steps of a band.

        Args:
            change: what replaces the map at a step.
        Raises: NonFinite; ConfigError for a tap that cannot be replaced.
        """
        return self._run({step: _Edit(tap, change(step), None) for step in band})[-1]

    def patched(self, tap: str, band: Sequence[int], donors: Sequence[int]) -> Float[Tensor, "sample c h w"]:
        """Return finished latents with the map of a tap replaced by that of another sample of the untouched run.

        Args:
            donors: position of the donor of each sample.
        Raises: as `sample`.
        """
        at = dict(zip(self.steps, self.untouched, strict=False))
        return self._run({step: _Edit(tap, None, (at[step], donors)) for step in band})[-1]

    @torch.no_grad()
    def _run(self, edits: "Mapping[int, _Edit]") -> list[Tensor]:
        """Sample, and return the latents before each step and after the last."""
        network, schedule = self.network, self.network.plan.schedule
        shape = network.plan.spec.latent_shape
        found = [stack_noise(self.seed, [f"generated:{key}" for key in self.keys], 0, shape)]
        for t, after in zip(self.steps, [*self.steps[1:], None], strict=True):
            new = []
            for chunk in torch.arange(len(self)).split(network.rows):
                rows = chunk.tolist()
                x_t = found[-1][rows].to(network.device)
                predicted = self._guided(rows, x_t, t, edits.get(t))
                clean, noise = denoised(network.target, predicted, x_t, t, schedule)
                if after is not None:
                    clean = float(schedule.signal[after]) * clean + float(schedule.noise[after]) * noise
                new.append(clean.cpu())
            found.append(torch.cat(new))
        finite = torch.isfinite(found[-1]).flatten(1).all(1)
        if not finite.all():
            key = self.keys[int((~finite).nonzero()[0])]
            raise NonFinite(f"the latents generated for sample '{key}' are not finite numbers.")
        return found

    def _guided(self, rows: list[int], x_t: Tensor, t: int, edit: "_Edit | None") -> Tensor:
        """Return the guided prediction; an intervention acts on the branch with the text, and as set on the other."""
        given = self._branch(self.inputs, rows, x_t, t, edit)
        if self.guidance == 1:
            return given
        without = self._branch([""] * len(self), rows, x_t, t, edit if self.edits_unconditional else None)
        return without + self.guidance * (given - without)

    def _branch(
        self, inputs: Sequence[ConditionInput | EditedText], rows: list[int], x_t: Tensor, t: int, edit: "_Edit | None"
    ) -> Tensor:
        network, here = self.network, [inputs[row] for row in rows]
        if edit is None:
            return network.predict(x_t, t, here)
        change = edit.change or self._donated(inputs, rows, t, edit)
        return network.predict(x_t, t, here, {edit.tap: change})

    def _donated(self, inputs: Sequence[ConditionInput | EditedText], rows: list[int], t: int, edit: "_Edit") -> Change:
        """Run the donors, and return a change that puts their maps in."""
        assert edit.source is not None
        latents, donors = edit.source
        chosen = [donors[row] for row in rows]
        kept: list[FeatureMap] = []
        self.network.predict(latents[chosen], t, [inputs[row] for row in chosen], {edit.tap: keep_in(kept)})
        return put_from(kept, edit.tap)


@dataclass(frozen=True)
class _Edit:
    """What replaces the map of a tap at one step: a change, or the maps of donors (their latents, and which)."""

    tap: str
    change: Change | None
    source: tuple[Tensor, Sequence[int]] | None
