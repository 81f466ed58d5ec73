"""The dashboard page: the runs of a folder in one table with their curves, one HTML file that opens without a server.

The page sorts and searches by a script of its own, whose digest is the only one that its content policy allows.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffprobe.core.terminal import printable
from diffprobe.metrics.headline import headline, place_text
from diffprobe.report.curves import Curve, thinned
from diffprobe.report.pages.line_svg import LineChart, draw_lines
from diffprobe.report.run_index import IndexedRun
from diffprobe.report.run_selection import Difference, compare_runs, record_name

MAX_COMPARED = 12
"""Most runs whose curves and settings are shown beside each other: more colours are hard to distinguish."""


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """The content of the page."""

    title: str
    """Heading, for example the folder."""
    runs: tuple[IndexedRun, ...]
    """The runs, in the order of the table."""
    curves: Mapping[str, Sequence[Curve]]
    """Path of a run -> its curves."""
    metric: str | None = None
    """Metric of the table's score column; None takes the first of each run."""
    unreadable: Mapping[str, str]
    """Result files that could not be read -> the reason."""


def render_dashboard(page: Dashboard) -> str:
    """Render the page. Returns: one HTML document, identical for the same content; every text is escaped."""
    environment = Environment(
        loader=PackageLoader("diffprobe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    assert environment.loader is not None
    script = environment.loader.get_source(environment, "dashboard.js")[0].strip()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    compared = page.runs[:MAX_COMPARED]
    found = compare_runs(compared) if len(compared) > 1 else None
    return environment.get_template("dashboard.html.j2").render(
        page=page,
        script=Markup(script),  # ours, without anything of the runs
        digest=digest,
        rows=[_row(run, page.metric, i if i < MAX_COMPARED else None) for i, run in enumerate(page.runs)],
        charts=_charts([page.curves.get(run.path, ()) for run in compared]),
        compared=compared,
        settings=[_difference(entry) for entry in found.settings] if found else [],
        details=[{"run": run, "records": [(record_name(r), r) for r in run.result.metrics]} for run in compared],
        max_compared=MAX_COMPARED,
    )


def _row(run: IndexedRun, metric: str | None, colour: int | None) -> dict[str, Any]:
    result = run.result
    record = headline(result, metric)
    return {
        "path": run.path,
        "kind": result.kind,
        "experiment": result.experiment,
        "started": result.started.replace("T", " ")[:16],
        "seconds": result.wall_time_s,
        "score": record,
        "place": "" if record is None else place_text(record),
        "n_metrics": len(result.metrics),
        "colour": colour,
    }


def _difference(entry: Difference) -> dict[str, Any]:
    return {"name": entry.name, "values": ["" if value is None else str(value) for value in entry.values]}


def _charts(curves: Sequence[Sequence[Curve]]) -> list[LineChart]:
    """Draw one chart per logged name, with a line per run that has it."""
    by_name: dict[str, dict[int, tuple[Sequence[int], Sequence[float]]]] = {}
    for number, of_run in enumerate(curves):
        for curve in of_run:
            if curve.steps:
                thin = thinned(curve)
                by_name.setdefault(curve.name, {})[number] = (thin.steps, thin.values)
    return [draw_lines(name, series) for name, series in sorted(by_name.items())]


def _shown(value: object) -> object:
    return type(value)(printable(value)) if isinstance(value, str) else value
