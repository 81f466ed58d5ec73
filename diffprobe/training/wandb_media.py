"""Tables, heat maps and pages of a finished run as media of W&B. What they show is decided in `runs/run_media.py`."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wandb import Run

Value = str | int | float | None
"""What a cell of a table holds."""


@dataclass(frozen=True, kw_only=True)
class MediaTable:
    """A table of plain values."""

    columns: tuple[str, ...]
    """Names of the columns."""
    rows: Sequence[Sequence[Value]]
    """The rows, each with one value per column; None is missing."""


@dataclass(frozen=True, kw_only=True)
class Media:
    """What a run shows in W&B besides curves and numbers."""

    tables: Mapping[str, MediaTable] = field(default_factory=dict)
    """Name -> table."""
    figures: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> PNG file."""
    pages: Mapping[str, str] = field(default_factory=dict)
    """Name -> HTML document."""


def log_media(run: "Run", media: Media) -> None:
    """Log all media in one row: "table/NAME", "figure/NAME" and "page/NAME". Offline, their files wait with the run."""
    import wandb
    from PIL import Image

    row: dict[str, object] = {}
    for name, table in media.tables.items():
        row[f"table/{name}"] = wandb.Table(columns=list(table.columns), data=[list(values) for values in table.rows])
    for name, png in media.figures.items():
        row[f"figure/{name}"] = wandb.Image(Image.open(io.BytesIO(png)), caption=name)
    for name, html in media.pages.items():
        row[f"page/{name}"] = wandb.Html(html, inject=False)
    if row:
        run.log(row)
