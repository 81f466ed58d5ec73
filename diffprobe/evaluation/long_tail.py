"""`diffprobe eval long-tail`: what a class-conditional denoiser draws of classes with many, medium and few images.

Images are read by a frozen reader that was trained on renderings; its features, never those of the denoiser, are the
space of all distances. Rendered images of other scenes are measured the same way, as the control of each number.

A denoiser without labels (unconditional, or on the clusters of a self-guided one) is measured on all its images alone:
as many as one with labels draws, under its clusters as often as each has training images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.sample_quality import frechet_distance, neighbourhoods
from diffprobe.analysis.statistics import bootstrap_interval
from diffprobe.config.parse import parse, record_tree
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, TooFewGroups, WeightsMismatch
from diffprobe.core.result import (
    BACKBONE,
    INPUT,
    RESULT_FILE,
    MetricRecord,
    RunResult,
    StartTime,
    make_result,
    read_result,
    write_result,
)
from diffprobe.evaluation.long_tail_settings import RENDERER, LongTailEvaluation
from diffprobe.evaluation.rate_images import RoleImages, keys_of, rendered_images, sampled_images
from diffprobe.generative.long_tail import SHOTS, ClassesConfig
from diffprobe.generative.scene_reader import WEIGHTS_FILE, SceneReader, find_reader, load_reader
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.world import load_world

KIND = "long_tail_eval"
"""Kind of the results."""
SPLIT = "generated"
"""Split of the records."""
ALL = "all"
"""Target of the records over all classes."""
UNCONDITIONAL = "unconditional"
"""Name of the classes of a denoiser that has none."""
_WORLD = "planted"


@dataclass(frozen=True, kw_only=True)
class TrainedClasses:
    """The classes of a training run: what they were conditioned on, and how many images each had."""

    config: ClassesConfig
    counts: Mapping[str, int]
    shots: Mapping[str, Sequence[str]]
    passes_per_sample: int
    """Passes of the network per sample and step."""
    steps: int | None
    """Most optimiser steps; None where epochs ended the run."""
    labelled: bool = True
    """Whether the classes are labels; else they are clusters, or one class, "", of an unconditional denoiser."""

    @classmethod
    def of_run(cls, result: RunResult) -> "TrainedClasses":
        """Read the classes of a run. Raises: ConfigError for a run without classes."""
        classes = result.config.get("classes")
        steps = result.config.get("trainer", {}).get("max_steps")
        if result.config.get("prototypes") is not None:
            return cls(
                config=ClassesConfig(attribute=UNCONDITIONAL), counts={"": 1}, shots={}, passes_per_sample=1,
                steps=steps, labelled=False,
            )  # fmt: skip
        facts = next((record.detail for record in result.metrics if "class_counts" in record.detail), None)
        if classes is None or facts is None:
            raise ConfigError(
                f"run '{result.run}' was not trained on classes.",
                fix="name a finished run with classes.attribute, as of scenes/long_tail/plain",
            )
        return cls(
            config=parse(ClassesConfig, classes, at="classes"),
            counts=facts["class_counts"],
            shots=facts["shots"],
            passes_per_sample=int(facts["passes_per_sample"]),
            steps=steps,
            labelled=classes.get("clusters") is None,
        )

    def captions(self, n_per_class: int, n_roles: int) -> dict[str, list[str]]:
        """Return the prompts by class; without labels as many as for all roles, in proportion to training images."""
        if self.labelled:
            return {role: [self.config.caption(role)] * n_per_class for role in sorted(self.counts)}
        names = sorted(self.counts)
        shares = np.cumsum([self.counts[name] for name in names]) / sum(self.counts.values())
        ends = [0, *np.rint(shares * n_per_class * n_roles).astype(int).tolist()]
        return {
            name: [self.config.caption(name)] * (end - start)
            for name, start, end in zip(names, ends[:-1], ends[1:], strict=True)
            if end > start
        }


@dataclass(frozen=True, kw_only=True)
class ReadImages:
    """Images as the reader sees them.

    Attributes:
        roles: the class that each image was asked for.
        features: float64 (image, feature).
        right: 1.0 where the reader reads that class, else 0.0.
    """

    roles: tuple[str, ...]
    features: NDArray[np.float64]
    right: NDArray[np.float64]

    def of(self, roles: Sequence[str]) -> "ReadImages":
        """Return the images of some classes."""
        rows = np.array([role in roles for role in self.roles])
        return ReadImages(
            roles=tuple(role for role in self.roles if role in roles),
            features=self.features[rows],
            right=self.right[rows],
        )


def read_images(reader: SceneReader, images: Sequence[RoleImages]) -> ReadImages:
    """Read images class by class; an image of a cluster counts as wrong, as no role was asked for."""
    names = reader.spec.names("role")
    read = [
        reader.read(one.images)["role"].argmax(1) == (names.index(one.role) if one.role in names else -1)
        for one in images
    ]
    return ReadImages(
        roles=tuple(one.role for one in images for _ in one.keys),
        features=np.concatenate([reader.embed(one.images) for one in images]),
        right=np.concatenate(read).astype(np.float64),
    )


def evaluate_long_tail(config: LongTailEvaluation) -> Path:
    """Draw, read and compare; return the path of `result.json`.

    The folder is <output>/<experiment>/<first 12 digits of a digest>; images are kept in <output>/<experiment>/images.

    Raises: ConfigError for a run without classes, or on other ones than roles; WeightsMissing, WeightsMismatch for the
        reader and the model.
    """
    started_at = StartTime.now()
    trained = TrainedClasses.of_run(read_result(Path(config.run) / RESULT_FILE))
    spec = load_world()
    _require_roles(trained, spec)
    reader = load_reader(config.reader, spec)
    inputs = {
        f"{INPUT}run": digest_file(Path(config.run) / RESULT_FILE),
        f"{INPUT}reader": digest_file(find_reader(config.reader) / WEIGHTS_FILE),
    }
    generated, score, model = _drawn(config, trained, spec, reader.resolution)
    if model is not None:
        inputs[BACKBONE] = model
    real, other = (
        read_images(reader, _rendered(config, trained, spec, reader.resolution, seed)) for seed in (1, 2)
    )  # fmt: skip
    metrics = quality_records(config, trained, read_images(reader, generated), real=real, rendered=other)
    if score is not None and config.overlap_images and trained.labelled:
        metrics.append(_overlap(config, trained, spec, score, reader.resolution))
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}", experiment=config.experiment, kind=KIND, config=tree,
        seeds={"seed": config.seed}, metrics=metrics, started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


def _require_roles(trained: TrainedClasses, spec: WorldSpec) -> None:
    names = spec.names("role")
    if not trained.labelled:
        return
    if trained.config.attribute != "role" or set(trained.counts) - set(names):
        raise ConfigError(
            f"the run has classes of '{trained.config.attribute}': {', '.join(trained.counts)}.",
            "the reader knows the roles of scenes",
        )


def _rendered(
    config: LongTailEvaluation, trained: TrainedClasses, spec: WorldSpec, resolution: int, draw: int
) -> list[RoleImages]:
    """Render as many images per class as are generated; another `draw` has other scenes."""
    seed = 3 * config.seed + draw
    found = rendered_images(spec, seed, config.n_per_class, world=_WORLD, resolution=resolution)
    return [one for one in found if one.role in trained.counts or not trained.labelled]


def _drawn(
    config: LongTailEvaluation, trained: TrainedClasses, spec: WorldSpec, resolution: int
) -> tuple[list[RoleImages], Any, str | None]:
    """Return the images of all classes, the denoising error of the model, and its digest; None for rendered ones."""
    if config.model == RENDERER:
        return _rendered(config, trained, spec, resolution, 0), None, None
    from diffprobe.evaluation.backbone import load_pipeline, resolution_of
    from diffprobe.runs.provenance import checkpoint_digest
    from diffprobe.runs.train_generative import WEIGHTS

    path = config.model or str(Path(config.run) / WEIGHTS)
    pipeline, score = load_pipeline(path, seed=config.seed)
    if resolution_of(pipeline) != resolution:
        raise WeightsMismatch(
            f"'{path}' draws images of {resolution_of(pipeline)} pixels, the reader reads {resolution}.",
            fix="train a reader with data.resolution of the model",
        )
    digest = checkpoint_digest(path)
    prompts = trained.captions(config.n_per_class, len(spec.roles))
    facts = [digest, prompts, config.seed, config.guidance, config.sampling_steps]
    found = sampled_images(
        pipeline, Path(config.output) / config.experiment / "images" / digest_json(facts)[:12], prompts,
        seed=config.seed, guidance=config.guidance, sampling_steps=config.sampling_steps, resolution=resolution,
    )  # fmt: skip
    images = [
        RoleImages(role=role, keys=keys_of(role, len(pixels)), images=pixels, truth=None)
        for role, pixels in found.items()
    ]
    return images, score, digest


def quality_records(
    config: LongTailEvaluation,
    trained: TrainedClasses,
    generated: ReadImages,
    *,
    real: ReadImages,
    rendered: ReadImages,
) -> list[MetricRecord]:
    """Return accuracy, precision, recall, density, coverage and Frechet distance of all classes and of each third.

    Args:
        generated: the images of the model.
        real: rendered images that they are compared with.
        rendered: rendered images of other scenes: the control of each number.
    """
    compute = {"passes_per_sample": trained.passes_per_sample, "max_steps": trained.steps}
    records = []
    for target in (ALL, *SHOTS) if trained.labelled else (ALL,):
        roles = sorted(trained.counts) if target == ALL else list(trained.shots[target])
        if not roles:
            continue
        ours, theirs, floor = generated, real, rendered
        if trained.labelled:
            ours, theirs, floor = generated.of(roles), real.of(roles), rendered.of(roles)
        parts, controls = (neighbourhoods(theirs.features, one.features, k=config.k) for one in (ours, floor))
        arrays = {
            "role_accuracy": (ours.right, floor.right, ours.roles),
            "precision": (parts.precision, controls.precision, ours.roles),
            "density": (parts.density, controls.density, ours.roles),
            "recall": (parts.recall, controls.recall, theirs.roles),
            "coverage": (parts.coverage, controls.coverage, theirs.roles),
        }
        if not trained.labelled:
            del arrays["role_accuracy"]
        detail: dict[str, Any] = {**compute, "classes": roles, "reader": config.reader}
        for name, (values, control, clusters) in arrays.items():
            records.append(
                MetricRecord(
                    name=name, value=float(values.mean()), split=SPLIT, n=len(values), target=target,
                    controls={"rendered": float(control.mean())},
                    detail={**detail, "by_class": _by_class(values, clusters), **_interval(values, clusters, config)},
                )
            )  # fmt: skip
        records.append(
            MetricRecord(
                name="frechet_distance", value=frechet_distance(theirs.features, ours.features), split=SPLIT,
                n=len(ours.roles), target=target, detail=dict(detail),
                controls={"rendered": frechet_distance(theirs.features, floor.features)},
            )
        )  # fmt: skip
    return records


def _by_class(values: NDArray[np.float64], classes: Sequence[str]) -> dict[str, float]:
    """Return the mean of each class, of which runs are compared class by class."""
    own = np.array(classes)
    return {name: float(values[own == name].mean()) for name in dict.fromkeys(classes)}


def _interval(values: NDArray[np.float64], clusters: Sequence[str], config: LongTailEvaluation) -> dict[str, Any]:
    """Return the interval of a mean over classes; nothing for too few of them."""
    try:
        found = bootstrap_interval(
            lambda rows: float(values[rows].mean()), clusters, n_resamples=config.n_resamples, seed=config.seed
        )
    except TooFewGroups:
        return {}
    return {"interval": [found.low, found.high], "level": 0.95, "resampled": "classes"}


def _overlap(
    config: LongTailEvaluation, trained: TrainedClasses, spec: WorldSpec, score: Any, resolution: int
) -> MetricRecord:
    """Return the mean overlap of the reverse kernels of different classes, with the matrix in the detail."""
    import torch

    from diffprobe.scoring.kernel_overlap import class_overlap, kernel_distances

    seed, n = 3 * config.seed + 1, config.overlap_images
    images = [
        one for one in rendered_images(spec, seed, n, world=_WORLD, resolution=resolution) if one.role in trained.counts
    ]
    names = [one.role for one in images]
    pixels = torch.from_numpy(np.concatenate([one.images for one in images])).permute(0, 3, 1, 2).float() / 255
    latents = torch.cat([score.encode_images(part) for part in pixels.split(64)])
    conditions = score.encode_conditions([trained.config.caption(name) for name in names])
    timesteps = sorted(config.overlap_timesteps)
    keys = [key for one in images for key in one.keys]
    distances = kernel_distances(score, latents, keys, conditions, timesteps)
    matrix = class_overlap(distances, [number for number in range(len(names)) for _ in range(n)])
    others = ~torch.eye(len(names), dtype=torch.bool)
    thirds = {
        shot: float(matrix[rows][others[rows]].mean())
        for shot, roles in trained.shots.items()
        if (rows := torch.tensor([name in roles for name in names])).any()
    }
    return MetricRecord(
        name="class_overlap", value=float(matrix[others].mean()), split="rendered", n=len(keys), target=ALL,
        detail={"classes": names, "overlap": matrix.tolist(), "timesteps": timesteps, "mean_of_rows": thirds},
    )  # fmt: skip
