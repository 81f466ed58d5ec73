"""`diffprobe eval steering`: latents, directions, neurons, prompts and text embeddings compared at equal collateral.

A model of the world of `scenes` draws a prompt for each role, which leaves the factor open, and each method steers it
towards one value. A reader with measured errors reads all factors of every image. Success is the share of images with
the wanted value; collateral, the share of the other factors whose reading changes. Cells,
latents, neurons and directions are chosen before, on images of another seed (`steering_choice.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.analysis.dose_response import DataCloud
from diffprobe.analysis.matched_collateral import Matched, SteeringCurve, matched, point_intervals
from diffprobe.analysis.statistics import Interval
from diffprobe.backbones.cell import Cell
from diffprobe.backbones.intervention import Splice
from diffprobe.config.parse import record_tree
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, StoreMismatch, unknown
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import (
    BACKBONE,
    INPUT,
    RESULT_FILE,
    STORE,
    MetricRecord,
    StartTime,
    make_result,
    write_result,
)  # fmt: skip
from diffprobe.evaluation.certificates.steering import prompts_of_roles
from diffprobe.evaluation.factor_edits import (
    DIRECTION,
    LATENT,
    NEURON,
    RANDOM,
    REPLACE,
    FactorEdits,
    TrainingRows,
    factor_edits,
)
from diffprobe.evaluation.kept_draws import FOLDER, KeptDraws
from diffprobe.evaluation.load_sae_run import open_runs
from diffprobe.evaluation.page_features import open_features
from diffprobe.evaluation.probe_runs import ProbeRun
from diffprobe.evaluation.steered_model import SteeredModel, plan_steered
from diffprobe.evaluation.steering_choice import CHOSEN, Candidate, Choice, candidates
from diffprobe.evaluation.steering_settings import SteeringEvaluation
from diffprobe.evaluation.steering_tables import TABLE_FILE, TABLES_FILE, steering_tables, write_csv
from diffprobe.evaluation.steering_texts import EditTexts
from diffprobe.features.row_layout import by_place
from diffprobe.generative.scene_reader import SceneReader, load_reader
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.serialization import TENSORS
from diffprobe.runs.massive_notes import refuse_treated_run
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.scoring.edits.base import Edit
from diffprobe.scoring.edits.text import EditedText
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.world import SHIPPED, load_world

if TYPE_CHECKING:
    from diffprobe.backbones.extractor import DiffusionFeatures

KIND = "steering_eval"
"""Kind of the results."""
PROMPT, EMBEDDING = "prompt edit", "text embedding"
"""Names of the methods that change the text; the others edit a tap."""
METHODS = (LATENT, RANDOM, DIRECTION, NEURON, REPLACE, PROMPT, EMBEDDING)
"""All methods, in the order of the tables."""
SPLIT = "generated"
"""Split of the records."""
_AT_ONCE = 64


def evaluate_steering(config: SteeringEvaluation) -> Path:
    """Steer, read and compare; return the path of `result.json`. The tables are beside it.

    The folder is <output>/<experiment>/<first 12 digits of a digest>. Finished latents of each strength are kept below
    <output>/stores/steered, so that a call that was interrupted continues after them.

    Raises: ConfigError for a run with another number of autoencoders than one or one trained in several cells, for two
        runs of one cell, a run on features with treated massive channels, a factor that no caption states by itself, a
        cell whose tap cannot be replaced, or a window without a step; StoreMismatch for an autoencoder of another
        model; UnknownName for a value that the world lacks; EmptyClass for a value without training samples; errors of
        `open_features` and `load_reader`.
    """
    started_at, config = StartTime.now(), config.narrowed
    spec = load_world(Path(config.spec) if config.spec else SHIPPED)
    texts = {factor: EditTexts.of(spec, factor, *ends) for factor, ends in config.ends.items()}
    cells = [_open(config, spec, run) for run in (config.run, *config.more_runs)]
    names = [one.cell.name for one in cells]
    if len(set(names)) < len(names):
        raise ConfigError(f"two of the runs are of one cell; they are of: {', '.join(names)}.", fix="a run per cell")
    inputs = dict(cells[0].inputs)
    for one in cells[1:]:
        inputs |= {f"{INPUT}{one.cell.name}/{key.removeprefix(INPUT)}": value for key, value in one.inputs.items()}
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    comparison = _Comparison(config, spec, cells, texts)
    with (
        ProgressDisplay(transient=True) as progress,
        progress.bar(comparison.n_draws, "steering", unit="strengths", keep=False) as bar,
    ):
        metrics = comparison.records(bar.update)
    seeds = {"noise": config.seed, "draws": config.seed}
    if config.chooses:
        seeds["choice"] = config.seed_of_choice
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}", experiment=config.experiment, kind=KIND, config=tree, seeds=seeds,
        metrics=metrics, started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    write_result(result, run_dir / RESULT_FILE)
    write_csv(result, run_dir / TABLE_FILE)
    with atomic_file(run_dir / TABLES_FILE) as temporary:
        temporary.write_text(steering_tables(result), "utf-8")
    return run_dir / RESULT_FILE


@dataclass(frozen=True, kw_only=True, eq=False)
class _Opened:
    """The autoencoder, the training samples, and where both are from."""

    sae: KSAE
    cell: Cell
    training: TrainingRows
    attributes: Mapping[str, Tensor]
    names: Mapping[str, Sequence[str]]
    inputs: dict[str, str]


def _open(config: SteeringEvaluation, spec: WorldSpec, run: str) -> _Opened:
    runs = open_runs(run)
    folders = [(trained, folder) for trained in runs for folder in trained.saes().values()]
    if len(folders) != 1:
        raise ConfigError(
            f"'{run}' has {len(folders)} autoencoders; one is compared at a time.",
            fix="the folder of one member of the grid",
        )
    (trained, folder) = folders[0]
    refuse_treated_run(trained.result, "steering")
    cells = trained.cells(folder)
    if len(cells) != 1:
        raise ConfigError(
            f"the autoencoder was trained in {len(cells)} cells at once: {', '.join(cell.name for cell in cells)}.",
            fix="one that was trained in one cell: probe.cell=TAP@tTIMESTEP",
        )
    cell, digest = cells[0], checkpoint_digest(config.model)
    if trained.result.artifacts.get(BACKBONE) != digest:
        raise StoreMismatch(
            f"the autoencoder is of another model than '{config.model}'.",
            fix="model=FOLDER of the model that its run names as backbone",
        )
    source = open_features(ProbeRun(config=trained.config, result=trained.result, folder=trained.folder))
    for factor, values in config.ends.items():
        if factor not in source.attributes:
            raise unknown("attribute of the training samples", factor, source.attributes)
        for value in values:
            if value not in source.attributes[factor]:
                raise unknown(f"value of '{factor}' in the training samples", value, source.attributes[factor])
    table = source.table(trained.config.data.train_split)
    rows = by_place(table.features[cell.name], cell.name)[: config.n_train].float()
    rows = rows.reshape(len(rows), -1, rows.shape[-1])
    sae = KSAE.from_pretrained(folder).eval()
    inputs = {
        BACKBONE: digest, STORE: trained.result.artifacts[STORE], f"{INPUT}sae": digest_file(folder / TENSORS),
        f"{INPUT}world": spec.digest,
    }  # fmt: skip
    return _Opened(
        sae=sae, cell=cell, training=TrainingRows.of(sae, rows),
        attributes={factor: table.attributes[factor][: config.n_train] for factor in config.ends},
        names=source.attributes, inputs=inputs,
    )  # fmt: skip


class _Steered:
    """The model that draws, and the reader that reads; the same prompts and noise for every method.

    Args:
        reader: of the images.
        opened: the cell of the edits.
        seed: with the keys of the images, it fixes the noise that they start from.
        n_images: images per strength.
        tick: called after each strength that was drawn and read.
    """

    def __init__(
        self, config: SteeringEvaluation, spec: WorldSpec, reader: SceneReader, opened: _Opened, *, seed: int,
        n_images: int, tick: Callable[[int], object],
    ) -> None:  # fmt: skip
        self._config, self._opened, self._cell, self._seed, self._tick = config, opened, opened.cell, seed, tick
        if opened.cell.condition != "empty":
            raise ConfigError(
                f"cell '{opened.cell.name}' is read under the condition '{opened.cell.condition}'; finished images are "
                "read under the empty prompt.",
                fix="features.condition=empty",
            )
        self._pool = opened.cell.pool if Splice(opened.cell.pool).is_pooled else "mean"
        self._reader = reader
        planned = plan_steered(config.model, opened.cell, fix="model=FOLDER of a text-to-image model of the world")
        if planned.plan.resolution != self._reader.resolution:
            raise ConfigError(
                f"model '{config.model}' draws {planned.plan.resolution} pixels, the reader reads "
                f"{self._reader.resolution}.",
                fix="a reader that was trained with data.resolution of the model",
            )
        roles, texts = [role.name for role in spec.roles], prompts_of_roles(spec)
        rows = range(n_images)
        self.prompts = [texts[row % len(texts)] for row in rows]
        self._keys = [f"{roles[row % len(roles)]}-{row // len(roles):04d}" for row in rows]
        self._model = SteeredModel(
            planned, opened.cell, self.prompts, self._keys, sampling_steps=config.sampling_steps,
            guidance=config.guidance, seed=seed, window=config.window, edits_unconditional=False,
        )  # fmt: skip
        self._kept = KeptDraws(
            Path(config.output) / "stores" / FOLDER,
            {
                "backbone": opened.inputs[BACKBONE], "cell": opened.cell.name, "prompts": self.prompts,
                "keys": self._keys, "seed": seed, "guidance": config.guidance, "steps": config.sampling_steps,
                "window": config.window, "both": False,
            },
        )  # fmt: skip
        self._features: DiffusionFeatures | None = None

    def edit(self, edit: Edit, strengths: Sequence[float], wanted: "_Wanted", *, distances: bool = True) -> "_Found":
        """Return what an edit of the tap does at each strength."""
        return self._found(
            edit.identity, strengths, lambda strength: self._model.latents(edit, (strength,))[0], wanted, distances
        )

    def texts(
        self, identity: str, texts: Mapping[float, Sequence[str | EditedText]], wanted: "_Wanted", *,
        distances: bool = True,
    ) -> "_Found":  # fmt: skip
        """Return what other texts do, of each strength."""
        return self._found(
            identity, list(texts), lambda strength: self._model.of_texts(texts[strength]), wanted, distances
        )

    @cached_property
    def _untouched(self) -> tuple[Tensor, dict[str, NDArray[np.int64]]]:
        """Latents without an edit, and what the reader finds in their images."""
        kept = self._kept.get("untouched", (0.0,), lambda: {0.0: self._model.of_texts(self.prompts)})
        return kept[0.0], self.codes(kept[0.0])

    @cached_property
    def _cloud(self) -> DataCloud:
        """Training samples in the cell, each in the mean of its places."""
        pooled = self._opened.training.rows.double().mean(1).numpy()
        return DataCloud(features=pooled, neighbours=self._config.neighbours)

    @cached_property
    def _base_distance(self) -> float:
        return self.distance(self._untouched[0])

    def _found(
        self, identity: str, strengths: Sequence[float], draw: Callable[[float], Tensor], wanted: "_Wanted",
        distances: bool,
    ) -> "_Found":  # fmt: skip
        """Draw and read each strength, or take what is kept of it."""
        codes, measured = [self._untouched[1]], [self._base_distance] if distances else []
        for strength in strengths:
            latents = self._one(identity, strength, draw)
            codes.append(self.codes(latents))
            measured += [self.distance(latents)] if distances else []
            self._tick(1)
        stacked = {name: np.stack([one[name] for one in codes]) for name in codes[0]}
        curve = SteeringCurve.of_readings((0.0, *strengths), stacked, factor=wanted.factor, value=wanted.code)
        return _Found(curve=curve, distances=tuple(measured))

    def _one(self, identity: str, strength: float, draw: Callable[[float], Tensor]) -> Tensor:
        return self._kept.get(identity, (strength,), lambda: {strength: draw(strength)})[strength]

    def codes(self, latents: Tensor) -> dict[str, NDArray[np.int64]]:
        """Return what the reader finds in the images of latents: factor -> code of each."""
        parts: dict[str, list[NDArray[np.int64]]] = {}
        for chunk in latents.split(_AT_ONCE):
            for name, found in self._reader.read(self._model.images(chunk).numpy()).items():
                parts.setdefault(name, []).append(found.argmax(1).astype(np.int64))
        return {name: np.concatenate(values) for name, values in parts.items()}

    def distance(self, latents: Tensor) -> float:
        """Return the mean distance of images from the training samples, in the cell's tap."""
        from diffprobe.backbones.extractor import DiffusionFeatures

        if self._features is None:
            self._features = DiffusionFeatures.from_pretrained(
                self._config.model, taps=[self._cell.tap], timesteps=[self._cell.timestep], condition="empty",
                pool=self._pool, seed=self._seed,
            )  # fmt: skip
        found = self._features.from_latents(latents, keys=self._keys)
        return float(self._cloud.distances(next(iter(found.values())).cpu().double().numpy()).mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What one method did."""

    curve: SteeringCurve
    distances: tuple[float, ...]
    """From strength 0 on; empty where they were not asked for."""


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """The value of a factor that is wanted, by its code in the world."""

    factor: str
    code: int


class _Comparison:
    """The choice on images of one seed, then the score on images of another, a cell after the other.

    The model of one cell is loaded at a time, so that memory does not grow with the cells.
    """

    def __init__(
        self, config: SteeringEvaluation, spec: WorldSpec, cells: Sequence[_Opened], texts: Mapping[str, EditTexts]
    ) -> None:
        self._config, self._spec, self._cells, self._texts = config, spec, cells, texts
        self._reader = load_reader(config.reader, spec)
        self._choices = {factor: self._offer(factor) for factor in texts}
        self._wanted = {factor: _Wanted(factor=factor, code=of.values[0]) for factor, of in texts.items()}

    @property
    def n_draws(self) -> int:
        """Strengths that are drawn and read, but for 0."""
        config = self._config
        tries = sum(
            len(choice.offered[method]) for choice in self._choices.values() for method in CHOSEN if choice.open(method)
        )
        of_factor = (3 + config.n_random) * len(config.strengths) + len(config.replace_strengths)
        of_factor += 1 + len(config.text_strengths)
        levels = config.chooses and config.collateral is None
        return tries * len(config.strengths) + len(self._texts) * (of_factor + levels)

    def records(self, tick: Callable[[int], object]) -> list[MetricRecord]:
        """Choose, score and return the records of all factors."""
        chosen, config = self._choose(tick), self._config
        results: dict[str, dict[str, list[_Found]]] = {factor: {} for factor in self._texts}
        facts: dict[str, dict[str, str]] = {factor: {} for factor in self._texts}
        of_cell: dict[str, dict[str, str]] = {factor: {} for factor in self._texts}
        prompts: list[str] = []
        for place, opened in enumerate(self._cells):
            steered = self._steered(place, config.seed, config.n_images, tick)
            prompts = steered.prompts
            several = f"{opened.cell.tap}@t{opened.cell.timestep}: " if len(self._cells) > 1 else ""
            for factor, texts in self._texts.items():
                wanted = self._wanted[factor]
                for method, edits, fact in self._edits(factor, chosen[factor], place):
                    strengths = config.replace_strengths if method == REPLACE else config.strengths
                    results[factor][method] = [steered.edit(one, strengths, wanted) for one in edits]
                    facts[factor][method], of_cell[factor][method] = several + fact, opened.cell.name
                if place > 0:
                    continue
                moved = {one: texts.edited(config.n_images, one) for one in config.text_strengths}
                identity = digest_json([texts.positive, texts.negative])
                results[factor] |= {
                    PROMPT: [steered.texts(*texts.stated(config.n_images), wanted)],
                    EMBEDDING: [steered.texts(identity, moved, wanted)],
                }
                facts[factor] |= {
                    PROMPT: f"'{texts.plain[0]}' -> '{texts.positive[0]}'",
                    EMBEDDING: f"'{texts.positive[0]}' minus '{texts.negative[0]}'",
                }
                of_cell[factor] |= {PROMPT: opened.cell.name, EMBEDDING: opened.cell.name}
        found: list[MetricRecord] = []
        for factor, of in results.items():
            ordered = {name: of[name] for name in METHODS}
            found += _records(config, of_cell[factor], prompts, factor, ordered, facts[factor])
        return found

    def _steered(self, place: int, seed: int, n_images: int, tick: Callable[[int], object]) -> _Steered:
        return _Steered(
            self._config, self._spec, self._reader, self._cells[place], seed=seed, n_images=n_images, tick=tick
        )  # fmt: skip

    def _ends(self, factor: str, opened: _Opened) -> tuple[Tensor, Tensor]:
        """Return which training samples have the wanted value, and which that at the other end."""
        positive, negative = (opened.names[factor].index(name) for name in self._config.ends[factor])
        labels = opened.attributes[factor]
        return labels == positive, labels == negative

    def _offer(self, factor: str) -> Choice:
        choice, config = Choice(), self._config
        for place, opened in enumerate(self._cells):
            choice.offer(
                candidates(
                    opened.sae, opened.training, *self._ends(factor, opened), cell=place, n=config.n_candidates,
                    n_bank=config.n_bank, seed=config.seed,
                )
            )  # fmt: skip
        return choice

    def _choose(self, tick: Callable[[int], object]) -> dict[str, dict[str, Candidate]]:
        """Return the candidate of each factor and method, chosen on images of `seed_of_choice`."""
        config = self._config
        levels = dict.fromkeys(self._texts, config.collateral or 0.0)
        for place in range(len(self._cells)) if config.chooses else ():
            steered = self._steered(place, config.seed_of_choice, config.n_choice_images, tick)
            for factor, texts in self._texts.items():
                wanted, choice = self._wanted[factor], self._choices[factor]
                if place == 0 and config.collateral is None:
                    edit = texts.stated(config.n_choice_images)
                    curve = steered.texts(*edit, wanted, distances=False).curve
                    levels[factor] = float(curve.collateral[-1].mean())
                for method in filter(choice.open, CHOSEN):
                    choice.curves[method].extend(
                        steered.edit(one.edit, config.strengths, wanted, distances=False).curve
                        for one in choice.offered[method] if one.cell == place
                    )  # fmt: skip
        return {
            factor: {method: choice.best(method, levels[factor]) for method in CHOSEN}
            for factor, choice in self._choices.items()
        }

    def _edits(
        self, factor: str, chosen: Mapping[str, Candidate], place: int
    ) -> list[tuple[str, tuple[Edit, ...], str]]:
        """Return method, edits and fact of what was chosen in one cell."""
        config, opened = self._config, self._cells[place]
        followers = {LATENT: (LATENT, RANDOM, REPLACE), DIRECTION: (DIRECTION,), NEURON: (NEURON,)}
        found: list[tuple[str, tuple[Edit, ...], str]] = []
        for by, methods in followers.items():
            one = chosen[by]
            if one.cell != place:
                continue
            made: FactorEdits = factor_edits(
                opened.sae, opened.training, *self._ends(factor, opened), n_random=config.n_random,
                n_bank=config.n_bank, seed=config.seed, latent=one.unit if by == LATENT else None,
                neuron=one.unit if by == NEURON else None,
            )  # fmt: skip
            fact = self._choices[factor].fact(by, config.seed_of_choice, config.n_choice_images)
            for method in methods:
                found.append((method, made.edits[method], made.facts[method] + (fact if method == by else "")))
        return found


def _records(
    config: SteeringEvaluation, cells: Mapping[str, str], prompts: Sequence[str], factor: str,
    results: Mapping[str, list[_Found]], facts: Mapping[str, str],
) -> list[MetricRecord]:  # fmt: skip
    """Return the records of a factor: each point of each curve, and the success at equal collateral."""
    curves = {name: SteeringCurve.mean([one.curve for one in found]) for name, found in results.items()}
    value, n = config.ends[factor][0], len(prompts)

    def record(name: str, method: str, number: float, **detail: object) -> MetricRecord:
        return MetricRecord(
            name=name, value=number, split=SPLIT, n=n, cell=cells[method], target=factor, probe=method,
            detail={"value": value, **detail},
        )  # fmt: skip

    records = []
    for method, curve in curves.items():
        distances = np.mean([one.distances for one in results[method]], axis=0)
        points = point_intervals(
            curve, prompts, n_resamples=config.n_resamples, coverage=config.level, seed=config.seed
        )  # fmt: skip
        for strength, (success, collateral), distance in zip(curve.strengths, points, distances, strict=True):
            records.append(record("success", method, success.estimate, strength=strength, interval=_ends(success)))
            records.append(
                record("collateral", method, collateral.estimate, strength=strength, interval=_ends(collateral))
            )
            records.append(record("distance", method, float(distance), strength=strength))
    at: dict[str, Matched] = matched(
        curves, prompts, reference=PROMPT, level=config.collateral, n_resamples=config.n_resamples,
        coverage=config.level, seed=config.seed,
    )  # fmt: skip
    for method, one in at.items():
        difference = one.minus_reference
        extra = {"edits": len(results[method])} if method == RANDOM else {}
        records.append(
            record(
                "matched_success", method, one.success.estimate, interval=_ends(one.success), collateral=one.level,
                reaches=one.reaches, chosen=facts[method], **extra,
                **({} if difference is None else {
                    "minus_prompt_edit": difference.estimate, "minus_prompt_edit_interval": _ends(difference),
                }),
            )
        )  # fmt: skip
    return records


def _ends(found: Interval) -> list[float]:
    return [found.low, found.high]
