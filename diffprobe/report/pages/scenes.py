"""The page of the demo of `scenes`: the world, samples of both twins, and planted against generated rates.

One self-contained HTML file without a script; all text is escaped and all images are inlined.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffprobe.core.terminal import printable
from diffprobe.report.data_uri import data_uri
from diffprobe.report.pages.panels import Picture
from diffprobe.report.pages.rate_dots import RateDot, draw_rates


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A small table of texts, for the terminal and the page."""

    heads: tuple[str, ...]
    """Head of each column."""
    rows: tuple[tuple[str, ...], ...]
    """Cells of each row, the first of which names it."""


@dataclass(frozen=True, kw_only=True)
class WorldRow:
    """One row of the contact sheet."""

    heading: str
    """What varies along it; lines are kept."""
    pictures: tuple[Picture, ...]
    """Its images, with their labels as captions."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Images of one model for one prompt."""

    pictures: tuple[Picture, ...]
    """In the order of their seeds."""
    note: str
    """What is read of them and what was planted."""


@dataclass(frozen=True, kw_only=True)
class PromptRow:
    """Images of all models for one prompt, from the same noise."""

    prompt: str
    samples: tuple[Samples, ...]
    """One per model, in the order of `ScenesPage.models`."""


@dataclass(frozen=True, kw_only=True)
class ModelRates:
    """The rates of one model."""

    model: str
    world: str
    """The world that it was trained on."""
    dots: tuple[RateDot, ...]
    """One per role; `other` is the rate in the world of its sibling."""


@dataclass(frozen=True, kw_only=True)
class ScenesPage:
    """The content of the page."""

    title: str
    lead: str
    models: tuple[str, ...]
    """Names of the models, in order."""
    world: tuple[WorldRow, ...]
    """The contact sheet."""
    prompts: tuple[PromptRow, ...]
    """The samples."""
    sampling: str
    """How they were sampled."""
    rates: tuple[ModelRates, ...]
    """One per model."""
    n_per_role: int
    """Images per role and model behind the rates."""
    comparison: TextTable
    """Measures against own and sibling's rates."""
    qualities: TextTable
    """What else is measured of each model."""
    notes: tuple[str, ...] = ()
    """Sentences below the tables."""
    tiles: tuple[tuple[str, str, str], ...] = ()
    """Name, value and place of the numbers at the top."""
    limits: tuple[str, ...] = ()
    """Sentences on the limits."""
    facts: tuple[tuple[str, str], ...] = ()
    """Name -> value pairs of provenance."""
    next_steps: tuple[str, ...] = ()
    """Commands to run next."""


def render_scenes_page(page: ScenesPage) -> str:
    """Render the page. Returns: one HTML document, identical for the same content.

    Raises: ConfigError for an image of unknown type, or groups that `draw_rates` refuses.
    """
    environment = Environment(
        loader=PackageLoader("diffprobe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters.update(uri=data_uri, rate="{:.2f}".format)
    return environment.get_template("scenes.html.j2").render(
        page=page,
        drawings=[(one, draw_rates(one.dots), _described(one.dots)) for one in page.rates],
        n_columns=max((len(row.pictures) for row in page.world), default=1),
        n_samples=max((len(one.pictures) for row in page.prompts for one in row.samples), default=1),
    )


def _described(dots: Sequence[RateDot]) -> str:
    """Describe a dot plot in words, as its text alternative."""
    lines = [
        f"{dot.group}: planted {dot.planted:.2f}, generated {dot.measured:.2f} "
        f"({dot.interval[0]:.2f} to {dot.interval[1]:.2f})"
        for dot in sorted(dots, key=lambda dot: -dot.planted)
    ]
    return "Rates by role. " + "; ".join(lines) + "."


def _shown(value: object) -> object:
    """Show control characters of a text as text; browsers obey those that reverse the order of letters."""
    return type(value)(printable(value)) if isinstance(value, str) else value
