"""The records of the steering of an audit: rates, moves and distances by strength, and what follows from them."""

from typing import Any

import numpy as np

from diffprobe.analysis.statistics import Interval
from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.audit_settings import Audit
from diffprobe.evaluation.audit_steering import SteeredAudit, SteeredAxis

SPLIT = "generated"
"""Split of the records: images that were generated for prompts of the audit."""


def steering_records(config: Audit, steered: SteeredAudit) -> list[MetricRecord]:
    """Return the records of all steered axes.

    Their names: `steering_rate`, `steering_moved` and `steering_distance` per steered direction and strength;
    `steering_effect`, `steering_dose` and `steering_collateral`; and `score_against_steered`, the rank correlation over
    subjects of the association with what is read at strength 0.
    """
    found = []
    for one in steered.axes:
        found += _checks(config, steered, one)
        found += _by_strength(config, steered, one)
        if one.agreement is not None:
            found.append(_record(
                "score_against_steered", one.agreement.interval.estimate, config, len(one.scores), one.axis,
                interval=[one.agreement.interval.low, one.agreement.interval.high], p=one.agreement.null.p,
                smallest_p=one.agreement.null.smallest_p, subjects=list(steered.subjects),
                rates=one.subject_rates.tolist(), associations=one.scores.tolist(),
                n_images=steered.n_images // len(steered.subjects),
            ))  # fmt: skip
    return found


def _checks(config: Audit, steered: SteeredAudit, one: SteeredAxis) -> list[MetricRecord]:
    steering = config.steering
    assert steering is not None
    confusion = one.reader.confusion
    shares = confusion / confusion.sum(1, keepdims=True)
    found = []
    for check in one.link.checks:
        detail: dict[str, Any] = {"interval": list(check.interval or ()) or None, "null": dict(check.null or {}),
                                  "what": check.what}  # fmt: skip
        if check.name == "steering_effect":
            detail |= {
                "corrected": float(np.clip(check.value / one.link.gain, -1, 1)),
                "reader": one.reader.name, "validated_on": one.reader.validated_on, "confusion": confusion.tolist(),
                "sensitivity": float(shares[1, 1]), "specificity": float(shares[0, 0]),
                "subjects": list(steered.subjects), "templates": list(config.templates[: steering.n_templates]),
                "seeds": steering.seeds, "n_random": steering.n_random,
                "shown": [len(images) for images in one.images.values()][0],
            }  # fmt: skip
        if check.target != one.axis:
            detail["other"] = check.target
        found.append(_record(check.name, check.value, config, check.n, one.axis, **detail))
    return found


def _by_strength(config: Audit, steered: SteeredAudit, one: SteeredAxis) -> list[MetricRecord]:
    found, n = [], steered.n_images
    for name, curve in one.link.curves.items():
        about: dict[str, Any] = {"steered": name, "own": name == one.axis}
        for point, dose in zip(curve, one.doses[name], strict=True):
            at = {**about, "strength": point.strength}
            found.append(_record("steering_rate", point.rate, config, n, one.axis, interval=[point.low, point.high],
                                 read=point.read, **at))  # fmt: skip
            for along, value in dose.moved.items():
                number, ends = _number(value)
                found.append(_record("steering_moved", number, config, n, one.axis, interval=ends, along=along, **at))
            number, ends = _number(dose.distance)
            found.append(_record("steering_distance", number, config, n, one.axis, interval=ends, **at))
    return found


def _number(value: Interval | float) -> tuple[float, list[float] | None]:
    return (value.estimate, [value.low, value.high]) if isinstance(value, Interval) else (value, None)


def _record(name: str, value: float, config: Audit, n: int, axis: str, **detail: Any) -> MetricRecord:
    return MetricRecord(
        name=name, value=float(value), split=SPLIT, n=n, cell=config.cells[0], target=axis, detail=detail
    )  # fmt: skip
