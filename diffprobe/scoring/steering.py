"""Steer sampling: edit the features of one tap during a window of timesteps, at several strengths."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.intervention import Splice
from diffprobe.core.errors import ConfigError
from diffprobe.scoring.edits.base import Edit
from diffprobe.scoring.intervention_network import Change, put_features
from diffprobe.scoring.sampling import PromptSampler


@dataclass(frozen=True, kw_only=True, eq=False)
class Steering:
    """An edit and where it acts.

    The features of the tap are read with the pooling that the edit is for, edited, and put back (`Splice`): with `none`
    each place is edited by itself; with `mean` the change of the mean is added at every place of the map, with `gridK`
    that of a part at the places of the part.

    Attributes:
        tap: module path.
        pool: pooling of the features that the edit is for.
        edit: what is done; `diffprobe.scoring.edits` has the kinds.
        window: first and last timestep at which it acts, both included, as (smallest, largest); None for all.

    Raises: ConfigError for `max`, or a window whose ends are in the wrong order.
    """

    tap: str
    pool: str
    edit: Edit
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
        """Return what replaces the map of the tap: the same map, edited at a strength."""
        return put_features(Splice(self.pool), lambda before: self.edit(before, strength))


def steered_latents(
    sampler: PromptSampler, steering: Steering, strength: float
) -> Float[Tensor, "sample channels height width"]:
    """Sample with an edit; the same prompts and noise for every strength and edit.

    Whether it acts on both passes of guidance is a property of the sampler (`edits_unconditional`).

    Returns: finished latents, on the CPU; at strength 0 those of the untouched run.
    Raises: NonFinite; ConfigError for a window without a step, a tap that cannot be replaced, or an edit of another
        width than the features.
    """
    band = steering.band(sampler.steps)
    if strength == 0:
        return sampler.untouched[-1]
    return sampler.sample(steering.tap, band, lambda step: steering.change(strength))
