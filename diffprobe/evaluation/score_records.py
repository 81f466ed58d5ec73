"""Records of `diffprobe score`: accuracies of a question with their spread over noise, controls, cost and curve."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.caption_accuracy import accuracy_record
from diffprobe.evaluation.captions import CHANCE, Encoded
from diffprobe.evaluation.score_candidates import Question
from diffprobe.probes.score.candidate_ranks import curve, is_chosen, ranks, shuffled_positives, without_prior
from diffprobe.probes.score.staged_errors import weighted_error

RANDOM_DENOISER, SHUFFLED = "random_denoiser", "shuffled_positives"
"""Names of controls."""
RECALL = (1, 5, 10)
"""Ranks at which retrieval is recorded."""


def measures(
    question: Question, scores: Float[Tensor, "sample n"], right: Int[Tensor, " sample"]
) -> dict[str, Float[Tensor, " sample"]]:
    """Return for each metric a number per sample, in [0, 1]; the metric is their mean.

    Retrieval from text to image compares the errors of one text over images, less each image's mean error under the
    other texts: images differ in how hard they are to denoise by more than texts matter.

    Args:
        scores: an error per candidate, infinite where it was pruned or is not offered.
        right: column of the right candidate; for a square question a permutation.
    """
    if not question.is_square:
        found = {question.name: is_chosen(scores, right).double()}
        if question.name.startswith("matched_"):
            wrong = question.offered.sum(1) - 1
            found[pair_metric(question.name)] = (wrong - ranks(scores, right)).double() / wrong
        return found
    found = {}
    for way, ranked in {
        "image_to_text": ranks(scores, right),
        "text_to_image": ranks(without_prior(scores.T).contiguous(), right.argsort()),
    }.items():
        for k in RECALL:
            if k < len(right):
                found[f"{way}_r{k}"] = (ranked < k).double()
    return found


def pair_metric(name: str) -> str:
    """Return the name of the accuracy over pairs of the right caption and one matched one.

    >>> pair_metric("matched_caption_accuracy_texture")
    'matched_pair_accuracy_texture'
    """
    return name.replace("caption", "pair", 1)


def chance(question: Question, metric: str) -> Float[Tensor, " sample"]:
    """Return the probability that a random order is right, for each sample."""
    counts = question.offered.sum(1).double()
    if question.is_square:
        return int(metric.rpartition("_r")[2]) / counts
    return torch.full_like(counts, 0.5) if metric.startswith("matched_pair") else 1 / counts


def score_records(
    question: Question,
    errors: Sequence[Float[Tensor, "sample n timestep"]],
    weights: Float[Tensor, " timestep"],
    controls: Mapping[str, Float[Tensor, "sample n"]],
    encoded: Encoded,
    *,
    split: str,
    prior_correction: bool,
    detail: Mapping[str, Any],
    seed: int,
) -> list[MetricRecord]:
    """Return a record for each metric of a question.

    Args:
        errors: per set of noise, as `staged_errors` returns them.
        weights: of the timesteps.
        controls: further scores of the same candidates; the control is the same metric of them.
        encoded: the split, of which the question has rows.
        prior_correction: whether to subtract the mean error of a candidate.
        detail: added to each record.
    Returns: records whose value is a mean over sets of noise; `spread` is their standard deviation. Their detail has
        `passes_per_image`, `by_noise_set`, and in the first record the `curve`.
    """
    corrected = without_prior if prior_correction else (lambda scores: scores)
    scores = [corrected(weighted_error(part, weights)) for part in errors]
    by_set = [measures(question, one, question.right) for one in scores]
    rows = question.rows.tolist()
    keys, families = ([values[row] for row in rows] for values in (encoded.table.keys, encoded.families))
    null = _shuffled(question, keys, seed)
    of_controls = {name: measures(question, corrected(given), question.right) for name, given in controls.items()}
    shuffled = [measures(question, one, null) for one in scores]
    passes = sum(float(part.isfinite().sum()) for part in errors) / len(errors) / len(rows)
    records: list[MetricRecord] = []
    for metric in by_set[0]:
        values = torch.stack([found[metric] for found in by_set])
        accuracies = values.mean(1)
        record = accuracy_record(
            metric,
            values.mean(0).numpy(),
            {
                CHANCE: chance(question, metric).numpy(),
                SHUFFLED: torch.stack([found[metric] for found in shuffled]).mean(0).numpy(),
                **{name: found[metric].numpy() for name, found in of_controls.items()},
            },
            split=split,
            families=families,
            attributes=[encoded.table.attributes[row] for row in rows],
            by=(),
            seed=seed,
            detail={
                **detail,
                "passes_per_image": passes,
                "by_noise_set": accuracies.tolist(),
                "left_out": len(encoded.table) - len(rows),
            },
        )
        if not records:
            points = [curve(part, question.right, weights, corrected) for part in errors]
            record.detail["curve"] = [
                {name: sum(asdict(point)[name] for point in of_sets) / len(of_sets) for name in asdict(of_sets[0])}
                for of_sets in zip(*points, strict=True)
            ]
        records.append(replace(record, spread=float(accuracies.std()), n_seeds=len(errors)))
    return records


def _shuffled(question: Question, keys: Sequence[str], seed: int) -> Int[Tensor, " sample"]:
    if not question.is_square:
        return shuffled_positives(question.offered, keys, seed)
    generator = torch.Generator().manual_seed(derive_seed("shuffled positives", seed))
    return torch.randperm(len(keys), generator=generator)
