"""Steer sampling: add a direction to the map of one tap during a window of timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.intervention import Splice
from diffprobe.core.errors import ConfigError
from diffprobe.scoring.intervention_network import Change, put_features
from diffprobe.scoring.sampling import PromptSampler


@dataclass(frozen=True, kw_only=True, eq=False)
class Steering:
    """A direction and where it is added.

    The features of the tap are read with the pooling of the direction, moved along it, and put back (`Splice`): with
    `mean` and with `none` the vector is added at every place of the map, with `gridK` the part of the vector that
    belongs to a place.

    Attributes:
        tap: module path.
        pool: pooling of the features that the direction is for.
        vector: what strength 1 adds, in the unit of the features.
        window: first and last timestep at which it is added, both included, as (smallest, largest); None for all.

    Raises: ConfigError for `max`, or a window whose ends are in the wrong order.
    """

    tap: str
    pool: str
    vector: Float[Tensor, " d_in"]
    window: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        Splice(self.pool)
        if self.window is not None and self.window[0] > self.window[1]:
            raise ConfigError(f"window={list(self.window)}: the smallest timestep comes first.")

    def band(self, steps: Sequence[int]) -> tuple[int, ...]:
        """Return the sampling steps within the window. Raises: ConfigError if there is none."""
        if self.window is None:
            return tuple(steps)
        low, high = self.window
        found = tuple(step for step in steps if low <= step <= high)
        if not found:
            raise ConfigError(
                f"no sampling step is within window=[{low},{high}].", f"steps: {', '.join(map(str, steps))}"
            )
        return found

    def change(self, strength: float) -> Change:
        """Return what replaces the map of the tap: the same map, moved by `strength` times the vector."""
        step = strength * self.vector.double()
        return put_features(Splice(self.pool), lambda before: (before.double() + step.to(before.device)).float())


def steered_latents(
    sampler: PromptSampler, steering: Steering, strength: float
) -> Float[Tensor, "sample channels height width"]:
    """Sample with a direction added; the same prompts and noise for every strength and direction.

    Whether it is added on both passes of guidance is a property of the sampler (`edits_unconditional`).

    Returns: finished latents, on the CPU; at strength 0 those of the untouched run.
    Raises: NonFinite; ConfigError for a window without a step, a tap that cannot be replaced, or a vector of another
        width than the features.
    """
    band = steering.band(sampler.steps)
    if strength == 0:
        return sampler.untouched[-1]
    return sampler.sample(steering.tap, band, lambda step: steering.change(strength))
