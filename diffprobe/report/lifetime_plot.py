"""The heat map of lifetimes: latents, sorted by their peak, by timestep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffprobe.core.errors import ConfigError
from diffprobe.report.figure import COLOUR_MAP, figure_class

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


def lifetime_plot(
    strength: "Float[NDArray[np.float64], 'latents timesteps']", timesteps: Sequence[int], *, title: str = ""
) -> "Figure":
    """Draw the strength of latents by timestep, each in units of its own peak; sampling runs from left to right.

    Args:
        strength: of the latents in the order in which they are drawn, from the top, with a positive largest value each.
        timesteps: timesteps in ascending order; drawn are the largest first.
        title: text above the map.

    Raises: ConfigError without a latent.
    """
    if not len(strength):
        raise ConfigError("no latent has a lifetime, so there is nothing to draw.")
    shown = (strength / strength.max(axis=1, keepdims=True))[:, ::-1]
    figure = figure_class()(figsize=(1.9 + 0.55 * len(timesteps), 5.2), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, aspect="auto", interpolation="nearest", cmap=COLOUR_MAP, vmin=0, vmax=1)
    axes.set_xticks(range(len(timesteps)), [str(timestep) for timestep in reversed(timesteps)])
    axes.set_xlabel("timestep, from noise to image")
    axes.set_ylabel(f"{len(strength):,} latents, by the timestep of their peak")
    axes.set_yticks([])
    if title:
        axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="strength, share of the latent's peak")
    return figure
