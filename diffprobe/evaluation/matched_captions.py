"""Choice of a sample's caption among matched ones, which differ from it in one attribute."""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.analysis.caption_regression import choose_nearest
from diffprobe.backbones.base import Condition
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.caption_accuracy import accuracy_record
from diffprobe.evaluation.captions import CHANCE, Encoded, Expectation
from diffprobe.probes.score.diffusion_classifier import choose
from diffprobe.probes.score.matched_candidates import by_count, matched_candidates, written_candidates
from diffprobe.scoring.denoising_error import Score

_log = logging.getLogger(__name__)


def matched_metric(attribute: str) -> str:
    """Return the name of the accuracy among captions that differ in an attribute."""
    return f"matched_caption_accuracy_{attribute}"


def matched_choice(
    score: Score,
    encoded: Encoded,
    conditions: Condition,
    split: str,
    *,
    attributes: Sequence[str],
    timesteps: Sequence[int],
    expected: Mapping[str, Float[Tensor, "sample number"]],
    seed: int,
    progress: ProgressDisplay,
) -> list[MetricRecord]:
    """Share of images whose own caption, among matched ones, has the least denoising error.

    Controls are chance (the mean of 1 / number of candidates) and the regressions, on the same candidates.

    Args:
        conditions: encoded caption of each sample, one row each.
        attributes: one record for each; candidates have equal values of the others.
        timesteps: over which errors are averaged.
        expected: per regression the latent expected for each sample's caption; may be empty.
    Returns: `matched_caption_accuracy_<attribute>` over the samples that have a matched caption; the number of the
        others is `left_out` in its detail. An attribute without any such sample has no record, and a warning is
        logged.
    """
    table, records = encoded.table, []
    for attribute in attributes:
        candidates = matched_candidates(
            encoded.captions, table.attributes, encoded.families, name=attribute, equal=attributes
        )
        if not any(candidates):
            _log.warning(
                "split '%s': no two samples have captions that differ in '%s' alone; %s is not measured.",
                split, attribute, matched_metric(attribute),
            )  # fmt: skip
            continue
        records.append(
            _record(
                score,
                encoded,
                conditions,
                candidates,
                expected,
                split,
                attribute=attribute,
                timesteps=timesteps,
                seed=seed,
                progress=progress,
            )  # fmt: skip
        )
    return records


def written_choice(
    score: Score,
    encoded: Encoded,
    encode: Callable[[Sequence[str]], Condition],
    split: str,
    *,
    phrases: Mapping[str, str],
    most: int,
    timesteps: Sequence[int],
    expectations: Mapping[str, Expectation],
    seed: int,
    progress: ProgressDisplay,
) -> list[MetricRecord]:
    """As `matched_choice`, with candidates that are written: the phrase of the attribute has another value.

    Args:
        encode: encodes captions, one row each.
        phrases: attribute -> text with one `{}`, as captions state its value.
        most: largest number of candidates of a sample.
        expectations: the regressions.
    """
    table, records = encoded.table, []
    for attribute, phrase in phrases.items():
        written = written_candidates(
            encoded.captions, table.attributes, table.keys, name=attribute, phrase=phrase, most=most, seed=seed
        )
        texts = {caption: row for row, caption in enumerate(dict.fromkeys(text for texts in written for text in texts))}
        if not texts:
            _log.warning(
                "split '%s': no caption states the value of '%s' as '%s'; %s is not measured.",
                split, attribute, phrase, matched_metric(attribute),
            )  # fmt: skip
            continue
        captions = list(texts)
        expected = {name: of_captions(captions) for name, of_captions in expectations.items()}
        candidates = [[texts[text] for text in of_sample] for of_sample in written]
        records.append(
            _record(
                score,
                encoded,
                encode(captions),
                candidates,
                expected,
                split,
                attribute=attribute,
                timesteps=timesteps,
                seed=seed,
                progress=progress,
            )  # fmt: skip
        )
    return records


def _record(
    score: Score,
    encoded: Encoded,
    conditions: Condition,
    candidates: Sequence[Sequence[int]],
    expected: Mapping[str, Float[Tensor, "caption number"]],
    split: str,
    *,
    attribute: str,
    timesteps: Sequence[int],
    seed: int,
    progress: ProgressDisplay,
) -> MetricRecord:
    """Let each sample choose among its candidates, which are rows of `conditions` and of `expected`, its own first."""
    table = encoded.table
    kept = [row for row, of_sample in enumerate(candidates) if of_sample]
    right = torch.zeros(len(table), dtype=torch.float64)
    controls = {name: right.clone() for name in (CHANCE, *expected)}
    with progress.bar(len(kept), f"{split}: which {attribute}", unit="images") as bar:
        for rows, asked in by_count(candidates):
            keys = [table.keys[row] for row in rows.tolist()]
            chosen = choose(score, encoded.latents[rows], keys, conditions, asked, timesteps, on_batch=bar.update)
            right[rows] = chosen.right.double()
            controls[CHANCE][rows] = 1 / asked.shape[1]
            for name, of_captions in expected.items():
                controls[name][rows] = choose_nearest(of_captions, encoded.latents[rows], asked).double()
    return accuracy_record(
        matched_metric(attribute),
        right[kept].numpy(),
        {name: values[kept].numpy() for name, values in controls.items()},
        split=split,
        families=[encoded.families[row] for row in kept],
        attributes=[table.attributes[row] for row in kept],
        by=[attribute],
        seed=seed,
        detail={"timesteps": list(timesteps), "left_out": len(table) - len(kept)},
    )
