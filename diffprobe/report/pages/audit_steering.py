"""What the page of an audit shows of its steering: dose-response plots, images by strength, and a scatter plot."""

from collections.abc import Mapping
from typing import Any

from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.audit_steering import named, points_of, steered_axes
from diffprobe.report.audit_table import interval_text
from diffprobe.report.data_uri import data_uri
from diffprobe.report.pages.audit_svg import draw_scatter
from diffprobe.report.pages.dose_svg import DosePlot, DosePoint, draw_doses


def steering_views(result: RunResult, images: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Return what the template shows of each steered axis; empty without steering.

    Args:
        images: axis -> PNG file of its images by strength.
    """
    ends = result.metrics[0].detail["axes"]
    found = []
    for axis in steered_axes(result):
        effect = named(result, "steering_effect", axis)
        score = next((r for r in result.metrics if r.name == "score_against_steered" and r.target == axis), None)
        moved = list(dict.fromkeys(
            r.detail["along"] for r in result.metrics if r.name == "steering_moved" and r.target == axis
        ))  # fmt: skip
        own = {along: points_of(result, axis, "steering_moved", along)[axis] for along in moved}
        rates, distances = (points_of(result, axis, name)[axis] for name in ("steering_rate", "steering_distance"))
        found.append({
            "name": axis, "ends": ends[axis], "effect": effect, "about": effect.detail,
            "dose": named(result, "steering_dose", axis),
            "collateral": [r for r in result.metrics if r.name == "steering_collateral" and r.target == axis],
            "rate_plot": _plot(result, axis, "steering_rate", None, limits=(0.0, 1.0)),
            "moved_plot": _plot(result, axis, "steering_moved", axis),
            "rows": [
                {"strength": rate.detail["strength"], "rate": rate, "moved": [own[along][i] for along in moved],
                 "distance": distances[i]}
                for i, rate in enumerate(rates)
            ],
            "moved": moved,
            "images": data_uri(images[axis]) if axis in images else None,
            "score": score,
            "scatter": None if score is None else draw_scatter(
                score.detail["subjects"], score.detail["associations"], score.detail["rates"]
            ),
        })  # fmt: skip
    return found


def _plot(
    result: RunResult, axis: str, measure: str, along: str | None, *, limits: tuple[float, float] | None = None
) -> DosePlot:
    curves = points_of(result, axis, measure, along)
    return draw_doses(
        [(name, name == axis, [_point(one) for one in records]) for name, records in curves.items()], limits=limits
    )


def _point(record: MetricRecord) -> DosePoint:
    low, high = record.detail.get("interval") or (None, None)
    return DosePoint(strength=record.detail["strength"], value=record.value, low=low, high=high,
                     hint=f"{record.value:.3f} {interval_text(low, high)}".strip())  # fmt: skip
