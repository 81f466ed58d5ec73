"""The records of a discovery's result, its notes, and what the numbers cannot say."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.discovery.findings import KINDS, Finding
from diffprobe.analysis.discovery.search import Discovery
from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.discover_inputs import DiscoverySamples
from diffprobe.evaluation.discover_reader import LikestFactor
from diffprobe.evaluation.discover_settings import DiscoverConfig

ALL_SPLITS = "all"
"""Split of the records where the samples of all splits are used."""
HIGH, LOW = "high", "low"
"""Ends of a component: the positive one, with the longer tail, and the negative one."""
LIMITS = (
    "A component is a direction in the model's activations. It need not be one attribute, and one attribute may be "
    "spread over several components. What it shows is decided by looking at the images of both ends.",
    "Hidden means: no word of these captions, except the subject, goes with the component. It does not mean that "
    "nobody intended it, nor that the model has no word for it.",
    "An association is one of subjects and activations in these samples. It is not a property of people, and not by "
    "itself a rate of images: check the images, or read them with a validated classifier.",
    "What is not found here may still be there: attributes that the chosen cell does not hold, that vary with others, "
    "or that too few samples have.",
    "The groups are the two sides of one boundary; samples near it are in either.",
)
"""What the numbers cannot say."""


def notes_of(samples: DiscoverySamples, found: Discovery) -> list[str]:
    """Return what is missing or weak in this discovery, a sentence each."""
    notes = []
    if found.n_structured_by_chance:
        notes.append(
            f"{found.n_structured_by_chance} components of normal random numbers with the same covariance count as "
            "structured: as many of the findings may be chance."
        )
    if not found.has_words:
        notes.append("No word of the captions varies within subjects, so no component can be named by words, and every "
                     "association counts as hidden.")  # fmt: skip
    if samples.images is None:
        notes.append("No examples: the images are not at hand (images=SHARDS; for prompts, features.keep=[images]).")
    if samples.n_without_subject:
        notes.append(f"{samples.n_without_subject:,} samples without '{samples.subject_by}' were left out.")
    return notes


def examples_of(
    scores: NDArray[np.float64], subjects: NDArray[np.int64], n: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return samples at the positive and at the negative end, the outermost first: at most one of each subject, as long
    as there are subjects enough.

    >>> examples_of(np.array([3.0, 2.0, 1.0, 0.0]), np.array([0, 0, 1, 1]), 2)
    ((0, 2), (3, 1))
    """
    ends = []
    for order in (np.argsort(-scores, kind="stable"), np.argsort(scores, kind="stable")):
        first: dict[int, int] = {}
        for i in order.tolist():
            first.setdefault(int(subjects[i]), i)
        chosen = list(first.values())[:n]
        rest = [i for i in order.tolist() if i not in set(chosen)]
        ends.append((*chosen, *rest[: max(0, n - len(chosen))]))
    return ends[0], ends[1]


def records_of(
    config: DiscoverConfig, samples: DiscoverySamples, found: Discovery, examples: Mapping[int, Any],
    factors: Sequence[LikestFactor] | None,
) -> list[MetricRecord]:  # fmt: skip
    """Return a summary, then one record per component.

    Args:
        examples: number of a component -> numbers of samples at the positive and at the negative end.
        factors: what the reader finds each component most like, in the order of the components.
    """
    split, n = config.split or ALL_SPLITS, len(samples.features)
    counts = {kind: sum(one.kind == kind for one in found.findings) for kind in KINDS}
    records = [MetricRecord(
        name="structured", value=float(len(found.structured)), split=split, n=n, cell=samples.cell,
        controls={"normal_random_numbers": float(found.n_structured_by_chance)},
        detail={
            "notes": notes_of(samples, found), "limits": list(LIMITS), "counts": counts,
            "hidden": sum(one.is_hidden for one in found.findings), "subjects": list(samples.design.names),
            "subject_by": samples.subject_by, "is_paired": samples.design.blocks is not None,
            "n_components": len(found.findings), "explained": found.components.explained,
            "associations_by_chance": found.associations_by_chance, "has_words": found.has_words,
        },
    )]  # fmt: skip
    for number, one in enumerate(found.findings, 1):
        records.append(MetricRecord(
            name="subject_share", value=one.dependence.share, split=split, n=n, cell=samples.cell, target=str(number),
            controls={"permuted_subjects": one.dependence.null.mean},
            detail=_detail(one, samples, examples.get(one.component),
                           None if factors is None else factors[one.component]),
        ))  # fmt: skip
    return records


def _detail(
    one: Finding, samples: DiscoverySamples, examples: tuple[Sequence[int], Sequence[int]] | None,
    factor: LikestFactor | None,
) -> dict[str, Any]:  # fmt: skip
    names = samples.design.names
    rarer_is_high = one.groups.is_positive or not one.has_groups
    sign = 1.0 if rarer_is_high else -1.0
    detail: dict[str, Any] = {
        "kind": one.kind, "is_hidden": one.is_hidden, "stability": one.stability, "kurtosis": one.kurtosis,
        "has_groups": one.has_groups, "evidence": one.groups.evidence, "separation": one.groups.separation,
        "frequency": one.groups.frequency, "smaller_end": HIGH if rarer_is_high else LOW,
        "distinctiveness": one.groups.distinctiveness, "rarity": one.groups.rarity if one.has_groups else None,
        "p": one.dependence.null.p, "smallest_p": one.dependence.null.smallest_p, "q": one.q,
        "high_subjects": [names[i] for i in one.high], "low_subjects": [names[i] for i in one.low],
        "rates": [
            {"subject": names[i], "rate": rate.estimate, "interval": [rate.low, rate.high],
             "p": float(one.dependence.p[i])}
            for i, rate in enumerate(one.rates)
        ],
        "named_by": [
            {"phrase": word.phrase, "effect": sign * word.effect, "p": word.p, "count": word.count}
            for word in one.named_by
        ],
    }  # fmt: skip
    if one.words is not None:
        explained = one.words.explained
        detail["words"] = {"explained": explained.estimate, "interval": [explained.low, explained.high],
                           "q": one.words_q}  # fmt: skip
    if examples is not None:
        detail["examples"] = {
            end: [samples.keys[i] for i in chosen] for end, chosen in zip((HIGH, LOW), examples, strict=True)
        }
    if factor is not None:
        detail["reader"] = {
            "factor": factor.factor, "value": factor.value, "auroc": factor.auroc,
            "end": HIGH if factor.is_positive else LOW, "planted": list(factor.planted),
        }  # fmt: skip
    return detail
