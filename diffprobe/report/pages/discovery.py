"""The page of a discovery: one self-contained HTML file without a script, all text escaped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.core.terminal import printable
from diffprobe.report.audit_table import interval_text
from diffprobe.report.discovery_table import component_records, kind_text, reader_text, share_text
from diffprobe.report.pages.audit_svg import DotPlot, Row, draw_dots

HEADINGS = {
    "association": ("Associations", "These attributes vary within subjects, and at other rates or strengths in some "
                    "subjects than in others."),
    "free": ("Free attributes", "These vary, and differ between subjects by no more than chance or the least share. "
             "The most separate and rarest group first."),
    "identity": ("Identities", "These differ more between subjects than within: what separates the subjects, such as "
                 "what their names mean."),
}  # fmt: skip
"""Kind -> heading of its section, and what it means."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """An image of a sample."""

    uri: str
    """The image, as a data URI."""
    subject: str
    """Its subject."""
    hint: str
    """What is shown when the pointer rests on it."""


def render_discovery(result: RunResult, examples: Mapping[str, Mapping[str, Sequence[Example]]] | None = None) -> str:
    """Render the page of a result of kind "discovery".

    Args:
        examples: number of a component -> end ("high", "low") -> images; empty where there are none.

    Returns: the HTML, identical for the same arguments.
    """
    environment = Environment(
        loader=PackageLoader("diffprobe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters.update(interval=lambda pair: interval_text(*(pair or (None, None))))
    summary = result.metrics[0]
    views = [_view(record, (examples or {}).get(record.target or "", {})) for record in component_records(result)]
    return environment.get_template("discovery.html.j2").render(
        result=result,
        about=summary.detail,
        facts=_facts(result),
        sections=[
            {"kind": kind, "heading": heading, "meaning": meaning, "views": own}
            for kind, (heading, meaning) in HEADINGS.items()
            if (own := [view for view in views if view["detail"]["kind"] == kind])
        ],
        unstructured=[view for view in views if view["detail"]["kind"] == "unstructured"],
    )  # fmt: skip


def _facts(result: RunResult) -> list[tuple[str, str]]:
    summary = result.metrics[0]
    about, config = summary.detail, result.config
    counts = about["counts"]
    return [
        ("samples", f"{summary.n:,} of {len(about['subjects'])} subjects (by {about['subject_by']}), split "
                    f"{summary.split}"),
        ("cell", summary.cell or ""),
        ("components", f"{about['n_components']}, of {about['explained']:.1%} of the variance"),
        ("with structure", f"{summary.value:.0f}; {summary.controls['normal_random_numbers']:.0f} of normal random "
                           "numbers with the same covariance"),
        ("associations", f"{counts['association']}, {about['hidden']} of them hidden; "
                         f"{about['associations_by_chance']:.2f} on average for permuted subjects"),
        ("intervals", f"{config['level']:.0%}, {'seeds' if about['is_paired'] else 'samples'} resampled"),
        ("tests", f"subjects permuted{' within seeds' if about['is_paired'] else ''} "
                  f"({config['n_permutations']:,} permutations); q over components, at most {config['fdr']:g}"),
    ]  # fmt: skip


def _view(record: MetricRecord, examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    detail = record.detail
    smaller = detail["smaller_end"]
    other = "low" if smaller == "high" else "high"
    return {
        "number": record.target,
        "detail": detail,
        "title": _title(detail),
        "share": record.value,
        "chance": record.controls["permuted_subjects"],
        "group": share_text(detail),
        "reader": reader_text(detail),
        "plot": _plot(detail),
        "ends": [
            ("the rarer group" if detail["has_groups"] else "the heavier tail", examples.get(smaller, ())),
            ("the other group" if detail["has_groups"] else "the other end", examples.get(other, ())),
        ] if examples else [],
    }  # fmt: skip


def _title(detail: dict[str, Any]) -> str:
    """Return the phrases that name a component, or that none does."""
    words = [word["phrase"] for word in detail["named_by"]]
    return f"{kind_text(detail)}: {' / '.join(words[:4])}" if words else f"{kind_text(detail)}, no word names it"


def _plot(detail: dict[str, Any]) -> DotPlot | None:
    """Return the dot plot of the subjects; None where nothing was measured per subject."""
    rows = sorted(detail["rates"], key=lambda row: (-row["rate"], row["subject"]))
    if not rows:
        return None
    extreme = {*detail["high_subjects"], *detail["low_subjects"]}
    mean = sum(row["rate"] for row in rows) / len(rows)
    drawn = [
        Row(label=row["subject"], value=row["rate"], low=row["interval"][0], high=row["interval"][1],
            is_found=row["subject"] in extreme,
            hint=f"{row['subject']}: {row['rate']:.3f} {interval_text(*row['interval'])}, adjusted p {row['p']:.2g}")
        for row in rows
    ]  # fmt: skip
    return draw_dots(drawn, line=mean, limits=(0.0, 1.0) if detail["has_groups"] else None)


def _shown(value: object) -> object:
    """Show control characters of a text as text; browsers obey those that reverse the order of letters."""
    return type(value)(printable(value)) if isinstance(value, str) else value
