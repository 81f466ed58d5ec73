"""`diffprobe eval steering`: latents, directions, neurons, prompts and text embeddings compared at equal collateral.

A model of the world of `scenes` draws a prompt for each role, which leaves the factor open, and each method steers it
towards one value. A reader with measured errors reads all factors of every image. Success is the share of images with
the wanted value; collateral, the share of the other factors whose reading changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from diffprobe.evaluation.factor_edits import RANDOM, REPLACE, FactorEdits, TrainingRows, factor_edits
from diffprobe.evaluation.kept_draws import FOLDER, Draws, KeptDraws
from diffprobe.evaluation.load_sae_run import open_runs
from diffprobe.evaluation.page_features import open_features
from diffprobe.evaluation.probe_runs import ProbeRun
from diffprobe.evaluation.steered_model import SteeredModel, plan_steered
from diffprobe.evaluation.steering_settings import SteeringEvaluation
from diffprobe.evaluation.steering_tables import TABLE_FILE, TABLES_FILE, steering_tables, write_csv
from diffprobe.features.row_layout import by_place
from diffprobe.generative.scene_reader import SceneReader, load_reader
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.serialization import TENSORS
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.scoring.edits.text import EditedText
from diffprobe.shards.scenes.captions import write
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.world import SHIPPED, load_world

if TYPE_CHECKING:
    from diffprobe.backbones.extractor import DiffusionFeatures

KIND = "steering_eval"
"""Kind of the results."""
PROMPT, EMBEDDING = "prompt edit", "text embedding"
"""Names of the methods that change the text; the others edit a tap."""
SPLIT = "generated"
"""Split of the records."""
_AT_ONCE = 64


def evaluate_steering(config: SteeringEvaluation) -> Path:
    """Steer, read and compare; return the path of `result.json`. The tables are beside it.

    The folder is <output>/<experiment>/<first 12 digits of a digest>. Finished latents are kept below
    <output>/stores/steered, so that a call that was interrupted continues after them.

    Raises: ConfigError for a run with another number of autoencoders than one or one trained in several cells, for a
        factor that no caption states by itself, a cell whose tap cannot be replaced, or a window without a step;
        StoreMismatch for an autoencoder of another model; UnknownName for a value that the world lacks; EmptyClass for
        a value without training samples; errors of `open_features` and `load_reader`.
    """
    started_at = StartTime.now()
    spec = load_world(Path(config.spec) if config.spec else SHIPPED)
    texts = {factor: EditTexts.of(spec, factor, *ends) for factor, ends in config.ends.items()}
    opened = _open(config, spec)
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": opened.inputs})[:12]
    steered = _Steered(config, spec, opened)
    metrics: list[MetricRecord] = []
    n_edits = 4 + config.n_random + 2
    with (
        ProgressDisplay(transient=True) as progress,
        progress.bar(n_edits * len(texts), "steering", unit="edits", keep=False) as bar,
    ):
        for factor, edited in texts.items():
            metrics += _compare(config, opened, steered, edited, factor, bar.update)
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}", experiment=config.experiment, kind=KIND, config=tree,
        seeds={"noise": config.seed, "draws": config.seed}, metrics=metrics, started_at=started_at,
        artifacts=opened.inputs,
    )  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    write_result(result, run_dir / RESULT_FILE)
    write_csv(result, run_dir / TABLE_FILE)
    with atomic_file(run_dir / TABLES_FILE) as temporary:
        temporary.write_text(steering_tables(result), "utf-8")
    return run_dir / RESULT_FILE


@dataclass(frozen=True, kw_only=True)
class EditTexts:
    """The prompts of all roles: as they are, and with either value of a factor stated."""

    plain: tuple[str, ...]
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    values: tuple[int, int]
    """Codes of the positive and the negative value."""

    @classmethod
    def of(cls, spec: WorldSpec, factor: str, positive: str, negative: str) -> "EditTexts":
        """Return the texts of a factor.

        Raises: UnknownName for a factor or value that the world lacks; ConfigError for a factor that no caption rule
            states by itself.
        """
        values = (spec.code(factor, positive), spec.code(factor, negative))
        chosen = [set(rule.factors) in ({"role"}, {factor}) for rule in spec.rules]
        if factor == "role" or not any(set(rule.factors) == {factor} for rule in spec.rules):
            alone = {next(iter(rule.factors)) for rule in spec.rules if len(set(rule.factors)) == 1} - {"role"}
            raise ConfigError(
                f"no caption states the factor '{factor}' by itself, so no prompt edit changes it alone.",
                f"factors that captions state by themselves: {', '.join(sorted(alone))}",
                fix="leave it out of ends",
            )
        stated = [
            tuple(write(spec, {"role": role.name, factor: value}, chosen) for role in spec.roles)
            for value in (positive, negative)
        ]
        return cls(plain=tuple(prompts_of_roles(spec)), positive=stated[0], negative=stated[1], values=values)

    def edited(self, n: int, strength: float) -> list[EditedText]:
        """Return the text of each of n images, its embedding moved towards the positive value."""
        rows = [row % len(self.plain) for row in range(n)]
        return [
            EditedText(text=self.plain[row], towards=self.positive[row], away=self.negative[row], strength=strength)
            for row in rows
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Opened:
    """The autoencoder, the training samples, and where both are from."""

    sae: KSAE
    cell: Cell
    training: TrainingRows
    attributes: Mapping[str, Tensor]
    names: Mapping[str, Sequence[str]]
    inputs: dict[str, str]


def _open(config: SteeringEvaluation, spec: WorldSpec) -> _Opened:
    runs = open_runs(config.run)
    folders = [(trained, folder) for trained in runs for folder in trained.saes().values()]
    if len(folders) != 1:
        raise ConfigError(
            f"'{config.run}' has {len(folders)} autoencoders; one is compared at a time.",
            fix="the folder of one member of the grid",
        )
    (trained, folder) = folders[0]
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
    """The model that draws, and the reader that reads; the same prompts and noise for every method."""

    def __init__(self, config: SteeringEvaluation, spec: WorldSpec, opened: _Opened) -> None:
        self._config, self._cell = config, opened.cell
        if opened.cell.condition != "empty":
            raise ConfigError(
                f"cell '{opened.cell.name}' is read under the condition '{opened.cell.condition}'; finished images are "
                "read under the empty prompt.",
                fix="features.condition=empty",
            )
        self._pool = opened.cell.pool if Splice(opened.cell.pool).is_pooled else "mean"
        self._reader: SceneReader = load_reader(config.reader, spec)
        planned = plan_steered(config.model, opened.cell, fix="model=FOLDER of a StableDiffusionPipeline of the world")
        if planned.plan.resolution != self._reader.resolution:
            raise ConfigError(
                f"model '{config.model}' draws {planned.plan.resolution} pixels, the reader reads "
                f"{self._reader.resolution}.",
                fix="a reader that was trained with data.resolution of the model",
            )
        roles, texts = [role.name for role in spec.roles], prompts_of_roles(spec)
        rows = range(config.n_images)
        self.prompts = [texts[row % len(texts)] for row in rows]
        self._keys = [f"{roles[row % len(roles)]}-{row // len(roles):04d}" for row in rows]
        self._model = SteeredModel(
            planned, opened.cell, self.prompts, self._keys, sampling_steps=config.sampling_steps,
            guidance=config.guidance, seed=config.seed, window=config.window, edits_unconditional=False,
        )  # fmt: skip
        self._kept = KeptDraws(
            Path(config.output) / "stores" / FOLDER,
            {
                "backbone": opened.inputs[BACKBONE], "cell": opened.cell.name, "prompts": self.prompts,
                "keys": self._keys, "seed": config.seed, "guidance": config.guidance, "steps": config.sampling_steps,
                "window": config.window, "both": False,
            },
        )  # fmt: skip
        self._features: DiffusionFeatures | None = None
        pooled = opened.training.rows.double().mean(1).numpy()
        self._cloud = DataCloud(features=pooled, neighbours=config.neighbours)

    def draw(self, what: str, strengths: Sequence[float], draw: Callable[[], list[Tensor]]) -> Draws:
        """Return kept or new latents of each strength."""
        return self._kept.get(what, strengths, lambda: dict(zip(strengths, draw(), strict=True)))

    @property
    def model(self) -> SteeredModel:
        """The loaded pipeline."""
        return self._model

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
                pool=self._pool, seed=self._config.seed,
            )  # fmt: skip
        found = self._features.from_latents(latents, keys=self._keys)
        return float(self._cloud.distances(next(iter(found.values())).cpu().double().numpy()).mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """What one method did."""

    curve: SteeringCurve
    distances: tuple[float, ...]


def _compare(
    config: SteeringEvaluation, opened: _Opened, steered: _Steered, texts: EditTexts, factor: str,
    tick: Callable[[int], object],
) -> list[MetricRecord]:  # fmt: skip
    """Steer towards the positive value of a factor by every method, and return the records."""
    positive, negative = (opened.names[factor].index(name) for name in config.ends[factor])
    labels = opened.attributes[factor]
    made: FactorEdits = factor_edits(
        opened.sae, opened.training, labels == positive, labels == negative, n_random=config.n_random,
        n_bank=config.n_bank, seed=config.seed,
    )  # fmt: skip
    n, model = config.n_images, steered.model
    (base,) = steered.draw("untouched", (0.0,), lambda: [model.of_texts(steered.prompts)]).values()
    base_codes, base_distance = steered.codes(base), steered.distance(base)

    def found(draws: Draws) -> _Found:
        given = {0.0: (base_codes, base_distance)}
        given |= {strength: (steered.codes(one), steered.distance(one)) for strength, one in draws.items()}
        codes = {name: np.stack([one[name] for one, _ in given.values()]) for name in base_codes}
        curve = SteeringCurve.of_readings(tuple(given), codes, factor=factor, value=texts.values[0])
        tick(1)
        return _Found(curve=curve, distances=tuple(distance for _, distance in given.values()))

    results: dict[str, list[_Found]] = {}
    for name, edits in made.edits.items():
        strengths = config.replace_strengths if name == REPLACE else config.strengths
        results[name] = [
            found(steered.draw(one.identity, strengths, partial(model.latents, one, strengths))) for one in edits
        ]
    ours = [texts.positive[row % len(texts.positive)] for row in range(n)]
    results[PROMPT] = [found(steered.draw(digest_json(ours), (1.0,), lambda: [model.of_texts(ours)]))]
    moved = {strength: texts.edited(n, strength) for strength in config.text_strengths}
    identity = digest_json([texts.positive, texts.negative])
    results[EMBEDDING] = [
        found(steered.draw(identity, config.text_strengths, lambda: [model.of_texts(one) for one in moved.values()]))
    ]
    facts = {**made.facts, PROMPT: f"'{texts.plain[0]}' -> '{texts.positive[0]}'",
             EMBEDDING: f"'{texts.positive[0]}' minus '{texts.negative[0]}'"}  # fmt: skip
    return _records(config, opened.cell, steered.prompts, factor, results, facts)


def _records(
    config: SteeringEvaluation, cell: Cell, prompts: Sequence[str], factor: str, results: Mapping[str, list[_Found]],
    facts: Mapping[str, str],
) -> list[MetricRecord]:  # fmt: skip
    """Return the records of a factor: each point of each curve, and the success at equal collateral."""
    curves = {name: SteeringCurve.mean([one.curve for one in found]) for name, found in results.items()}
    value, n = config.ends[factor][0], len(prompts)

    def record(name: str, method: str, number: float, **detail: object) -> MetricRecord:
        return MetricRecord(
            name=name, value=number, split=SPLIT, n=n, cell=cell.name, target=factor, probe=method,
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
