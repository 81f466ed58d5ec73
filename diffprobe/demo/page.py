"""The report page of a demo, and its facts: model, images, features and seeds."""

from collections.abc import Sequence

from diffprobe.core.errors import EmptyClass
from diffprobe.demo.types import Demo, Outcome
from diffprobe.evaluation.run_facts import machine_facts, run_facts
from diffprobe.report.pages.page import Page
from diffprobe.report.pages.panels import DirectionPanel


def make_page(outcome: Outcome, directions: tuple[DirectionPanel, ...], left_out: Sequence[str] = ()) -> Page:
    """Build the content of the page. What the data are too few for is left out, and its limits say so.

    Args:
        directions: the directions to show.
        left_out: sentences on what is not shown.
    Raises: see `demo/panels.py`.
    """
    from diffprobe.demo.panels import latent_panels

    config, latents = outcome.demo.config, None
    try:
        latents = latent_panels(outcome)
    except EmptyClass as error:
        left_out = [*left_out, f"No latents are shown: {error.what}"]
    stores = ("stores", ", ".join(path.name for path in outcome.store_paths))
    return Page(
        title=config.title,
        lead=" ".join(config.lead.split()),
        facts=(*demo_facts(outcome.demo), stores, *machine_facts(outcome.results)),
        results=outcome.all_results,
        tables=tuple(table.spec for table in outcome.on_page),
        filled=outcome.on_page,
        latents=(latents,) if latents else (),
        directions=directions,
        limits=(*config.limits, *outcome.demo.left_out, *left_out),
        next_steps=config.next_steps,
    )


def demo_facts(demo: Demo) -> tuple[tuple[str, str], ...]:
    """Return backbone, images, cells, noise and seeds of the demo's first run. No weights are loaded.

    Raises: WeightsMissing, UnknownTap and other errors of opening the backbone.
    """
    return run_facts(demo.runs[0])
