"""What changes when a tap is ablated or patched, with intervals over groups, as records.

The rise of the denoising error (`scoring/tap_interventions.py` measures the errors), and the share of generated images
(`scoring/sampling.py`) that show what their prompt names. The name of the intervention is the record's `probe`, so that
tables by layer and timestep keep interventions apart.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import SumStatistic, bootstrap_interval, mean_of, ratio
from diffprobe.core.errors import EmptyClass
from diffprobe.core.result import MetricRecord

DELTA = "delta_mse"
"""Rise of the denoising error: mean over samples of the error with the intervention minus the untouched one."""
RELATIVE = "relative_delta_mse"
"""The same rise over the mean untouched error: 0.1 is a rise by 10 %."""
SHARE = "attribute_share"
"""Share of generated images to which a classifier gives the value that the prompt names."""
DELTA_SHARE = "delta_attribute_share"
"""That share minus the share of the untouched images of the same prompts."""


@dataclass(frozen=True, kw_only=True)
class UseContext:
    """What the records of one cell share."""

    cell: str
    """Name of the cell."""
    split: str
    """Split of the samples."""
    groups: Sequence[Hashable]
    """The group of each sample, for the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""
    detail: Mapping[str, Any]
    """Details of every record."""


def use_records(
    untouched: NDArray[np.float64],
    errors: Mapping[str, NDArray[np.float64]],
    described: Mapping[str, str],
    context: UseContext,
) -> list[MetricRecord]:
    """Return `delta_mse` and `relative_delta_mse` of each intervention at one cell.

    The interval of the relative rise resamples both its parts together.

    Args:
        untouched: error of each sample without intervention, shape (samples,).
        errors: intervention -> error of each sample, shape (samples,).
        described: intervention -> what it does, in words.
    Raises: TooFewGroups with fewer than two groups; EmptyClass if the untouched error is zero.
    """
    if not untouched.mean() > 0:
        raise EmptyClass(f"the untouched denoising error of {context.cell} is zero: no rise relative to it is defined.")
    records = []
    for name, changed in errors.items():
        rise = changed - untouched
        statistics = {
            DELTA: mean_of(rise),
            RELATIVE: SumStatistic(parts=np.stack([rise, untouched], axis=1), value=ratio),
        }
        for metric, statistic in statistics.items():
            interval = bootstrap_interval(statistic, context.groups, seed=context.seed)
            records.append(
                MetricRecord(
                    name=metric,
                    value=interval.estimate,
                    split=context.split,
                    n=len(untouched),
                    cell=context.cell,
                    probe=name,
                    detail={
                        **context.detail,
                        "intervention": described[name],
                        "mse": float(untouched.mean()),
                        "interval": [interval.low, interval.high],
                        "level": interval.level,
                        "n_clusters": interval.n_clusters,
                        "n_undefined": interval.n_undefined,
                    },
                )
            )
    return records


@dataclass(frozen=True, kw_only=True)
class PromptedValues:
    """What a classifier gives the generated images of one attribute's prompts."""

    attribute: str
    """Name of the attribute."""
    prompted: NDArray[np.int64]
    """The value that each prompt names, shape (prompts,)."""
    untouched: NDArray[np.int64]
    """What the classifier gives the image of the untouched network, shape (prompts,)."""
    real: NDArray[np.int64]
    """What it gives the real image of the prompt, shape (prompts,)."""


def attribute_records(
    values: PromptedValues, changed: Mapping[str, NDArray[np.int64]], described: Mapping[str, str], context: UseContext
) -> list[MetricRecord]:
    """Return `attribute_share` and `delta_attribute_share` of each intervention for one attribute.

    The share is of images to which the classifier gives the value that the prompt names; the difference to the
    untouched images of the same prompts and noise is paired. The share of the untouched images is the accuracy of the
    classifier on generated images; where its interval reaches that of a constant answer, there is no
    `delta_attribute_share`, and `attribute_share` gives the reason in its detail `not_valid`.

    Args:
        changed: intervention -> what the classifier gives its images, shape (prompts,).
        described: intervention -> what it does, in words.
        context: groups of the prompts.
    Raises: TooFewGroups with fewer than two groups.
    """
    right = (values.untouched == values.prompted).astype(np.float64)
    chance = float(np.unique(values.prompted, return_counts=True)[1].max() / len(right))
    validated = bootstrap_interval(mean_of(right), context.groups, seed=context.seed)
    detail = {
        **context.detail,
        "classifier_accuracy": {
            "generated": validated.estimate,
            "generated_interval": [validated.low, validated.high],
            "real": float((values.real == values.prompted).mean()),
        },
    }
    if not validated.low > chance:
        detail["not_valid"] = (
            f"the classifier of '{values.attribute}' is not above a constant answer ({chance:.3g}) on untouched images"
        )
    controls = {"untouched": validated.estimate, "chance": chance}
    records = []
    for name, found in changed.items():
        share = (found == values.prompted).astype(np.float64)
        measured = {SHARE: share} if "not_valid" in detail else {SHARE: share, DELTA_SHARE: share - right}
        for metric, sample in measured.items():
            interval = bootstrap_interval(mean_of(sample), context.groups, seed=context.seed)
            records.append(
                MetricRecord(
                    name=metric,
                    value=interval.estimate,
                    split=context.split,
                    n=len(right),
                    cell=context.cell,
                    target=values.attribute,
                    probe=name,
                    controls=controls if metric == SHARE else {},
                    detail={
                        **detail,
                        "intervention": described[name],
                        "interval": [interval.low, interval.high],
                        "level": interval.level,
                        "n_clusters": interval.n_clusters,
                    },
                )
            )
    return records
