"""The report page: one self-contained HTML file, rendered from a `Page` by `render_page`.

All text is escaped and images are inlined; the page contains no script, and its content policy forbids all requests.
Markup and style are in `report/templates/`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from diffprobe.core.errors import RunFailed
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.core.terminal import printable
from diffprobe.metrics import described
from diffprobe.report.data_uri import data_uri
from diffprobe.report.entry import ComparisonText, EntryStyle, format_control, format_entry
from diffprobe.report.figure import control_levels, render_heat_map
from diffprobe.report.filled_table import Entry, TableData, TableRow
from diffprobe.report.footnotes import over_what, table_notes
from diffprobe.report.mark_notes import BELOW_CONTROL
from diffprobe.report.pages.panels import DirectionPanel, LatentPanel, LatentSection
from diffprobe.report.pages.svg import bar_share, draw_histogram
from diffprobe.report.table_data import differences_from_control, fill_table
from diffprobe.report.table_spec import TableSpec


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of a report page: plain data. Empty parts are left out of the page."""

    title: str
    """Heading of the page."""
    lead: str
    """One or two sentences: which model and data, and what was done."""
    facts: tuple[tuple[str, str], ...]
    """Name -> value pairs of provenance, in order: backbone, data, digests, samples per split, subset rule."""
    results: tuple[RunResult, ...]
    """All runs of the report: the source of its tables, and of the SAE metrics (runs of kind "sae")."""
    tables: tuple[TableSpec, ...] = ()
    """Specs of the tables to show (`report/table_spec.py`)."""
    filled: tuple[TableData, ...] = ()
    """These tables as they are filled with what kept predictions show; empty to fill them from the results alone."""
    latents: tuple[LatentSection, ...] = ()
    """The latents to show of each autoencoder, in order."""
    names: dict[str, str] = field(default_factory=dict)
    """Name of a run -> how the page calls it, where it shows several of one kind."""
    directions: tuple[DirectionPanel, ...] = ()
    """Directions to show, in order."""
    limits: tuple[str, ...] = ()
    """Further sentences on the limits of this report."""
    next_steps: tuple[str, ...] = ()
    """Commands to run next."""


def render_page(page: Page) -> str:
    """Render a page as one self-contained HTML document.

    Returns: the HTML, identical for the same page.
    Raises: see `fill_table`; ConfigError for an image of unknown type.
    """
    environment = Environment(
        loader=PackageLoader("diffprobe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters.update(uri=data_uri, sig=_significant, whole="{:,}".format, words=_spaced)
    tables = list(page.filled) or [fill_table(page.results, spec) for spec in page.tables]
    return environment.get_template("report.html.j2").render(
        page=page,
        tables=[_table_view(table) for table in tables],
        headlines=[line for table in tables for line in _headlines(table)],
        saes=_sae_views(page.results),
        comparison=_comparison(page),
        latents=[_section_view(section) for section in page.latents],
        directions=[_direction_view(panel) for panel in page.directions],
    )


def _shown(value: object) -> object:
    """Show control characters of a text as text; browsers obey those that reverse the order of letters."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def _table_view(table: TableData) -> dict[str, Any]:
    spec = table.spec
    blocks = []
    for value, rows in table.blocks():
        label = spec.rows[0].label(value) if value is not None else spec.title
        cell = partial(_cell_view, table, table.best(rows))
        blocks.append(
            {
                "label": label,
                "alt": _describe(table, rows, label),
                "figure": Markup(render_heat_map(table, rows).decode()),  # matplotlib escapes its text
                "rows": [
                    {
                        "labels": table.row_labels(row),
                        "cells": [cell(entry) for entry in row.entries],
                        "controls": [format_control(table, value) for value in row.controls],
                    }
                    for row in rows
                ],
            }
        )
    return {
        "spec": spec,
        "caption": " ".join(spec.caption.split()),
        "heads": [axis.title or axis.field for axis in table.inner_axes],
        "columns": [spec.columns.label(value) for value in table.columns],
        "controls": [control.title for control in spec.controls],
        "blocks": blocks,
        "notes": table_notes(table).lines,
    }


def _cell_view(table: TableData, best: float | None, entry: Entry) -> dict[str, Any]:
    number, spec = table.spec.number, table.spec
    titles = {control.name: control.title for control in spec.controls}
    controls = ", ".join(f"{titles.get(name, name)} {number.show(value)}" for name, value in entry.controls.items())
    return {
        "text": format_entry(table, entry, best=best, style=_HTML),
        "missing": entry.value is None,
        "hint": f"controls of this entry: {controls}{_tests_in_words(table, entry)}" if controls else "",
    }


def _tests_in_words(table: TableData, entry: Entry) -> str:
    if entry.tests is None:
        return ""
    show, text = table.spec.number.show, ""
    found = entry.tests.strongest(higher_is_better=table.spec.higher_is_better)
    if found is not None:
        ends = f"[{show(found.low)}, {show(found.high)}]"
        text += f"; difference from {_spaced(found.control)} {show(found.value, signed=True)} {ends}"
    null = entry.tests.null
    return text if null is None else f"{text}; adjusted p {null.p_adjusted:.2g}"


def _html_comparison(found: ComparisonText) -> Markup:
    outside = ", outside tolerance" if found.is_within is False else ""
    return Markup(' <span class="spread" title="{}">(published {}{})</span>').format(
        found.note, found.published, outside
    )


_HTML = EntryStyle(
    escape=escape,
    bold=lambda text: Markup("<strong>{}</strong>").format(text),
    spread=lambda text: Markup(' <span class="spread">± {}</span>').format(text),
    below_control=" ‡",
    injected=" †",
    comparison=_html_comparison,
)
"""Markup of a table cell; texts are escaped."""


def _describe(table: TableData, rows: Sequence[TableRow], label: str) -> str:
    """Describe a heat map in words, as its text alternative."""
    show = table.spec.number.show
    lines = [
        f"{', '.join(table.row_labels(entry_row))}: "
        + ", ".join(table.spec.missing if e.value is None else show(e.value) for e in entry_row.entries)
        for entry_row in rows
    ]
    controls = ", ".join(f"{level.title} up to {show(level.high)}" for level in control_levels(table, rows))
    return f"Heat map, {label}. " + "; ".join(lines) + (f". Controls: {controls}." if controls else ".")


def _headlines(table: TableData) -> list[dict[str, Any]]:
    """Return the best entry of each block with the strongest control of the same entry.

    Of cells that were chosen on val, it is their score on test.
    """
    spec, lines = table.spec, []
    unit = f" {spec.number.unit}" if spec.number.unit else ""
    for name, entry, how in _best_entries(table):
        if entry is None or entry.value is None:
            continue
        axes = (*table.inner_axes, spec.columns)
        place = ", ".join(axis.label(entry.where[axis.field]).replace(" ", "\N{NO-BREAK SPACE}") for axis in axes)
        pick = max if spec.higher_is_better else min
        titles = {control.name: control.title for control in spec.controls}
        strongest = pick(entry.compared, key=lambda name: entry.controls[name]) if entry.compared else None
        if strongest is None:
            control = "no control measured"
        else:
            value_text = f"{spec.number.show(entry.controls[strongest])}{unit}"
            control = f"strongest control {value_text} ({titles.get(strongest, strongest)})"
        lines.append(
            {
                "name": name,
                "value": spec.number.show(entry.value) + unit,
                "below": table.beats_controls(entry) is False,
                "place": f"{how} {_spaced(spec.metric)}{over_what(spec, [entry])}, at {place}",
                "control": control,
            }
        )
    return lines


def _best_entries(table: TableData) -> list[tuple[str, Entry | None, str]]:
    """Return name, entry and the word for how it was found: of each choice on val, else of each block."""
    spec = table.spec
    if spec.select == "val":
        return [(one.of or spec.title, one.test, "chosen on val; on test") for one in table.chosen]
    found = []
    for value, rows in table.blocks():
        best = table.best(rows)
        entry = next((e for row in rows for e in row.entries if e.value is not None and e.value == best), None)
        how = "best (exploratory)" if spec.is_exploratory else "best"
        found.append((spec.rows[0].label(value) if value is not None else spec.title, entry, how))
    return found


def _sae_views(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    views, metrics = [], described()
    for run in results:
        if run.kind != "sae" or run.config.get("control", "none") not in ("none", None):
            continue
        control_runs = [
            other
            for other in results
            if other.kind == "sae"
            and other.config.get("control") == "random_weights"
            and not differences_from_control("random_weights", run, other)
        ]
        rows = [
            {
                "record": record,
                "control": _sae_control(record, control_runs),
                "help": metrics[record.name].help if record.name in metrics else "",
            }
            for record in run.metrics
        ]
        views.append({"run": run, "rows": rows, "cells": sorted({m.cell for m in run.metrics if m.cell})})
    return views


def _sae_control(record: MetricRecord, control_runs: Sequence[RunResult]) -> float | None:
    if "random_weights" in record.controls:
        return record.controls["random_weights"]
    same = (record.name, record.split, record.cell, record.probe)
    found = [m.value for run in control_runs for m in run.metrics if (m.name, m.split, m.cell, m.probe) == same]
    if len(set(found)) > 1:
        raise RunFailed(f"SAE metric '{record.name}': the random-weights runs disagree.", f"values: {found}")
    return found[0] if found else None


def _comparison(page: Page) -> dict[str, Any] | None:
    """Return the metrics of several autoencoders side by side: a column for each; None for one or none."""
    views = _sae_views(page.results)
    if len(views) < 2:
        return None
    keys = dict.fromkeys((row["record"].name, row["record"].split) for view in views for row in view["rows"])
    rows = []
    for name, split in keys:
        found = [
            [row for row in view["rows"] if (row["record"].name, row["record"].split) == (name, split)]
            for view in views
        ]
        text = next((row["help"] for cells in found for row in cells if row["help"]), "")
        rows.append({"name": name, "split": split, "cells": found, "help": text})
    cells = {tuple(view["cells"]) for view in views}
    return {"views": views, "rows": rows, "cells": cells.pop() if len(cells) == 1 else None}


def _section_view(section: LatentSection) -> dict[str, Any]:
    return {"section": section, "latents": [_latent_view(latent, section.n_classes) for latent in section.panels]}


def _latent_view(latent: LatentPanel, n_classes: int) -> dict[str, Any]:
    entropy = latent.label_entropy or 0.0
    maximum = math.log2(n_classes) if n_classes > 1 else max(latent.chance_entropy, entropy)
    return {
        "panel": latent,
        "entropy": bar_share(entropy, maximum),
        "chance": bar_share(latent.chance_entropy, maximum),
        "pictures": latent.pictures,
    }


def _direction_view(panel: DirectionPanel) -> dict[str, Any]:
    return {
        "panel": panel,
        "histogram": None if panel.histogram is None else draw_histogram(panel.histogram),
        "below_note": BELOW_CONTROL if any(e.below_control for e in panel.estimates) else "",
        "has_networks": any(e.random_weights is not None or e.raw_pixels is not None for e in panel.estimates),
    }


def _significant(value: float | None, digits: int = 3) -> str:
    """Format a number with few significant digits, without an exponent for ordinary magnitudes.

    >>> _significant(0.012345), _significant(1234.5), _significant(None)
    ('0.0123', '1,234', '')
    """
    if value is None:
        return ""
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    if float(value).is_integer() or abs(value) < 1e-4:
        return f"{value:.{digits}g}"
    return f"{value:#.{digits}g}".rstrip(".")


def _spaced(name: str) -> str:
    """Replace the underscores of a name by spaces.

    >>> _spaced("mean_difference")
    'mean difference'
    """
    return name.replace("_", " ")
