"""Records of `diffprobe score`: accuracies of a question with their spread over noise, controls, cost and curve."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.caption_accuracy import accuracy_record
from diffprobe.evaluation.captions import CHANCE, Encoded
from diffprobe.evaluation.score_candidates import CLASSES, Question
from diffprobe.probes.score.candidate_ranks import curve, is_chosen, ranks, shuffled_positives, without_prior
from diffprobe.probes.score.staged_errors import weighted_error

RANDOM_DENOISER, SHUFFLED, TEXT_FREE = "random_denoiser", "shuffled_positives", "text_free_model"
"""Names of controls."""
REAL, GENERATED = "real_images", "generated_"
"""Name of the control of a record on generated images, and what its metric begins with."""
FREQUENT = "most_frequent_class"
"""Name of the control that chooses the class with the most scored images."""
UNIFORM = "uniform_weights"
"""Name of the control that weights all timesteps alike, with the same errors and sets of noise."""
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
    if question.sets:
        return set_measures(question, scores, right)
    if not question.is_square:
        found = {question.name: is_chosen(scores, right).double()}
        for k in question.further_ranks:
            found[f"{question.name.removesuffix('_accuracy')}_r{k}"] = (ranks(scores, right) < k).double()
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


def set_measures(
    question: Question, scores: Float[Tensor, "sample n"], right: Int[Tensor, " sample"]
) -> dict[str, Float[Tensor, " sample"]]:
    """Return the measures of sets: each image among the texts of its set, each text among the images, and whole sets.

    From text to image, the error under the empty text is subtracted first, because images differ in how hard they are
    to denoise. `set_text_score`, `set_image_score` and `set_group_score` are 1 where all images, all texts, or both
    are right in the set of a sample (Thrush et al., 2204.03162, section 3.3, for sets of two).
    """
    members: dict[str, list[int]] = {}
    for row, name in enumerate(question.sets):
        members.setdefault(name, []).append(row)
    texts = ranks(scores.masked_fill(~question.eligible, torch.inf), right)
    images = torch.empty_like(texts)
    for rows in members.values():
        # all images of a set have the same candidates
        own = scores[rows][:, right[rows]] - scores[rows][:, :1]
        images[rows] = ranks(own.T.contiguous(), torch.arange(len(rows)))
    smallest, found = min(map(len, members.values())), {}
    for way, ranked in {"image_to_text": texts, "text_to_image": images}.items():
        for k in RECALL:
            if k < smallest:
                found[f"set_{way}_r{k}"] = (ranked < k).double()
    for name, is_right in {
        "set_text_score": texts == 0, "set_image_score": images == 0, "set_group_score": (texts == 0) & (images == 0),
    }.items():  # fmt: skip
        found[name] = torch.empty(len(texts), dtype=torch.float64)
        for rows in members.values():
            found[name][rows] = float(is_right[rows].all())
    return found


def pair_metric(name: str) -> str:
    """Return the name of the accuracy over pairs of the right caption and one matched one.

    >>> pair_metric("matched_caption_accuracy_texture")
    'matched_pair_accuracy_texture'
    """
    return name.replace("caption", "pair", 1)


def chance(question: Question, metric: str) -> Float[Tensor, " sample"]:
    """Return the probability that a random order is right, for each sample."""
    counts = question.eligible.sum(1).double()
    if metric.endswith("_score"):
        return torch.tensor([_chance_of_set(int(n), metric) for n in counts.tolist()], dtype=torch.float64)
    if (question.is_square or question.sets or question.further_ranks) and metric.rpartition("_r")[2].isdigit():
        return int(metric.rpartition("_r")[2]) / counts
    return torch.full_like(counts, 0.5) if metric.startswith("matched_pair") else 1 / counts


@cache
def _chance_of_set(n: int, metric: str) -> float:
    """Return the probability that random errors of a set of n are all right: n^-n one way, estimated for both."""
    if metric != "set_group_score":
        return float(n) ** -n
    if n == 2:
        return 1 / 6
    errors = torch.rand(100_000, n, n, generator=torch.Generator().manual_seed(0))
    own = torch.arange(n).expand(len(errors), n)
    return float(((errors.argmin(2) == own).all(1) & (errors.argmin(1) == own).all(1)).double().mean())


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
    generated: Float[Tensor, "sample n timestep"] | None = None,
    passes_of_generation: int = 0,
    unweighted: bool = False,
) -> list[MetricRecord]:
    """Return a record for each metric of a question.

    Args:
        errors: per set of noise, as `staged_errors` returns them.
        weights: of the timesteps.
        controls: further scores of the same candidates; the control is the same metric of them.
        encoded: the split, of which the question has rows.
        prior_correction: whether to subtract the mean error of a candidate.
        detail: added to each record.
        generated: errors of images that the model generated from the right candidates, with the first set of noise;
            each metric then has a second record, whose control `real_images` is the first set of noise on real ones.
        passes_of_generation: denoiser passes of a generated image.
        unweighted: whether the control `uniform_weights` has the same errors, all timesteps alike.
    Returns: records whose value is a mean over sets of noise; `spread` is their standard deviation. Their detail has
        `passes_per_image`, `by_noise_set`, and in the first record the `curve`.
    """

    def corrected(given: Tensor) -> Tensor:
        return without_prior(given) if prior_correction else given

    def choosable(given: Tensor) -> Tensor:
        return corrected(given).masked_fill(~question.eligible, torch.inf)

    scores = [corrected(weighted_error(part, weights)) for part in errors]
    by_set = [measures(question, one, question.right) for one in scores]
    rows = question.rows.tolist()
    keys, families = ([values[row] for row in rows] for values in (encoded.table.keys, encoded.families))
    null = _shuffled(question, keys, seed)
    of_controls = {name: measures(question, corrected(given), question.right) for name, given in controls.items()}
    shuffled = [measures(question, one, null) for one in scores]
    if unweighted:
        alike = torch.ones_like(weights)
        plain = [measures(question, corrected(weighted_error(part, alike)), question.right) for part in errors]
        of_controls[UNIFORM] = {metric: torch.stack([found[metric] for found in plain]).mean(0) for metric in by_set[0]}
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
                **_most_frequent(question),
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
            points = [curve(part, question.right, weights, choosable) for part in errors]
            record.detail["curve"] = [
                {name: sum(asdict(point)[name] for point in of_sets) / len(of_sets) for name in asdict(of_sets[0])}
                for of_sets in zip(*points, strict=True)
            ]
        records.append(replace(record, spread=float(accuracies.std()), n_seeds=len(errors)))
    if generated is None:
        return records
    own = corrected(weighted_error(generated, weights))
    found, blind = measures(question, own, question.right), measures(question, own, null)
    of_passes = float(generated.isfinite().sum()) / len(rows) + passes_of_generation
    return records + [
        accuracy_record(
            f"{GENERATED}{metric}",
            values.numpy(),
            {
                CHANCE: chance(question, metric).numpy(),
                SHUFFLED: blind[metric].numpy(),
                REAL: by_set[0][metric].numpy(),
            },
            split=split,
            families=families,
            attributes=[encoded.table.attributes[row] for row in rows],
            by=(),
            seed=seed,
            detail={**detail, "passes_per_image": of_passes, "left_out": len(encoded.table) - len(rows)},
        )
        for metric, values in found.items()
    ]


def _most_frequent(question: Question) -> dict[str, NDArray[np.float64]]:
    """Return for a question of classes who is right if all choose the class that most images have."""
    if not question.name.startswith(CLASSES):
        return {}
    return {FREQUENT: (question.right == question.right.mode().values).double().numpy()}


def _shuffled(question: Question, keys: Sequence[str], seed: int) -> Int[Tensor, " sample"]:
    if question.sets:  # the texts of a set, in another order: one text per image
        drawn = question.right.clone()
        for name in sorted(set(question.sets)):
            rows = torch.tensor([row for row, other in enumerate(question.sets) if other == name])
            generator = torch.Generator().manual_seed(derive_seed("shuffled positives", seed, name))
            drawn[rows] = drawn[rows[torch.randperm(len(rows), generator=generator)]]
        return drawn
    if not question.is_square:
        return shuffled_positives(question.offered, keys, seed)
    generator = torch.Generator().manual_seed(derive_seed("shuffled positives", seed))
    return torch.randperm(len(keys), generator=generator)
