"""The page of an audit: one self-contained HTML file without a script, all text escaped."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.core.terminal import printable
from diffprobe.report.audit_table import SubjectRow, interval_text, subject_rows
from diffprobe.report.pages.audit_steering import steering_views
from diffprobe.report.pages.audit_svg import Row, draw_dots, draw_scatter


def render_audit(result: RunResult, *, images: Mapping[str, bytes] | None = None) -> str:
    """Render the page of a result of kind "audit".

    Args:
        images: steered axis -> PNG file of its images by strength; without it, the page has no images.

    Returns: the HTML, identical for the same result.
    """
    environment = Environment(
        loader=PackageLoader("diffprobe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters.update(
        number=_number, share=_share, interval=lambda pair: interval_text(*(pair or (None, None)))
    )
    rows = subject_rows(result)
    summary = result.metrics[0]
    return environment.get_template("audit.html.j2").render(
        result=result,
        title=result.experiment,
        summary=summary,
        about=summary.detail,
        facts=_facts(result),
        axes=[_axis_view(result, name, [row for row in rows if row.axis == name]) for name in summary.detail["axes"]],
        cells=_cell_view(result),
        intersections=_intersection_views(result, rows),
        images=_image_view(result, rows),
        clusters=_named(result, "silhouette"),
        steering=steering_views(result, images or {}),
    )  # fmt: skip


def _facts(result: RunResult) -> list[tuple[str, str]]:
    about = result.metrics[0].detail
    config = result.config
    return [
        ("templates", f"{about['n_templates']}"),
        ("seeds per prompt", f"{about['n_seeds']}"),
        ("subjects", f"{len(config['subjects'])}"),
        ("cell", about["cells"][0]),
        ("contexts of directions", f"{len(config['neutral'])} neutral subjects" if config["neutral"]
         else "the subjects"),
        ("intervals", f"{about['level']:.0%}, templates and seeds resampled ({config['n_resamples']:,} resamples)"),
        ("discoveries", f"{result.metrics[0].value:.0f} of {result.metrics[0].n}: q of the "
                        f"{' or '.join(dict.fromkeys(about['tested'].values()))} at most {about['fdr']:g}, and an "
                        "interval without 0"),
        ("reference", f"{about['reference']}; compared: rates of {about['rates_of']}" if about["rates_of"] else "none"),
    ]  # fmt: skip


def _axis_view(result: RunResult, name: str, rows: Sequence[SubjectRow]) -> dict[str, Any]:
    about = result.metrics[0].detail
    direction = _named(result, "direction_length", name)
    separability = _named(result, "separability", name)
    first = rows[0]
    plots = [{
        "heading": "Association", "note": "cosine of the centred prompt latent with the direction; the line is the "
        "average subject", "plot": draw_dots([_row(row, "association") for row in rows], line=0.0),
    }]  # fmt: skip
    if first.position is not None:
        ordered = sorted(rows, key=lambda row: -(row.position or 0.0))
        plots.append({
            "heading": "Position between the own variants", "note": "-1 at the subject's prompts with the negative "
            "words, 1 at those with the positive ones; the line is the middle",
            "plot": draw_dots([_row(row, "position") for row in ordered], line=0.0),
        })  # fmt: skip
    if first.default is not None:
        ordered = sorted(rows, key=lambda row: -(row.default or 0.0))
        plots.append({
            "heading": "Default", "note": "similarity to the own prompt with the positive words minus that with the "
            "negative ones; the line is equal similarity",
            "plot": draw_dots([_row(row, "default") for row in ordered], line=0.0),
        })  # fmt: skip
    for kind, heading in (("rate", "Rate from prompt latents"), ("image_rate", "Rate of generated images")):
        if getattr(first, kind) is None:
            continue
        ordered = sorted(rows, key=lambda row: -(getattr(row, kind) or 0.0))
        uniform = about["reference"] == "uniform" or first.reference is None
        plots.append({
            "heading": heading, "note": _rate_note(about, separability, kind, uniform),
            "plot": draw_dots([_row(row, kind, with_reference=not uniform) for row in ordered],
                              line=0.5 if uniform else None, limits=(0.0, 1.0)),
        })  # fmt: skip
    return {
        "name": name,
        "ends": about["axes"][name],
        "plots": plots,
        "tested": "Association" if first.position is None else "Position between the own variants",
        "rows": rows,
        "direction": direction,
        "separability": separability,
        "groups": [record for record in result.metrics if record.name == "group_effect" and record.target == name],
        "words": _named(result, "score_against_words", name),
        "similar": {
            record.detail["subject"]: record.detail["similar_words"]
            for record in result.metrics if record.name == "association" and record.target == name
        },
    }  # fmt: skip


def _rate_note(about: dict[str, Any], separability: MetricRecord | None, kind: str, uniform: bool) -> str:
    line = "the line is 0.5" if uniform else f"the bar is the reference: {about['reference']}"
    if kind == "image_rate":
        return f"share of images perceived as the positive end; {line}"
    note = f"share of prompts and seeds on the positive side of the subject's own variants; {line}"
    if separability is not None:
        note += f"; prompts with an attribute are on their own side in {separability.value:.1%}"
        if not separability.detail["is_valid"]:
            note += ", too few: these rates are not valid"
    return note


def _row(row: SubjectRow, kind: str, *, with_reference: bool = False) -> Row:
    tested = "association" if row.position is None else "position"
    value, low, high = (getattr(row, name) for name in (kind, f"{kind}_low", f"{kind}_high"))
    return Row(
        label=row.subject, value=value or 0.0, low=low, high=high,
        reference=row.reference if with_reference else None, is_found=row.found and kind == tested,
        hint=f"{row.subject}: {value:.3f} {interval_text(low, high)}",
    )  # fmt: skip


def _cell_view(result: RunResult) -> dict[str, Any] | None:
    """Return the heat map of cells and axes; None for a single cell."""
    about = result.metrics[0].detail
    cells = about["cells"]
    if len(cells) < 2:
        return None
    main = cells[0]
    found = {
        (record.target, record.cell): (record.value, record.detail["agreement"])
        for record in result.metrics if record.name == "cell_rank_correlation"
    }  # fmt: skip
    rows = []
    for axis in about["axes"]:
        direction = _named(result, "direction_length", axis)
        own = (1.0, None if direction is None else direction.detail["agreement"])
        values = [own if cell == main else found[axis, cell] for cell in cells]
        rows.append({"axis": axis, "values": [
            {"rank": rank, "agreement": agreement, "weight": round(abs(rank), 3), "negative": rank < 0}
            for rank, agreement in values
        ]})  # fmt: skip
    return {"cells": cells, "rows": rows}


def _intersection_views(result: RunResult, rows: Sequence[SubjectRow]) -> list[dict[str, Any]]:
    views = []
    for record in result.metrics:
        if record.name != "intersection":
            continue
        first, second = record.detail["axes"]
        x = {row.subject: row.association for row in rows if row.axis == first}
        y = {row.subject: row.association for row in rows if row.axis == second}
        names = list(x)
        views.append({"record": record, "axes": (first, second),
                      "plot": draw_scatter(names, [x[n] for n in names], [y[n] for n in names])})  # fmt: skip
    return views


def _image_view(result: RunResult, rows: Sequence[SubjectRow]) -> dict[str, Any] | None:
    """Return the scatter plot of associations against the rates of images; None without those."""
    record = _named(result, "score_against_images")
    if record is None:
        return None
    own = [row for row in rows if row.axis == record.target and row.image_rate is not None]
    plot = draw_scatter(
        [row.subject for row in own], [row.association for row in own], [row.image_rate or 0.0 for row in own]
    )
    return {"record": record, "plot": plot}


def _named(result: RunResult, name: str, target: str | None = None) -> MetricRecord | None:
    return next((r for r in result.metrics if r.name == name and (target is None or r.target == target)), None)


def _number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _shown(value: object) -> object:
    """Show control characters of a text as text; browsers obey those that reverse the order of letters."""
    return type(value)(printable(value)) if isinstance(value, str) else value
