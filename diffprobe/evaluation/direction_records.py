"""The records of `diffprobe eval directions`: agreement, AUROC and split halves per factor, reading and cell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffprobe.analysis.prompt_agreement import PromptAgreement
from diffprobe.analysis.prompt_directions import HalvesCosine
from diffprobe.analysis.statistics import benjamini_hochberg
from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.prompt_directions import ESTIMATOR

CONDITIONAL_READING, REREAD_READING = "conditional", "re-read"
"""Readings of the prompts in the cells of the denoiser; the controls are readings by their own names."""
DENOISER_READINGS = (CONDITIONAL_READING, REREAD_READING)
SPLIT = "counterfactual"
"""Split of the records: pairs of rendered scenes."""
SEEDS_VARY = "the noise that sampling starts from, and the noise of the re-read; scenes and their noise are the same"
"""What the directions by seed differ in."""
NO_TEXT = "a text embedding has no coordinate in the features of the denoiser, so it has no counterfactual truth"
"""Why the text encoder is not a baseline."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A direction from prompts, compared with its truth."""

    factor: str
    positive: str
    negative: str
    reading: str
    """`conditional`, `re-read`, or the name of a control."""
    cell: str
    """Cell of the prompt latents."""
    truth_cell: str
    """Cell of the rendered scenes."""
    n_contexts: int
    """Pairs of prompts."""
    found: PromptAgreement
    """The comparison."""


def records(
    compared: Sequence[Comparison], *, least_split_half: float, least_agreement: float, alpha: float,
    not_applicable: Mapping[str, str], n_factors: int,
) -> list[MetricRecord]:  # fmt: skip
    """Return the records: the counts of cells by factor and reading first, then four numbers of each direction.

    q is p adjusted over all cells, factors and readings of the denoiser (Benjamini and Hochberg). A cell in which two
    halves of the pairs have a cosine below `least_split_half` is not counted. An agreement that is not defined is
    recorded as 0 with `defined` false.
    """
    tested = [i for i, one in enumerate(compared) if one.reading in DENOISER_READINGS and one.found.null is not None]
    p_values = [float((compared[i].found.null or {})["p"]) for i in tested]
    q = dict(zip(tested, benjamini_hochberg(p_values).adjusted, strict=True)) if tested else {}
    shared = {"not_applicable": {**not_applicable, "text encoder": NO_TEXT}, "seeds_vary": SEEDS_VARY}
    found = [
        MetricRecord(
            name="captioned_factors", value=float(n_factors - len(not_applicable)), split=SPLIT, n=n_factors,
            detail=shared,
        )
    ]  # fmt: skip
    for factor in dict.fromkeys(one.factor for one in compared):
        for reading in DENOISER_READINGS:
            rows = [i for i, one in enumerate(compared) if (one.factor, one.reading) == (factor, reading)]
            found.append(_count(compared, rows, q, least_split_half, least_agreement, alpha))
    for i, one in enumerate(compared):
        found += _of_direction(one, q.get(i), len(tested))
    return found


def _count(
    compared: Sequence[Comparison], rows: Sequence[int], q: Mapping[int, float], least_split_half: float,
    least_agreement: float, alpha: float,
) -> MetricRecord:  # fmt: skip
    """Return the share of cells that agree, of those that have a direction to agree with."""
    counted = [i for i in rows if compared[i].found.truth_halves.mean >= least_split_half and i in q]
    values = [float(compared[i].found.agreement or 0.0) for i in counted]
    agreeing = sum(value >= least_agreement and q[i] <= alpha for i, value in zip(counted, values, strict=True))
    one = compared[rows[0]]
    detail = {
        "reading": one.reading, "positive": one.positive, "negative": one.negative, "agreeing": agreeing,
        "cells": len(rows), "median_agreement": float(np.median(values)) if values else None,
        "median_auroc": float(np.median([compared[i].found.auroc for i in counted])) if values else None,
    }  # fmt: skip
    return MetricRecord(
        name="agreeing_cells", value=agreeing / len(counted) if counted else 0.0, split=SPLIT, n=len(counted),
        target=one.factor, probe=ESTIMATOR, detail=detail,
    )  # fmt: skip


def _of_direction(one: Comparison, q: float | None, n_tests: int) -> list[MetricRecord]:
    found = one.found
    about: dict[str, Any] = {
        "reading": one.reading, "positive": one.positive, "negative": one.negative, "truth_cell": one.truth_cell,
        "contexts": one.n_contexts,
    }  # fmt: skip
    shared: dict[str, Any] = {"split": SPLIT, "cell": one.cell, "target": one.factor, "probe": ESTIMATOR}
    agreement: dict[str, Any] = {**about, "defined": found.agreement is not None, "others": dict(found.others)}
    controls = {}
    if found.null is not None:
        agreement |= {"interval": list(found.interval or ()), "null": dict(found.null), "by_seed": list(found.by_seed)}
        controls["random_direction"] = float(found.null["percentile_95"])
    if q is not None:
        agreement |= {"q": q, "n_tests": n_tests}
    if found.corrected is not None:
        agreement["corrected_for_both"] = found.corrected
    if found.others:
        controls["other_factor"] = max(abs(value) for value in found.others.values())
    return [
        MetricRecord(
            name="agreement", value=found.agreement or 0.0, n=found.n_pairs, controls=controls, detail=agreement,
            **shared,
        ),
        MetricRecord(
            name="auroc", value=found.auroc, n=2 * found.n_pairs,
            detail={**about, "interval": list(found.auroc_interval)}, **shared,
        ),
        _halves("split_half_truth", found.truth_halves, about, shared),
        _halves("split_half_prompts", found.prompt_halves, about, shared),
    ]  # fmt: skip


def _halves(name: str, halves: HalvesCosine, about: Mapping[str, Any], shared: Mapping[str, Any]) -> MetricRecord:
    detail = {**about, "range_over_halves": [halves.low, halves.high]}
    return MetricRecord(name=name, value=halves.mean, n=halves.n, detail=detail, **shared)
