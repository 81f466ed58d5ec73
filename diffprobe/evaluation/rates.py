"""`diffprobe eval rates`: how often a model draws striped clothes for each role, against the rates of a world.

The attribute reader reads generated images, its confusion is measured on some of them that are labelled by the nearest
re-rendering or by eye, and the rates are corrected by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.rate_comparison import MEASURES, compare_rates
from diffprobe.analysis.rerendering import HALF_COMMITTED, Rerendering, nearest_rerendering
from diffprobe.analysis.scene_labels import RERENDERING, SceneLabel, merged, read_labels, write_labels
from diffprobe.analysis.statistics import (
    CorrectedShares,
    bootstrap_interval,
    confusion_counts,
    corrected_shares,
    mean_of,
)
from diffprobe.config.parse import record_tree
from diffprobe.config.validators import at_least
from diffprobe.core.atomic_file import atomic_file, atomic_folder
from diffprobe.core.audit_file import write_audit
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE, INPUT, RESULT_FILE, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.rate_images import RoleImages, generated_images, rendered_images
from diffprobe.evaluation.rate_tables import TABLES_FILE, rate_tables
from diffprobe.evaluation.validated_sheet import validated_sheet
from diffprobe.generative.scene_reader import WEIGHTS_FILE, SceneReader, find_reader, load_reader
from diffprobe.shards.scenes.factors import rates
from diffprobe.shards.scenes.spec import FACTORS, STRIPED, WorldSpec
from diffprobe.shards.scenes.world import SHIPPED, load_world

KIND = "rates_eval"
"""Kind of the results."""
RENDERER = "renderer"
"""Value of `model` for rendered images, the positive control."""
LABELS_FILE, SHEET_FILE = "labels.csv", "validated.png"
"""Labels of the validated images, and these images."""
FIGURE, AUDIT_FILE = "rates", "audit.json"
"""Folder of the figure, and the rates as an audit that can be certified."""
SPLIT = "generated"
"""Split of the records."""
_PROPOSED_ROLES = 3
"""Roles among which a re-rendering is searched, the likeliest ones of the reader."""
_TEXTURES = 2
_RULES = 1
"""Raised when generated images change, so that files of an older version are not continued."""


@dataclass(frozen=True, kw_only=True)
class RatesEvaluation:
    """Settings of `diffprobe eval rates` (experiment files of kind `evaluate_rates`)."""

    experiment: str
    """Name of the experiment."""
    model: str = RENDERER
    """Folder of a StableDiffusionPipeline; or "renderer": rendered images at the rates of `world`, which have to be
    recovered."""
    reader: str
    """`scenes-reader`, which ships with diffprobe; the folder of a finished run of kind `train_reader`; or that of such
    runs if one of them is finished."""
    world: str = "planted"
    """The world whose rates the model was trained on; the other worlds of the file are compared, too."""
    spec: str | None = None
    """File of the world; None for the one that ships with diffprobe."""
    n_per_role: int = 100
    """Images per role."""
    validated_per_role: int = 10
    """Images per role, the first ones, that are labelled by re-rendering: the confusion of the reader."""
    labels: str | None = None
    """CSV file of labels by eye (key, factor, value, by), which replace those of re-rendering."""
    guidance: float = 0.0
    """Added to the scale of classifier-free guidance: 0 is none (scale 1 in diffusers), 2 is scale 3."""
    sampling_steps: int = 20
    """DDIM steps."""
    n_resamples: int = 2000
    """Draws of intervals, and permutations of the roles for the controls."""
    seed: int = 0
    """Seed of prompts, noise and draws."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(1, n_per_role=self.n_per_role, validated_per_role=self.validated_per_role)
        at_least(1, sampling_steps=self.sampling_steps, n_resamples=self.n_resamples)
        at_least(0, guidance=self.guidance)
        if self.validated_per_role > self.n_per_role:
            raise ConfigError(
                f"validated_per_role={self.validated_per_role} is more than n_per_role={self.n_per_role}."
            )


def evaluate_rates(config: RatesEvaluation) -> Path:
    """Generate, read, correct and compare; return the path of `result.json`. Tables, labels and a figure are beside it.

    The folder is <output>/<experiment>/<first 12 digits of a digest>. Images are kept in
    <output>/<experiment>/images/<digest> for other readers and labels.

    Raises: UnknownName for a world that the file lacks; WeightsMissing, WeightsMismatch and SchemaError for reader and
        model; errors of `read_labels`; EmptyClass if the validated images lack a texture; UninformativeReader.
    """
    started_at = StartTime.now()
    spec = load_world(Path(config.spec) if config.spec else SHIPPED)
    spec.world(config.world)
    reader = load_reader(config.reader, spec)
    inputs = {f"{INPUT}world": spec.digest, f"{INPUT}reader": digest_file(find_reader(config.reader) / WEIGHTS_FILE)}
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    found, model = _images(config, spec, reader.resolution)
    if model:
        inputs[BACKBONE] = model
    if config.labels:
        inputs[f"{INPUT}labels"] = digest_file(Path(config.labels))
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    measured = _Measurement(config, spec, reader, found)
    with atomic_file(run_dir / SHEET_FILE) as temporary:
        validated_sheet(found, config.validated_per_role).save(temporary, format="PNG")
    labels = measured.label(run_dir / LABELS_FILE)
    shares, metrics = measured.rates(labels)
    metrics += measured.comparisons(shares, run_dir / FIGURE) + measured.qualities(labels)
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}", experiment=config.experiment, kind=KIND, config=tree,
        seeds={"seed": config.seed}, metrics=metrics, started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    write_audit(
        run_dir / AUDIT_FILE,
        {one.role: _audited(found) for one, found in zip(measured.images, shares, strict=True)},
        level=shares[0].level,
        made_by=f"diffprobe eval rates {config.model}",
    )
    with atomic_file(run_dir / TABLES_FILE) as temporary:
        temporary.write_text(rate_tables([result]), "utf-8")
    return run_dir / RESULT_FILE


def _audited(found: CorrectedShares) -> tuple[float, float, float]:
    return float(found.corrected[STRIPED]), float(found.low[STRIPED]), float(found.high[STRIPED])


def _images(config: RatesEvaluation, spec: WorldSpec, resolution: int) -> tuple[list[RoleImages], str | None]:
    """Return the images of all roles, and the digest of the model."""
    n, seed = config.n_per_role, config.seed
    if config.model == RENDERER:
        return rendered_images(spec, seed, n, world=config.world, resolution=resolution), None
    from diffprobe.evaluation.backbone import load_pipeline, resolution_of
    from diffprobe.runs.provenance import checkpoint_digest

    pipeline, _ = load_pipeline(config.model, seed=seed)
    if resolution_of(pipeline) != resolution:
        raise WeightsMismatch(
            f"'{config.model}' draws images of {resolution_of(pipeline)} pixels, the reader reads {resolution}.",
            fix="train a reader with data.resolution of the model",
        )
    digest = checkpoint_digest(config.model)
    facts = [_RULES, digest, spec.digest, seed, n, config.guidance, config.sampling_steps]
    folder = Path(config.output) / config.experiment / "images" / digest_json(facts)[:12]
    images = generated_images(
        spec, pipeline, folder, seed=seed, n=n, guidance=config.guidance, sampling_steps=config.sampling_steps,
        resolution=resolution,
    )  # fmt: skip
    return images, digest


class _Measurement:
    """What is read from the images of all roles."""

    def __init__(
        self, config: RatesEvaluation, spec: WorldSpec, reader: SceneReader, images: Sequence[RoleImages]
    ) -> None:
        self.config, self.spec, self.images = config, spec, images
        self.probabilities = [reader.read(one.images) for one in images]
        self.read = [
            {name: values.argmax(1).astype(np.int64) for name, values in found.items()} for found in self.probabilities
        ]
        self.fits: dict[str, Rerendering] = {}
        self.n_by_eye = self.n_differing = 0

    def label(self, path: Path) -> dict[tuple[str, str], SceneLabel]:
        """Label the validated images, write the labels, and return them."""
        n, spec = self.config.validated_per_role, self.spec
        with (
            ProgressDisplay(transient=True) as progress,
            progress.bar(n * len(self.images), "nearest re-rendering", unit="images", keep=False) as bar,
        ):
            for one, found in zip(self.images, self.probabilities, strict=True):
                for row, key in enumerate(one.keys[:n]):
                    ordered = {name: np.argsort(-values[row], kind="stable") for name, values in found.items()}
                    proposals = {name: codes[:_PROPOSED_ROLES].tolist() for name, codes in ordered.items()}
                    self.fits[key] = nearest_rerendering(spec, one.images[row], proposals)
                    bar.update(1)
        automatic = {
            (key, name): SceneLabel(key=key, factor=name, value=spec.names(name)[fit.values[name]], by=RERENDERING)
            for key, fit in self.fits.items()
            for name in FACTORS
        }
        by_eye = read_labels(self.config.labels, spec, self.fits) if self.config.labels else {}
        labels, self.n_differing = merged(automatic, by_eye)
        self.n_by_eye = len(by_eye)
        write_labels(path, labels.values())
        return labels

    def rates(self, labels: dict[tuple[str, str], SceneLabel]) -> tuple[list[CorrectedShares], list[MetricRecord]]:
        """Return the corrected shares of each role, and their records with sensitivity and specificity."""
        true, read = self._validated("texture", labels)
        confusion = confusion_counts(true, read, _TEXTURES)
        shares, metrics = [], []
        for number, (one, values) in enumerate(zip(self.images, self.read, strict=True)):
            counts = np.bincount(values["texture"], minlength=_TEXTURES)
            found = corrected_shares(
                counts, confusion, n_resamples=self.config.n_resamples, seed=self.config.seed, stream=number
            )
            shares.append(found)
            detail = {
                "interval": [float(found.low[STRIPED]), float(found.high[STRIPED])],
                "read": float(found.read[STRIPED]),
                "n_undefined": found.n_undefined,
            }
            worlds = {name: float(rates(self.spec, w)[number]) for w, name in enumerate(self.spec.worlds)}
            metrics.append(
                MetricRecord(
                    name="rate",
                    value=float(found.corrected[STRIPED]),
                    split=SPLIT,
                    n=len(one.keys),
                    target=one.role,
                    detail={**detail, "planted": worlds},
                )  # fmt: skip
            )
        for name, value in (("specificity", 0), ("sensitivity", STRIPED)):
            n = int(confusion[value].sum())
            detail = {"confusion": confusion.tolist(), "labels_by_eye": self.n_by_eye, "differing": self.n_differing}
            share = float(confusion[value, value] / n)
            metrics.append(MetricRecord(name=name, value=share, split=SPLIT, n=n, target="texture", detail=detail))
        return shares, metrics

    def comparisons(self, shares: list[CorrectedShares], folder: Path) -> list[MetricRecord]:
        """Return how far the rates follow those of each world, and draw them against those of the own one.

        The measures are those of rates that are not clipped to 0..1: clipping would lower the slope.
        """
        config, spec = self.config, self.spec
        measured = np.array([found.unprojected[STRIPED] for found in shares])
        draws = np.stack([found.draws[:, STRIPED] for found in shares], axis=1)
        draws = draws[~np.isnan(draws).any(1)]
        intervals = [(float(found.low[STRIPED]), float(found.high[STRIPED])) for found in shares]
        metrics = []
        for number, world in enumerate(spec.worlds):
            planted = rates(spec, number)
            found = compare_rates(planted, measured, draws, n_permutations=config.n_resamples, seed=config.seed)
            for name in MEASURES:
                if np.isnan(found.values[name]):
                    continue  # the Spearman correlation of equal rates is not defined, and records hold numbers
                null = found.controls.get(name)
                level = 0.95 if name != "max_error" else 0.05
                detail: dict[str, object] = {"own_world": world == config.world}
                if name in found.intervals:
                    detail["interval"] = list(found.intervals[name])
                if name == "spearman":
                    detail["cap_by_ties"] = found.spearman_cap
                if null is not None:
                    detail["null"] = null.describe()
                controls = {} if null is None else {"permuted_roles": null.percentiles(level)[0]}
                metrics.append(
                    MetricRecord(
                        name=name,
                        value=found.values[name],
                        split=SPLIT,
                        n=len(spec.roles),
                        target=world,
                        controls=controls,
                        detail=detail,
                    )  # fmt: skip
                )
            covered = [low <= rate <= high for rate, (low, high) in zip(planted, intervals, strict=True)]
            metrics.append(
                MetricRecord(
                    name="coverage",
                    value=float(np.mean(covered)),
                    split=SPLIT,
                    n=len(covered),
                    target=world,
                    detail={"own_world": world == config.world, "level": shares[0].level},
                )  # fmt: skip
            )
        self._draw([float(found.corrected[STRIPED]) for found in shares], intervals, folder)
        return metrics

    def _draw(self, measured: list[float], intervals: list[tuple[float, float]], folder: Path) -> None:
        from diffprobe.report.dot_plot import dot_plot
        from diffprobe.report.figure_file import save_figures

        figure = dot_plot(
            rates(self.spec, self.spec.world(self.config.world)).tolist(), measured, intervals,
            labels=[one.role for one in self.images], x_title=f"P(striped | role), {self.config.world}",
            y_title="generated, corrected", heading=f"{self.config.n_per_role} images per role",
        )  # fmt: skip
        with atomic_folder(folder) as temporary:
            save_figures([figure], temporary / "rates.png")

    def qualities(self, labels: dict[tuple[str, str], SceneLabel]) -> list[MetricRecord]:
        """Return the share of half-committed textures, and how often reader, labels and prompted role agree."""
        contrasts = np.array([fit.contrast for fit in self.fits.values()])
        half = np.array([fit.is_half_committed for fit in self.fits.values()], dtype=np.float64)
        metrics = [
            self._share("half_committed", half, target="texture", detail={
                "between": list(HALF_COMMITTED),
                "contrast_quartiles": np.quantile(contrasts, (0.25, 0.5, 0.75)).tolist(),
            })
        ]  # fmt: skip
        names = self.spec.names("role")
        prompted = [values["role"] == names.index(one.role) for one, values in zip(self.images, self.read, strict=True)]
        metrics.append(self._share("prompted_role", np.concatenate(prompted).astype(np.float64), target="role"))
        for name in FACTORS:
            true, read = self._validated(name, labels)
            metrics.append(self._share("reader_agreement", (true == read).astype(np.float64), target=name))
            if self.images[0].truth is not None:
                fitted = np.array([fit.values[name] for fit in self.fits.values()])
                n = self.config.validated_per_role
                drawn = np.concatenate([one.truth.factors[name][:n] for one in self.images if one.truth is not None])
                metrics.append(self._share("label_accuracy", (fitted == drawn).astype(np.float64), target=name))
        return metrics

    def _share(
        self, name: str, values: NDArray[np.float64], *, target: str, detail: dict[str, object] | None = None
    ) -> MetricRecord:
        interval = bootstrap_interval(
            mean_of(values), range(len(values)), n_resamples=self.config.n_resamples, seed=self.config.seed
        )
        return MetricRecord(
            name=name, value=interval.estimate, split=SPLIT, n=len(values), target=target,
            detail={**(detail or {}), "interval": [interval.low, interval.high]},
        )  # fmt: skip

    def _validated(
        self, factor: str, labels: dict[tuple[str, str], SceneLabel]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the labels and what is read of the validated images, as codes."""
        n, code = self.config.validated_per_role, self.spec.code
        true = [code(factor, labels[key, factor].value) for one in self.images for key in one.keys[:n]]
        read = np.concatenate([values[factor][:n] for values in self.read])
        return np.array(true, dtype=np.int64), read
