"""Use of captions for the denoising error of held-out images: the noise levels at which the right caption helps, and
the choice of the right caption among others. Controls are chance and a regression that denoises nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.analysis.caption_regression import CaptionRegression, RegressionRule, choose_nearest
from diffprobe.analysis.statistics import bootstrap_interval, mean_of
from diffprobe.backbones.base import Condition, take_rows
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import EmptyClass
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import MetricRecord
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.caption_accuracy import METHOD, accuracy_record
from diffprobe.generative.image_table import ImageTable, load_table
from diffprobe.probes.caption.bag_of_words import WordVectors
from diffprobe.probes.score.diffusion_classifier import candidates_of, choose
from diffprobe.probes.score.staged_errors import Stage
from diffprobe.scoring.denoising_error import DenoisingError, Score
from diffprobe.scoring.noise_sets import spread_timesteps

CHANCE = "chance"
"""Name of the control that chooses at random."""
ON_WORDS, ON_TEXT_ENCODER = REGRESSIONS = ("regression_on_words", "regression_on_text_encoder")
"""Names of the controls of `regressions`."""


@dataclass(frozen=True)
class Encoded:
    """One split, ready to be scored.

    Attributes:
        table: images, keys, captions.
        latents: scaled VAE latents.
        groups: group of each sample; a wrong caption is always of another group.
        families: family of each sample; intervals resample whole families, whose samples are not independent.
    """

    table: ImageTable
    latents: Float[Tensor, "sample c h w"]
    groups: list[str]
    families: list[str]

    @property
    def captions(self) -> list[str]:
        """The main caption of each sample."""
        return [captions[0] for captions in self.table.captions]


def encode_split(
    data: DataConfig,
    split: str,
    score: DenoisingError,
    *,
    group_attribute: str | None,
    family_attribute: str | None,
    resolution: int,
    progress: ProgressDisplay,
    captioned: bool = True,
    chosen: Callable[[ImageTable], Int[Tensor, " row"]] | None = None,
) -> Encoded:
    """Load a split and encode its images; without a family attribute the groups are the families.

    Args:
        captioned: whether every sample needs a caption.
        chosen: returns the rows to encode; None encodes all.

    Raises: see `load_table`.
    """
    table = load_table(data, split, resolution=resolution, captioned=captioned)
    if chosen is not None:
        table = table.take(chosen(table))
    parts = []
    with progress.bar(len(table), f"{split}: encoding", unit="images", keep=False) as bar:
        for rows in torch.arange(len(table)).split(64):
            parts.append(score.encode_images(table.to_float(rows)))
            bar.update(len(rows))
    latents = torch.cat(parts)
    return Encoded(table, latents, table.groups(group_attribute), table.groups(family_attribute or group_attribute))


def text_use(
    score: Score,
    encoded: Encoded,
    conditions: Condition,
    split: str,
    *,
    n_timesteps: int,
    seed: int,
    progress: ProgressDisplay,
) -> list[MetricRecord]:
    """Denoising error with the right caption at each tenth of the schedule; its control is a caption of another sample.

    Args:
        conditions: encoded caption of each sample, one row each.
        n_timesteps: length of the training grid.
    Raises: EmptyClass if more than half of the samples share a group.
    """
    timesteps, n = spread_timesteps(10, n_timesteps), len(encoded.table)
    other = other_rows(encoded.groups, seed)
    parts = []
    with progress.bar(n, f"{split}: error with and without the right caption", unit="images") as bar:
        for rows in torch.arange(n).split(64):
            both = take_rows(conditions, torch.stack([rows, other[rows]], 1))
            keys = [encoded.table.keys[row] for row in rows.tolist()]
            parts.append(score(encoded.latents[rows], keys, both, timesteps))
            bar.update(len(rows))
    errors = torch.cat(parts).double()  # [sample, right or shuffled, timestep]
    gain = errors[:, 1] - errors[:, 0]
    records = [
        MetricRecord(
            name=f"denoising_error_t{t}",
            value=float(errors[:, 0, column].mean()),
            split=split,
            n=n,
            controls={"shuffled_captions": float(errors[:, 1, column].mean())},
            detail=_gain(gain[:, column], encoded.families, seed),
        )
        for column, t in enumerate(timesteps)
    ]
    tenths_won = int((gain.mean(0) > 0).sum())
    return [*records, MetricRecord(name="tenths_where_text_helps", value=tenths_won, split=split, n=n)]


def _gain(gain: Float[Tensor, " sample"], families: Sequence[str], seed: int) -> dict[str, Any]:
    """Error saved by the right caption, with an interval over families: variants of one drawing are not independent."""
    if len(set(families)) < 2:
        return {"gain": float(gain.mean())}  # one family has no spread
    interval = bootstrap_interval(mean_of(gain.numpy()), families, seed=seed, method=METHOD)
    return {"gain": interval.estimate, "gain_interval": [interval.low, interval.high], "level": interval.level}


def other_rows(groups: Sequence[str], seed: int) -> Tensor:
    """Return, per sample, the index of a sample of another group.

    The indices are a seeded shuffle, corrected where it hits the same group.

    Raises: EmptyClass if more than half of the samples share a group.
    """
    generator = torch.Generator().manual_seed(derive_seed("shuffled captions", seed))
    rows = torch.randperm(len(groups), generator=generator).tolist()
    for place, row in enumerate(rows):
        if groups[row] == groups[place]:
            fits = (
                other
                for other in range(len(rows))
                if groups[rows[other]] != groups[place] and groups[row] != groups[other]
            )
            swap = next(fits, None)
            if swap is None:
                raise EmptyClass(
                    f"more than half of {len(groups)} samples are of the group '{groups[row]}'.",
                    "each sample needs a wrong caption of another group",
                )
            rows[place], rows[swap] = rows[swap], rows[place]
    return torch.tensor(rows)


Expectation = Callable[[Sequence[str]], Float[Tensor, "caption number"]]
"""Maps captions to the latents that a regression expects for them."""


def regressions(
    train: Encoded,
    rule: RegressionRule,
    mean_states: Callable[[Sequence[str]], Float[Tensor, "caption width"]] | None,
    *,
    seed: int,
) -> dict[str, Expectation]:
    """Fit the controls of the caption choice: on the words of captions, and on states of the text encoder.

    Args:
        train: the split that the model was trained on, or one like it.
        rule: kernel, penalty, and number of images.
        mean_states: returns a vector of the text encoder for each caption; None leaves that control out.
        seed: seed of the choice of images.
    """
    rows = regression_rows(len(train.table), rule, seed)
    captions, families = ([values[row] for row in rows.tolist()] for values in (train.captions, train.families))
    inputs: dict[str, Callable[[Sequence[str]], Tensor]] = {
        ON_WORDS: WordVectors(captions),
    }
    if mean_states is not None:
        inputs[ON_TEXT_ENCODER] = mean_states
    fitted: dict[str, Expectation] = {}
    for name, vectors in inputs.items():
        regression = CaptionRegression(vectors(captions), train.latents[rows], families, rule)
        fitted[name] = _of_captions(vectors, regression)
    return fitted


def regression_rows(n: int, rule: RegressionRule, seed: int) -> Int[Tensor, " row"]:
    """Return the rows of `n` training images on which regressions are fitted, ascending: at most `rule.images`."""
    generator = torch.Generator().manual_seed(derive_seed("regression", seed))
    return torch.randperm(n, generator=generator)[: rule.images].sort().values


def _of_captions(vectors: Callable[[Sequence[str]], Tensor], regression: CaptionRegression) -> Expectation:
    return lambda captions: regression(vectors(captions))


def caption_choice(
    score: Score,
    encoded: Encoded,
    conditions: Condition,
    split: str,
    *,
    n: int,
    timesteps: Sequence[int],
    screening: Stage | None,
    expected: Mapping[str, Float[Tensor, "sample number"]],
    by: Sequence[str],
    seed: int,
    progress: ProgressDisplay,
) -> MetricRecord:
    """Share of images whose own caption among n has the least denoising error; controls: chance, and the regressions.

    Args:
        conditions: encoded caption of each sample, one row each.
        timesteps: over which errors are averaged, those of the screening first.
        screening: after its timesteps only the best candidates are scored at the others; None scores all at all.
        expected: per regression the latent expected for each sample's caption; may be empty. The regressions choose
            among the same candidates.
        by: attributes for whose values the accuracy is recorded too.
    Returns: `caption_of_<n>_accuracy`; see `accuracy_record`.
    Raises: EmptyClass with fewer than n groups.
    """
    table = encoded.table
    candidates = candidates_of(table.keys, encoded.groups, encoded.captions, n=n, seed=seed)
    with progress.bar(len(table), f"{split}: which of {n} captions", unit="images") as bar:
        choice = choose(
            score, encoded.latents, table.keys, conditions, candidates, timesteps,
            stages=() if screening is None else (screening,), on_batch=bar.update,
        )  # fmt: skip
    controls = {CHANCE: torch.full((len(table),), 1 / n, dtype=torch.float64)}
    for name, of_captions in expected.items():
        controls[name] = choose_nearest(of_captions, encoded.latents, candidates).double()
    detail: dict[str, Any] = {"timesteps": sorted(timesteps)}
    if screening is not None:
        detail["screening"] = {
            "timesteps": list(timesteps[: screening.n_timesteps]),
            "kept": screening.kept,
            "accuracy": float(choice.right_at_screening.double().mean()),
        }
    return accuracy_record(
        choice_metric(n),
        choice.right.double().numpy(),
        {name: values.numpy() for name, values in controls.items()},
        split=split,
        families=encoded.families,
        attributes=table.attributes,
        by=by,
        seed=seed,
        detail=detail,
    )


def choice_metric(n: int) -> str:
    """Return the name of the accuracy among n captions.

    >>> choice_metric(10)
    'caption_of_10_accuracy'
    """
    return f"caption_of_{n}_accuracy"
