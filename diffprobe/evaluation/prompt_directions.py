"""`diffprobe directions`: directions from a store of prompt latents, as paired mean differences (one per cell)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffprobe.analysis.prompt_directions import (
    HalvesCosine,
    PromptPairs,
    halves_cosine,
    held_out_pairs,
    pair_prompts,
)
from diffprobe.backbones.cell import Cell, parse_pool
from diffprobe.config.validators import at_least
from diffprobe.core.column_names import path_part
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, EmptyClass, StoreMismatch
from diffprobe.core.groups import SINGLE_SAMPLES
from diffprobe.core.result import (
    BACKBONE,
    RESULT_FILE,
    SHARDS,
    STORE,
    MetricRecord,
    StartTime,
    make_result,
    write_result,
)
from diffprobe.evaluation.decode import open_text_encoder
from diffprobe.evaluation.direction_on_images import BASELINES, CaptionScores, ImageSettings, score_on_images
from diffprobe.features.cell_selection import choose_cells
from diffprobe.features.massive_channels import refuse_treated
from diffprobe.features.prompt_latents import PromptLatents, load_prompt_latents
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.direction.base import Direction
from diffprobe.probes.serialization import SETTINGS
from diffprobe.runs.provenance import backbone_digest

KIND = "prompt_directions"
"""Kind of the result."""
FOLDER = "directions"
"""Folder of the runs, below that of all runs."""
ESTIMATOR = "paired_mean_difference"
"""Name of the estimate in a saved direction."""
TEXT_ESTIMATOR = "text_mean_difference"
"""Name of the same difference in the vectors that a text encoder gives the prompts."""
_WITH_PLACES = ("none", "tokens")


@dataclass(frozen=True, kw_only=True)
class PromptDirectionConfig:
    """Settings of `diffprobe directions`."""

    target: str = ""
    """Attribute of the prompts that differs within a pair."""
    positive: str = ""
    """Its value at the positive end."""
    negative: str = ""
    """Its value at the negative end."""
    context: str = "context"
    """Attribute that both prompts of a pair have in common."""
    cells: tuple[str, ...] | None = None
    """Cells, or prefixes of their names; None for all that have one vector per sample."""
    split: str | None = None
    """Split of the prompts; None for all of them."""
    n_halves: int = 100
    """Random divisions into halves."""
    level: float = 0.95
    """Share of the divisions that their range covers."""
    seed: int = 0
    """Seed of the divisions, of resamples of images and of random directions."""
    images: tuple[str, ...] = ()
    """Folders of stores of real images in the same cells, on which the directions are scored; () scores none."""
    image_split: str = "test"
    """Split of the images."""
    group_by: str = SINGLE_SAMPLES
    """Attribute of the images that are resampled together, such as family, or "sample"."""
    n_resamples: int = 1000
    """Resamples of groups of images."""
    n_random: int = 1000
    """Random directions that are scored on the images."""
    text_encoder: str | None = None
    """Name or folder of a pipeline whose CLIP text encoder gives the same difference without images; None for none."""

    def __post_init__(self) -> None:
        missing = [name for name in ("target", "positive", "negative", "context") if not getattr(self, name)]
        if missing:
            raise ConfigError(
                f"directions from prompts need {', '.join(missing)}.",
                fix="target=ATTRIBUTE positive=VALUE negative=VALUE context=ATTRIBUTE",
            )
        at_least(1, n_halves=self.n_halves, n_resamples=self.n_resamples)
        at_least(19, n_random=self.n_random)
        of_images = ("image_split", "group_by", "n_resamples", "n_random")
        idle = [name for name in of_images if getattr(self, name) != getattr(type(self), name)]
        if idle and not self.images:
            raise ConfigError(f"{', '.join(idle)} without images: no images are scored.", fix="images=[STORE]")
        if not 0 < self.level < 1:
            raise ConfigError(f"level={self.level:g} is out of range: above 0 and below 1.")


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptDirection:
    """A direction from prompts."""

    direction: Direction
    """The direction; its scale is the length of the mean difference."""
    over_contexts: HalvesCosine
    """Agreement of two halves of the contexts."""
    over_seeds: HalvesCosine
    """Agreement of two halves of the seeds."""
    held_out_pairs: float
    """Share of pairs that the direction of the other contexts puts in the right order, 0..1."""


def prompt_direction(
    latents: np.ndarray, pairs: PromptPairs, cell: str, config: PromptDirectionConfig
) -> PromptDirection:
    """Return the direction of one cell.

    Args:
        latents: shape (prompts, seeds, d).

    Raises: ConfigError for one seed; EmptyClass, NonFinite.
    """
    changes = pairs.differences(latents)
    if changes.shape[1] < 2:
        raise ConfigError(
            "the store has one seed per prompt: its noise cannot be separated from what all seeds share.",
            fix="sampling.seeds=8 in the extraction",
        )
    mean = changes.mean((0, 1))
    norm = float(np.linalg.norm(mean))
    if not norm > 0:
        raise EmptyClass(f"cell '{cell}': the differences of the pairs cancel, so there is no direction.")
    unit = mean / norm
    direction = Direction(
        vector=torch.from_numpy(unit).float(), scale=norm, midpoint=float(pairs.midpoint(latents) @ unit),
        target=config.target, positive=config.positive, negative=config.negative, cell=cell, estimator=ESTIMATOR,
    )  # fmt: skip
    halves = {"n_halves": config.n_halves, "level": config.level, "seed": config.seed}
    return PromptDirection(
        direction=direction,
        over_contexts=halves_cosine(changes.mean(1), **halves),  # type: ignore[arg-type]
        over_seeds=halves_cosine(changes.mean(0), **halves),  # type: ignore[arg-type]
        held_out_pairs=held_out_pairs(changes),
    )


def make_directions(
    store: Path | str,
    config: PromptDirectionConfig,
    *,
    output: Path | str = "runs",
    announce: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write one direction per cell, and return the path of `result.json`.

    The folder is <output>/directions/<first 12 digits of a digest>, with the directions below `probes`.

    Args:
        store: folder of a store of prompt latents.
        announce: receives what is left out.

    Raises: see `pair_prompts`, `prompt_direction`, `load_prompt_latents` and `score_on_images`; UnknownName for a cell
        or split; ConfigError for a cell with more than one vector per sample; StoreMismatch for images of another
        backbone.
    """
    started_at = StartTime.now()
    opened = FeatureStore.open(store)
    cells = _cells(opened, config, announce)
    pairs, found, prompts = None, list[PromptDirection](), list[str]()
    for cell in cells:
        latents = load_prompt_latents(opened, cell, split=config.split)
        pairs, prompts = pairs or _pairs(latents, config, announce), latents.prompts
        found.append(prompt_direction(latents.features.numpy(), pairs, cell, config))
    assert pairs is not None
    manifest = opened.manifest
    images = tuple(FeatureStore.open(folder) for folder in config.images)
    _require_backbone(images, manifest.backbone, cells)
    inputs = {
        STORE: manifest.digest, BACKBONE: backbone_digest(manifest.backbone), SHARDS: str(manifest.data["shard_set"]),
        **{f"{STORE}/images/{number}": one.manifest.digest for number, one in enumerate(images)},
    }  # fmt: skip
    tree = {"store": str(store), **dataclasses.asdict(config)}
    splits = [config.split] if config.split else list(opened.splits)
    if len(splits) == 1:  # `decode` refuses to read a direction on the samples that it was made from
        tree["data"] = {"train_split": splits[0]}
    named = {key: value for key, value in tree.items() if key != "store"}
    place = Path(output) / FOLDER / digest_json({**named, "inputs": inputs})[:12]
    artifacts = dict(inputs)
    for one in found:
        part = f"probes/{path_part(config.target)}/{one.direction.cell.replace(':', '.')}"
        artifacts[part] = digest_file(one.direction.save(place / part) / SETTINGS)
    metrics = [record for one in found for record in _records(one, pairs, "+".join(splits))]
    changes = None if config.text_encoder is None else _text_changes(prompts, pairs, config, announce)
    if images:
        settings = ImageSettings(
            stores=images, split=config.image_split, group_by=config.group_by, n_resamples=config.n_resamples,
            n_random=config.n_random, level=config.level, seed=config.seed,
        )  # fmt: skip
        text = None if changes is None else _caption_scores(changes, config)
        metrics += score_on_images([one.direction for one in found], settings, text=text, announce=announce)
    if changes is not None:
        metrics += _text_records(changes, pairs, config, "+".join(splits))
    result = make_result(
        run=place.name, experiment=FOLDER, kind=KIND, config=tree, seeds={"halves": config.seed}, metrics=metrics,
        started_at=started_at, artifacts=artifacts,
    )  # fmt: skip
    write_result(result, place / RESULT_FILE)
    return place / RESULT_FILE


def _require_backbone(images: Sequence[FeatureStore], backbone: Mapping[str, Any], cells: Sequence[str]) -> None:
    """Refuse features of images by another backbone, or with treated channels, in a cell that is read.

    Raises: StoreMismatch, ConfigError.
    """
    own = backbone_digest(backbone)
    for store in images:
        shared = [cell for cell in cells if cell in store.cells and cell not in BASELINES]
        if shared:
            refuse_treated(store.manifest.data, "an extraction from prompts")
        if shared and backbone_digest(store.manifest.backbone) != own:
            raise StoreMismatch(
                f"the images in '{store.path}' were read by another backbone than the prompts, in '{shared[0]}'.",
                "random weights, and other weights of the same model, are other backbones",
                fix="extract the images with the backbone of the prompts",
            )


def _cells(store: FeatureStore, config: PromptDirectionConfig, announce: Callable[[str], None]) -> tuple[str, ...]:
    """Return the chosen cells. Raises: ConfigError for one with places, or if none is left; UnknownName."""
    chosen = choose_cells(config.cells, store.cells)
    spatial = [name for name in chosen if parse_pool(Cell.parse(name).pool)[0] in _WITH_PLACES]
    if spatial and config.cells is not None:
        raise ConfigError(
            f"cell '{spatial[0]}' has more than one vector per sample; a direction needs one.",
            fix="a cell pooled by mean, max or gridK",
        )
    kept = tuple(name for name in chosen if name not in spatial)
    if not kept:
        raise ConfigError(
            f"store '{store.path}' has no cell with one vector per sample.", fix="features.pool=mean in the extraction"
        )
    if spatial:
        announce(f"left out, since they have more than one vector per sample: {', '.join(spatial)}")
    return kept


def _pairs(latents: PromptLatents, config: PromptDirectionConfig, announce: Callable[[str], None]) -> PromptPairs:
    pairs = pair_prompts(
        latents.prompts, latents.attributes, target=config.target, positive=config.positive, negative=config.negative,
        context=config.context,
    )  # fmt: skip
    if pairs.n_left_out:
        announce(f"{pairs.n_left_out} prompts with another value of '{config.target}', or none, are left out")
    return pairs


def _records(one: PromptDirection, pairs: PromptPairs, split: str) -> list[MetricRecord]:
    direction, n_seeds = one.direction, one.over_seeds.n
    detail = {
        "positive": direction.positive, "negative": direction.negative, "contexts": len(pairs.contexts),
        "seeds": n_seeds, "left_out": pairs.n_left_out,
    }  # fmt: skip
    shared = {
        "split": split, "cell": direction.cell, "target": direction.target, "probe": direction.estimator,
        "n": len(pairs.contexts) * n_seeds,
    }  # fmt: skip
    records = [MetricRecord(name="norm", value=direction.scale, detail=detail, **shared)]  # type: ignore[arg-type]
    for name, halves in (("contexts", one.over_contexts), ("seeds", one.over_seeds)):
        records.append(
            MetricRecord(
                name=f"split_half_{name}", value=halves.mean,
                detail={**detail, "range_over_halves": [halves.low, halves.high]}, **shared,  # type: ignore[arg-type]
            )
        )  # fmt: skip
    records.append(
        MetricRecord(
            name="held_out_pairs", value=one.held_out_pairs, controls={"chance": 0.5}, detail=detail,
            **shared,  # type: ignore[arg-type]
        )
    )  # fmt: skip
    return records


def _text_changes(
    prompts: Sequence[str], pairs: PromptPairs, config: PromptDirectionConfig, announce: Callable[[str], None]
) -> np.ndarray | None:
    """Return the differences of the pairs in the text encoder, (contexts, 1, d); None if all of them are 0."""
    vectors = open_text_encoder(str(config.text_encoder)).mean_states(prompts).double().numpy()[:, None]
    try:
        return pairs.differences(vectors)
    except EmptyClass:
        announce("the text encoder does not distinguish the ends: its vectors of both prompts of each pair are equal")
        return None


def _caption_scores(changes: np.ndarray, config: PromptDirectionConfig) -> CaptionScores:
    """Return what gives captions their coordinate along the mean difference of the text encoder."""
    encoder, vector = open_text_encoder(str(config.text_encoder)), changes.mean((0, 1))
    return lambda captions: encoder.mean_states(captions).double().numpy() @ vector


def _text_records(
    changes: np.ndarray, pairs: PromptPairs, config: PromptDirectionConfig, split: str
) -> list[MetricRecord]:
    """Return norm, agreement over contexts and held-out pairs of the difference in the vectors of the prompts."""
    halves = halves_cosine(changes.mean(1), n_halves=config.n_halves, level=config.level, seed=config.seed)
    detail = {
        "positive": config.positive, "negative": config.negative, "contexts": len(pairs.contexts),
        "text_encoder": config.text_encoder, "left_out": pairs.n_left_out,
    }  # fmt: skip
    shared = {"split": split, "target": config.target, "probe": TEXT_ESTIMATOR, "n": len(pairs.contexts)}
    return [
        MetricRecord(
            name="norm", value=float(np.linalg.norm(changes.mean((0, 1)))), detail=detail,
            **shared,  # type: ignore[arg-type]
        ),
        MetricRecord(
            name="split_half_contexts", value=halves.mean,
            detail={**detail, "range_over_halves": [halves.low, halves.high]}, **shared,  # type: ignore[arg-type]
        ),
        MetricRecord(
            name="held_out_pairs", value=held_out_pairs(changes), controls={"chance": 0.5}, detail=detail,
            **shared,  # type: ignore[arg-type]
        ),
    ]  # fmt: skip
