"""Panels of the report of a demo: the top samples of its first autoencoder, and the two ends of its directions."""

from collections.abc import Callable

from diffprobe.demo.types import Outcome
from diffprobe.evaluation import direction_panels as directions
from diffprobe.evaluation.latent_panels import latent_section
from diffprobe.report.pages.panels import DirectionPanel, LatentSection


def latent_panels(outcome: Outcome) -> LatentSection | None:
    """Select latents of the demo's autoencoder on the training split and describe them on the test split.

    Returns: None if the demo trains no autoencoder.
    Raises: EmptyClass if no latent is active often enough.
    """
    runs = [run for run in outcome.probe_runs() if run.result.kind == "sae" and run.control == "none"]
    return latent_section(runs[0], outcome.demo.config.panels) if runs else None


def direction_panels(outcome: Outcome, *, leave_out: Callable[[str], None] | None = None) -> tuple[DirectionPanel, ...]:
    """Describe each direction on the test split: AUROC of every estimator with interval and controls, ends, histogram.

    Args:
        leave_out: takes a sentence for each direction that the test samples are too few for; None raises.
    Raises: EmptyClass, ConfigError for too few test samples of a pole or too few groups.
    """
    return directions.direction_panels(outcome.probe_runs(), outcome.demo.config.panels, leave_out=leave_out)
