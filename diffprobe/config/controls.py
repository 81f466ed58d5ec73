"""The controls that are runs of their own: their order in the ladder, and what they have in common."""

from typing import Literal

LADDER = ("raw_pixels", "vae_latents", "random_weights", "text_encoder")
"""Rungs below the denoiser itself, the simplest first: the same probe, fitted and tuned alike, on other features."""
ONE_CELL = ("raw_pixels", "vae_latents", "text_encoder")
"""Controls whose features have one cell of their own, whatever cells the run reads; it is a control of all of them."""
ALL_RUNGS = "ladder"
"""Value of `control` on the command line for the run itself and every rung that applies to it."""
EXPOSED_PART: dict[str, Literal["vae", "text_encoder"]] = {"vae_latents": "vae", "text_encoder": "text_encoder"}
"""Control -> the part of the checkpoint that it reads alone (`backbone.part`)."""


def has_one_cell(control: str | None) -> bool:
    """Return whether a control has a cell of its own, so that the cells of the run do not apply.

    >>> has_one_cell("vae_latents"), has_one_cell("random_weights")
    (True, False)
    """
    return control in ONE_CELL
