"""`diffprobe eval directions`: directions from prompts against counterfactual truth, in all cells of a model.

Prompts that differ in one factor of the world of `scenes` are sampled; the features are read under the prompt
(conditional), and from the generated latent that is noised again and read under the empty prompt (re-read). Scenes that
differ in the same factor are rendered and read in the same cells.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.direction import DirectionRules, PairFeatures
from diffprobe.analysis.prompt_agreement import PromptAgreement, prompt_agreement
from diffprobe.analysis.prompt_directions import pair_prompts
from diffprobe.backbones.cell import Cell
from diffprobe.backbones.prompt_plan import CONDITIONAL, plan_prompts
from diffprobe.config.parse import record_tree
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.config.validators import a_device, at_least
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE, INPUT, RESULT_FILE, StartTime, make_result, write_result
from diffprobe.evaluation.certificates.direction import counterfactual_ends
from diffprobe.evaluation.direction_records import CONDITIONAL_READING, REREAD_READING, Comparison, records
from diffprobe.evaluation.direction_tables import TABLES_FILE, direction_tables
from diffprobe.evaluation.scene_cells import CONTROLS, SceneCells
from diffprobe.evaluation.scene_prompts import CONTEXT, contrast_prompts, uncaptioned, write_prompts
from diffprobe.features.extract_prompts import extract_prompts
from diffprobe.features.prompt_latents import load_prompt_latents
from diffprobe.features.reader import FeatureStore
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.shards.prompt_table import Prompt
from diffprobe.shards.scenes.factors import Scenes, sample
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.splits import split_indices
from diffprobe.shards.scenes.world import SHIPPED, load_world

KIND = "directions_eval"
"""Kind of the results."""
_PLACES = ("none", "tokens")

Features = dict[str, NDArray[np.float32]]
"""Cell -> features."""


@dataclass(frozen=True, kw_only=True)
class DirectionsEvaluation:
    """Settings of `diffprobe eval directions` (experiment files of kind `evaluate_directions`)."""

    experiment: str
    """Name of the experiment."""
    model: str
    """Folder of a text-to-image model of the world, or the name of a shipped one."""
    world: str = "planted"
    """World whose scenes are drawn; the worlds differ in the rates of the texture alone."""
    spec: str | None = None
    """File of the world; None for the one that ships with diffprobe."""
    factors: tuple[str, ...]
    """Factors whose values captions state."""
    ends: dict[str, tuple[str, ...]]
    """Factor -> its positive and its negative value; factors that are not in `factors` have no effect."""
    taps: tuple[str, ...]
    """Module paths or aliases: mid_block, up_blocks.*."""
    timesteps: tuple[int, ...]
    """Timesteps of all cells; each is one of the sampler's."""
    pool: str = "grid2"
    """Pooling: mean, max or gridK."""
    guidance: float = 2.0
    """Added to the scale of classifier-free guidance: 0 is none (scale 1 in diffusers), 2 is scale 3."""
    sampling_steps: int = 20
    """Sampling steps: DDIM, or Euler for a flow model."""
    seeds: int = 3
    """Samples per prompt: sample s of all prompts starts from the same noise, and is noised again with the same."""
    contexts_per_role: int = 1
    """Captions per role; each is written with either value of a factor."""
    n_pairs: int = 200
    """Scenes that are drawn for the counterfactual pairs of a factor; those held out on one side are not paired."""
    least_split_half: float = 0.5
    """Least cosine of the counterfactual directions of two halves of the pairs: below it a cell has no direction to
    agree with, and is not counted."""
    least_agreement: float = 0.8
    """Least agreement of a cell that is counted as agreeing."""
    n_random: int = 1000
    """Random directions of the null distribution; p is at least one over one more."""
    n_resamples: int = 500
    """Bootstrap resamples of pairs."""
    n_halves: int = 100
    """Random divisions of pairs and contexts into halves."""
    alpha: float = 0.05
    """Largest q of a cell that is counted as agreeing: p against random directions, adjusted for the cells' number."""
    level: float = 0.95
    """Coverage of the intervals."""
    device: str = "auto"
    """Torch device."""
    seed: int = 0
    """Seed of scenes, captions, noise and draws."""
    output: str = "runs"
    """Folder of runs; the prompt latents are in its folder `stores`."""

    def __post_init__(self) -> None:
        at_least(1, sampling_steps=self.sampling_steps, contexts_per_role=self.contexts_per_role)
        at_least(2, seeds=self.seeds)
        at_least(8, n_pairs=self.n_pairs)
        at_least(19, n_random=self.n_random)
        at_least(1, n_resamples=self.n_resamples, n_halves=self.n_halves)
        at_least(0, guidance=self.guidance)
        a_device(self.device)
        for name in ("factors", "taps", "timesteps"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name} is empty or has duplicates: {', '.join(map(str, values))}.")
        if self.pool.startswith(_PLACES):
            raise ConfigError(f"pool={self.pool}: a direction needs one vector per sample.", fix="mean, max or gridK")
        for name in ("alpha", "level", "least_split_half", "least_agreement"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ConfigError(f"{name}={value:g} is out of range: above 0 and below 1.")
        for factor in self.factors:
            if len(self.ends.get(factor, ())) != 2:
                raise ConfigError(
                    f"ends.{factor} must be the positive and the negative value of '{factor}'.",
                    f"given: {', '.join(self.ends.get(factor, ())) or '(none)'}",
                    fix=f"ends.{factor}=[POSITIVE,NEGATIVE]",
                )


def evaluate_directions(config: DirectionsEvaluation) -> Path:
    """Sample, render, read and compare; return the path of `result.json`. The tables are beside it.

    The folder is <output>/<experiment>/<first 12 digits of a digest>. Prompt latents are kept in <output>/stores, for
    other thresholds and for `diffprobe directions`.

    Raises: UnknownName for a world, factor or value that the file lacks; ConfigError for a factor that no caption
        states; EmptyClass for too few contexts or pairs; those of `plan_prompts`, `extract_prompts` and `SceneCells`.
    """
    started_at = StartTime.now()
    spec = load_world(Path(config.spec) if config.spec else SHIPPED)
    spec.world(config.world)
    prompts = {factor: _prompts(spec, config, factor) for factor in config.factors}
    inputs = {f"{INPUT}world": spec.digest, BACKBONE: checkpoint_digest(config.model)}
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    plan_prompts(_extraction(config, "prompts.jsonl"))  # errors of taps and timesteps, before anything is written
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    cells = SceneCells(
        spec, config.model, taps=config.taps, timesteps=config.timesteps, pool=config.pool, noise_seed=config.seed,
        device=config.device,
    )  # fmt: skip
    stores = {factor: _sample(config, prompts[factor], run_dir / "prompts" / f"{factor}.jsonl") for factor in prompts}
    truth = _truth(spec, config, cells)
    compared = _compare(config, cells.cells, stores, truth)
    metrics = records(
        compared, least_split_half=config.least_split_half, least_agreement=config.least_agreement, alpha=config.alpha,
        not_applicable=dict.fromkeys(uncaptioned(spec), "no caption states it, so no prompt names it"),
        n_factors=len(spec.values),
    )  # fmt: skip
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}", experiment=config.experiment, kind=KIND, config=tree,
        seeds={"seed": config.seed}, metrics=metrics, started_at=started_at,
        artifacts={**inputs, **{f"{INPUT}store/{factor}": store.manifest.digest for factor, store in stores.items()}},
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    with atomic_file(run_dir / TABLES_FILE) as temporary:
        temporary.write_text(direction_tables(result), "utf-8")
    return run_dir / RESULT_FILE


def _prompts(spec: WorldSpec, config: DirectionsEvaluation, factor: str) -> list[Prompt]:
    positive, negative = config.ends[factor]
    return contrast_prompts(
        spec, factor, positive, negative, n_per_role=config.contexts_per_role, seed=config.seed, world=config.world
    )


def _extraction(config: DirectionsEvaluation, prompts: str) -> PromptExtraction:
    return PromptExtraction(
        experiment=config.experiment,
        backbone=BackboneConfig(path=config.model, device=config.device),
        prompts=prompts,
        features=PromptFeaturesConfig(
            taps=config.taps, timesteps=config.timesteps, reread=config.timesteps, pool=config.pool,
            keep=("controls",), store=str(Path(config.output) / "stores"),
        ),
        sampling=SamplingConfig(
            steps=config.sampling_steps, guidance=config.guidance, seeds=config.seeds, seed=config.seed
        ),
    )  # fmt: skip


def _sample(config: DirectionsEvaluation, prompts: list[Prompt], path: Path) -> FeatureStore:
    """Return the store of the latents of one factor's prompts, sampling what it lacks."""
    write_prompts(prompts, path)
    return FeatureStore.open(extract_prompts(_extraction(config, str(path))))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Truth:
    """Features of both members of the pairs of a factor, in all cells."""

    negative: Features
    positive: Features

    def changes(self, cell: str) -> NDArray[np.float64]:
        return self.positive[cell].astype(np.float64) - self.negative[cell]

    def pairs(self, cell: str) -> PairFeatures:
        return PairFeatures(
            own=self.changes(cell), negative=self.negative[cell].astype(np.float64),
            positive=self.positive[cell].astype(np.float64), others={},
        )  # fmt: skip


def _truth(spec: WorldSpec, config: DirectionsEvaluation, cells: SceneCells) -> dict[str, _Truth]:
    indices = split_indices(spec, config.seed, "test", config.n_pairs, world=config.world)
    drawn = sample(spec, config.seed, indices, world=config.world)
    members: dict[str, tuple[Scenes, Scenes]] = {}
    for factor in config.factors:
        positive, negative = (spec.code(factor, value) for value in config.ends[factor])
        members[factor] = counterfactual_ends(spec, drawn, factor, negative, positive)
    total = sum(len(low) + len(high) for low, high in members.values())
    with (
        ProgressDisplay(transient=True) as progress,
        progress.bar(total, "counterfactual pairs", unit="scenes", keep=False) as bar,
    ):
        return {
            factor: _Truth(negative=cells.read(low, bar), positive=cells.read(high, bar))
            for factor, (low, high) in members.items()
        }


def _compare(
    config: DirectionsEvaluation, cells: list[str], stores: Mapping[str, FeatureStore], truth: Mapping[str, _Truth]
) -> list[Comparison]:
    """Compare the direction of each factor and reading with its truth in each cell."""
    readings = [
        *((CONDITIONAL_READING, replace(Cell.parse(cell), condition=CONDITIONAL).name, cell) for cell in cells),
        *((REREAD_READING, cell, cell) for cell in cells),
        *((control, cell, cell) for control, cell in CONTROLS.items()),
    ]
    rules = DirectionRules(
        level=config.level, n_random=config.n_random, n_resamples=config.n_resamples, n_halves=config.n_halves,
        seed=config.seed,
    )  # fmt: skip
    compared = []
    with (
        ProgressDisplay(transient=True) as progress,
        progress.bar(len(stores) * len(readings), "compare", unit="directions", keep=False) as bar,
    ):
        for factor, store in stores.items():
            positive, negative = config.ends[factor]
            for reading, own_cell, truth_cell in readings:
                latents = load_prompt_latents(store, own_cell)
                pairs = pair_prompts(
                    latents.prompts, latents.attributes, target=factor, positive=positive, negative=negative,
                    context=CONTEXT,
                )  # fmt: skip
                changes = pairs.differences(latents.features.numpy())
                others = {other: truth[other].changes(truth_cell) for other in truth if other != factor}
                found: PromptAgreement = prompt_agreement(changes, truth[factor].pairs(truth_cell), rules, others)
                compared.append(
                    Comparison(
                        factor=factor,
                        positive=positive,
                        negative=negative,
                        reading=reading,
                        cell=own_cell,
                        truth_cell=truth_cell,
                        n_contexts=len(pairs.contexts),
                        found=found,
                    )  # fmt: skip
                )
                bar.update(1)
    return compared
