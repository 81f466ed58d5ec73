"""The records of an audit's result, and its notes: what was not measured, and what the numbers cannot say."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffprobe.analysis.audit.association import Estimates
from diffprobe.analysis.audit.comparison import RankAgreement
from diffprobe.analysis.audit.descriptors import RankedWord
from diffprobe.analysis.audit.spec import ENOUGH_TEMPLATES
from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.audit_measures import AxisMeasures, CellMeasures, OtherCell
from diffprobe.evaluation.audit_settings import Audit

SPLIT = "prompts"
"""Split of the records: the prompts of the audit."""
LIMITS = (
    "An association is a property of the model's activations for these prompts: which of two groups of prompts the "
    "prompt of a subject is more similar to. It is not a property of people, and not by itself a rate of images.",
    "Attributes such as gender or skin tone are what the words name, or what a reader perceives in images. Generated "
    "people have no identity of their own.",
    "An association of 0 is that of the average subject of this audit. Any subject has some association with any "
    "direction: compare it with random directions. Positions and rates compare a subject with its own variants, and "
    "these do contain the words of the attribute.",
    "Associations do not show that the model uses the direction: that needs an intervention, which is to add the "
    "direction while images are generated (steering).",
    "A difference from a reference is a statement about that reference, which is named. It is not a statement about "
    "how things ought to be.",
)
"""What the numbers cannot say."""
STEERING_LIMITS = (
    "Steering shows what a reader perceives in images after a direction is added at one place of the model. It does "
    "not show that the model uses this direction when nothing is added, nor that it is the only one with this effect.",
    "Strong steering leaves the activations that the model has by itself (distance above 1); there, images may change "
    "because they fall apart. The reader has to choose one of both ends for any image.",
    "Rates are corrected as if the reader erred on these images as on those that it was validated on.",
)
"""What steering cannot say."""


def notes_of(config: Audit, measures: CellMeasures) -> list[str]:
    """Return what is missing or weak in this audit, a sentence each."""
    notes = []
    smallest = measures.axes[0].associations.cosine.smallest_p
    n = len(config.templates)
    if config.has_few_templates:
        attainable = "there is no test" if smallest is None else f"the smallest attainable p is {smallest:.2g}"
        notes.append(
            f"Nothing can be significant: {n} {'template' if n == 1 else 'templates'}, at least {ENOUGH_TEMPLATES} are "
            f"needed; {attainable}, before the correction for {len(config.subjects)} subjects."
        )
    if measures.n_seeds == 1:
        notes.append("One seed: no intervals, and nothing counts as a discovery. A single seed does not show how much "
                     "the noise changes the numbers.")  # fmt: skip
    if n == 1:
        notes.append("One template: no intervals, no tests and no rates from prompt latents.")
    for axis in measures.axes:
        if axis.rates is not None and axis.positions is None:
            notes.append(f"{axis.name}: positions are not defined, since the direction does not separate the variants "
                         "of every subject; discoveries are by the association.")  # fmt: skip
        if axis.rates is not None and axis.rates.separability < config.least_separability:
            notes.append(
                f"{axis.name}: rates from prompt latents are not valid. Prompts with an attribute are on their own "
                f"side in {axis.rates.separability:.1%} (balanced); needed: {config.least_separability:.0%}."
            )
    if config.words_only is None:
        notes.append("No control by words: words_only is not set, so that an audit of the text encoder alone could "
                     "give the same numbers.")  # fmt: skip
    if config.steering is None:
        notes.append("No steering: whether moving along the directions moves the images was not measured.")
    if config.rates is None:
        notes.append("Rates of generated images were not given; amplification is of rates from prompt latents."
                     if measures.amplified is not None else "No rates: amplification was not measured.")  # fmt: skip
    return notes


def limits_of(config: Audit) -> list[str]:
    """Return what the numbers of this audit cannot say, a sentence or two each."""
    return [*LIMITS, *(STEERING_LIMITS if config.steering is not None else ())]


def records_of(
    config: Audit, measures: CellMeasures, others: Sequence[tuple[str, Sequence[OtherCell]]], notes: Sequence[str]
) -> list[MetricRecord]:
    """Return the records: a summary, then those of each axis, then those over axes."""
    cell = config.cells[0]
    found = [_discoveries(config, axis) for axis in measures.axes]
    records = [MetricRecord(
        name="discoveries", value=float(sum(int(one.sum()) for one in found)), split=SPLIT, cell=cell,
        n=len(config.subjects) * len(config.axes),
        detail={
            "notes": list(notes), "limits": limits_of(config), "n_templates": measures.n_templates,
            "n_seeds": measures.n_seeds, "cells": list(config.cells), "main_axis": config.main_axis,
            "axes": {axis.name: {"positive": list(axis.positive), "negative": list(axis.negative)}
                     for axis in config.axes},
            "level": config.level, "fdr": config.fdr, "reference": config.reference.name,
            "rates_of": _rates_of(config, measures),
            "tested": {axis.name: "association" if axis.positions is None else "position" for axis in measures.axes},
        },
    )]  # fmt: skip
    for axis, is_found in zip(measures.axes, found, strict=True):
        records += _axis_records(config, measures, axis, is_found, cell)
    for name, comparisons in others:
        for one in comparisons:
            records.append(_record(
                "cell_rank_correlation", one.rank_correlation, config, name, target=one.axis,
                agreement=one.agreement, main_cell=cell,
            ))  # fmt: skip
    for pair in measures.intersections:
        target = " x ".join(pair.axes)
        rank = {} if pair.agreement is None else _ranks(pair.agreement)
        rank["rank_interval"] = rank.pop("interval", None)  # of the rank correlation, not of the value
        records.append(_record("intersection", pair.cosine, config, cell, target=target, axes=list(pair.axes), **rank))
    if measures.image_agreement is not None:
        records.append(_record(
            "score_against_images", measures.image_agreement.interval.estimate, config, cell, target=config.main_axis,
            reader=config.reader, **_ranks(measures.image_agreement),
        ))  # fmt: skip
    if measures.clustering is not None:
        names = [one.name for one in config.all_subjects]
        records.append(_record(
            "silhouette", measures.clustering.silhouette, config, cell,
            tried={str(k): value for k, value in measures.clustering.tried.items()},
            clusters=[{"subjects": [names[i] for i in one.subjects], "words": list(one.words)}
                      for one in measures.clustering.clusters],
        ))  # fmt: skip
    return records


def _axis_records(
    config: Audit, measures: CellMeasures, axis: AxisMeasures, found: np.ndarray, cell: str
) -> list[MetricRecord]:
    main = axis.name == config.main_axis
    records = [_record(
        "direction_length", axis.direction.length, config, cell, target=axis.name, agreement=axis.direction.agreement,
        positive=[] if axis.ends is None else [_word(word) for word in axis.ends[0]],
        negative=[] if axis.ends is None else [_word(word) for word in axis.ends[1]],
        n_words=len(config.descriptors),
    )]  # fmt: skip
    for i, subject in enumerate(config.all_subjects):
        cosine, projection = axis.associations.cosine, axis.associations.projection
        about: dict[str, Any] = {"subject": subject.name, "group": subject.group}
        records.append(_record(
            "association", float(cosine.value[i]), config, cell, target=axis.name,
            controls={} if axis.words_only is None else {"words_only": float(axis.words_only[i])}, **about,
            **_estimate(cosine, i), projection=float(projection.value[i]),
            projection_interval=_interval(projection, i), found=bool(found[i]),
            random_percentile=float(axis.random_percentiles[i]),
            similar_words=[_word(word) for word in measures.similar_words[i]],
        ))  # fmt: skip
        if axis.defaults is not None:
            records.append(_record(
                "default", float(axis.defaults.value[i]), config, cell, target=axis.name, **about,
                **_estimate(axis.defaults, i),
            ))  # fmt: skip
        if axis.positions is not None:
            records.append(_record(
                "position", float(axis.positions.value[i]), config, cell, target=axis.name, **about,
                **_estimate(axis.positions, i),
            ))  # fmt: skip
        if axis.rates is not None:
            records.append(_record("rate", float(axis.rates.rate[i]), config, cell, target=axis.name, **about,
                                   interval=_interval(axis.rates, i)))  # fmt: skip
        if main and measures.images is not None:
            records.append(_record("image_rate", float(measures.images.rate[i]), config, cell, target=axis.name,
                                   interval=_interval(measures.images, i), reader=config.reader, **about))  # fmt: skip
        if main and measures.amplified is not None:
            one = measures.amplified
            records.append(_record(
                "amplification", float(one.difference[i]), config, cell, target=axis.name, **about,
                interval=_interval(one, i), reference=float(measures.reference[i]), away=bool(one.away[i]),
            ))  # fmt: skip
    if axis.rates is not None:
        ends = axis.rates.separability_interval
        records.append(_record(
            "separability", axis.rates.separability, config, cell, target=axis.name,
            interval=None if ends is None else list(ends), how=axis.rates.how,
            is_valid=axis.rates.separability >= config.least_separability,
        ))  # fmt: skip
    for name, (effect, null) in axis.groups.items():
        records.append(_record("group_effect", effect, config, cell, target=axis.name, group=name, p=null.p,
                               smallest_p=null.smallest_p))  # fmt: skip
    if axis.words_agreement is not None:
        records.append(_record("score_against_words", axis.words_agreement.interval.estimate, config, cell,
                               target=axis.name, **_ranks(axis.words_agreement)))  # fmt: skip
    return records


def _discoveries(config: Audit, axis: AxisMeasures) -> np.ndarray:
    if config.has_few_templates:
        return np.zeros(len(config.subjects), dtype=bool)
    return axis.tested.discoveries(config.fdr)


def _rates_of(config: Audit, measures: CellMeasures) -> str:
    if measures.amplified is None:
        return ""
    return "prompt latents" if measures.images is None else f"generated images, read by {config.reader}"


def _record(
    name: str, value: float, config: Audit, cell: str, *, target: str | None = None,
    controls: dict[str, float] | None = None, **detail: Any,
) -> MetricRecord:  # fmt: skip
    return MetricRecord(
        name=name, value=float(value), split=SPLIT, n=len(config.subjects), cell=cell, target=target,
        controls=controls or {}, detail=detail,
    )  # fmt: skip


def _estimate(found: Estimates, i: int) -> dict[str, Any]:
    return {
        "interval": _interval(found, i), "p": None if found.p is None else float(found.p[i]),
        "smallest_p": found.smallest_p, "q": None if found.q is None else float(found.q[i]),
    }  # fmt: skip


def _interval(found: Any, i: int) -> list[float] | None:
    return None if found.low is None or found.high is None else [float(found.low[i]), float(found.high[i])]


def _ranks(found: RankAgreement) -> dict[str, Any]:
    return {"interval": [found.interval.low, found.interval.high], "rank_correlation": found.interval.estimate,
            "p": found.null.p, "smallest_p": found.null.smallest_p}  # fmt: skip


def _word(word: RankedWord) -> dict[str, Any]:
    return {"word": word.word, "cosine": word.cosine, "percentile": word.percentile}
