"""Steer the model of an audit along the direction of each axis, and read its images.

The direction is the mean paired difference of the audit's prompt latents. Strength 1 is the standard deviation of its
subjects' prompts without an attribute along it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from diffprobe.analysis.audit.association import Sampling
from diffprobe.analysis.audit.causal import CausalLink, causal_link
from diffprobe.analysis.audit.comparison import FEWEST, RankAgreement, rank_agreement
from diffprobe.analysis.audit.direction import direction_of
from diffprobe.analysis.audit.latents import AuditLatents, context_differences, subject_latents
from diffprobe.analysis.audit.prompts import subject_prompts
from diffprobe.analysis.audit.spec import Axis
from diffprobe.analysis.certification.steering import SteeredReadings
from diffprobe.analysis.dose_response import DataCloud, Dose, dose_response
from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError, StoreMismatch
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE
from diffprobe.evaluation.audit_measures import CellMeasures
from diffprobe.evaluation.audit_settings import Audit
from diffprobe.evaluation.audit_steering_settings import AuditSteering, evenly_spaced
from diffprobe.evaluation.image_readers import AxisReader, OpenedReaders, open_latent_readers, open_scene_readers
from diffprobe.evaluation.kept_draws import FOLDER
from diffprobe.evaluation.steered_model import SteeredReader
from diffprobe.probes.direction import random_directions
from diffprobe.scoring.edits.direction import AddVector

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Vector = Float64[np.ndarray, " d"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeredAxis:
    """What steering along the direction of one axis did."""

    axis: str
    reader: AxisReader
    link: CausalLink
    """Rates of images by strength."""
    doses: Mapping[str, tuple[Dose, ...]]
    """Name of a steered direction -> what each strength moves inside the model; the axis's own direction first."""
    images: "Mapping[float, list[Image]]"
    """Strength -> some images of the own direction, of the same prompts and noise at every strength."""
    subject_rates: Float64[np.ndarray, " subjects"]
    """Share of the images of each drawn subject that are read as the positive end at strength 0."""
    scores: Float64[np.ndarray, " subjects"]
    """Association of each drawn subject."""
    agreement: RankAgreement | None
    """Rank correlation of both; None for few subjects."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeredAudit:
    """The steering of an audit."""

    axes: tuple[SteeredAxis, ...]
    subjects: tuple[str, ...]
    """The drawn subjects."""
    n_images: int
    """Images per strength and direction."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Name of what was read -> its digest."""


def steer_audit(config: Audit, latents: AuditLatents, measures: CellMeasures) -> SteeredAudit:
    """Generate images with each direction added, and measure what moves.

    Args:
        config: with `steering` and `store`.
        latents: those of the main cell, not whitened.
        measures: of the main cell; its associations are compared with rates at strength 0.

    Raises: ConfigError for axes or attributes that do not fit, a cell that is not one of the generator's, or latents of
        another width; StoreMismatch for a store of another model; errors of the readers, of `SteeredReader` and of
        `dose_response`.
    """
    steering = config.steering
    assert steering is not None
    axes = steered_axes(config)
    cell = _cell(config)
    prompts, keys, subjects = _images(config)
    model = SteeredReader(
        steering.generator, cell, prompts, keys, sampling_steps=steering.sampling_steps, guidance=steering.guidance,
        seed=config.seed, window=steering.window, edits_unconditional=steering.branch == "both",
        keep=Path(config.output) / "stores" / FOLDER,
    )  # fmt: skip
    _require_same_model(config, model, latents)
    readers = _readers(config, axes, cell)
    plain = subject_latents(latents, config)
    cloud = DataCloud(features=plain.reshape(-1, plain.shape[-1]).astype(np.float64), neighbours=steering.neighbours)
    units = {name: direction_of(context_differences(latents, config, axis)).unit for name, (axis, _) in axes.items()}
    random = random_directions(plain.shape[-1], steering.n_random, seed=config.seed).numpy().T
    found = []
    with (
        ProgressDisplay(transient=True) as progress,
        progress.bar(len(axes) * (1 + len(random)), "directions: steering", unit="directions", keep=False) as bar,
    ):
        for name in axes:
            spread = cloud.spread(units[name])
            ordered = {name: units[name], **{other: unit for other, unit in units.items() if other != name}}
            run = _AxisRun(steering=steering, model=model, readers=readers.of_axis, cloud=cloud, directions=ordered,
                           prompts=prompts, sampling=config.sampling)  # fmt: skip
            for label, unit in [(name, units[name]), *((f"random {i}", row) for i, row in enumerate(random, 1))]:
                run.steer(label, spread * unit, keep_images=label == name)
                bar.update(1)
            scores = measures.axis(name).associations.cosine.value[evenly_spaced(len(config.subjects), len(subjects))]
            found.append(run.finish(name, scores))
    inputs = {**readers.inputs, BACKBONE: model.digest}
    return SteeredAudit(axes=tuple(found), subjects=subjects, n_images=len(prompts), inputs=inputs)


def steered_axes(config: Audit) -> dict[str, tuple[Axis, str]]:
    """Return the axes that are steered, with the attribute that the reader perceives."""
    steering = config.steering
    assert steering is not None
    found = [(axis, steering.attribute_of(axis.name)) for axis in config.axes]
    return {axis.name: (axis, attribute) for axis, attribute in found if attribute is not None}


class _AxisRun:
    """Steers along several directions for one axis, and collects what is read."""

    def __init__(
        self, *, steering: AuditSteering, model: SteeredReader, readers: Mapping[str, AxisReader], cloud: DataCloud,
        directions: Mapping[str, Vector], prompts: list[str], sampling: Sampling,
    ) -> None:  # fmt: skip
        self._steering, self._model, self._readers, self._cloud = steering, model, readers, cloud
        self._directions, self._prompts, self._sampling = directions, prompts, sampling
        self._readings: dict[str, SteeredReadings] = {}
        self._doses: dict[str, tuple[Dose, ...]] = {}
        self._images: dict[float, list[Image]] = {}

    def steer(self, label: str, vector: Vector, *, keep_images: bool) -> None:
        """Generate at every strength, and read."""
        import torch

        strengths = self._steering.strengths
        latents = self._model.draw(AddVector(torch.from_numpy(np.ascontiguousarray(vector))), strengths)
        codes = [self._codes(one) for one in latents.values()]
        self._readings[label] = SteeredReadings(
            strengths=strengths, codes={name: np.stack([one[name] for one in codes]) for name in self._readers}
        )
        features = {strength: self._model.reread(one) for strength, one in latents.items()}
        self._doses[label] = dose_response(
            features, self._directions, self._cloud, self._prompts, n_resamples=self._sampling.n_resamples,
            level=self._sampling.level, seed=self._sampling.seed,
        )  # fmt: skip
        if keep_images:
            rows = evenly_spaced(len(self._prompts), self._steering.shown)
            self._images = {strength: self._model.decode(one[rows]) for strength, one in latents.items()}

    def finish(self, axis: str, scores: Float64[np.ndarray, " subjects"]) -> SteeredAxis:
        """Return what was measured, with the rates of the subjects at strength 0."""
        own, sampling = self._readings[axis], self._sampling
        untouched = own.codes[axis][own.strengths.index(0.0)].astype(np.float64)
        rates = untouched.reshape(len(scores), -1).mean(1)
        agreement = None
        if len(scores) >= FEWEST:
            agreement = rank_agreement(
                scores, rates, n_resamples=sampling.n_resamples, n_permutations=min(sampling.n_permutations, 1999),
                level=sampling.level, seed=sampling.seed,
            )  # fmt: skip
        reader = self._readers[axis]
        return SteeredAxis(
            axis=axis, reader=reader, doses=self._doses, images=self._images, subject_rates=rates, scores=scores,
            link=causal_link(self._readings, self._prompts, reader.confusion, axis=axis, sampling=sampling),
            agreement=agreement,
        )  # fmt: skip

    def _codes(self, latents: "Tensor") -> dict[str, np.ndarray]:
        images = self._model.pixels(latents) if any(one.needs_images for one in self._readers.values()) else None
        return {name: one.read(latents, images) for name, one in self._readers.items()}


def _images(config: Audit) -> tuple[list[str], list[str], tuple[str, ...]]:
    """Return the prompt and the key of each image, subject by subject, and the drawn subjects."""
    steering = config.steering
    assert steering is not None
    rows = evenly_spaced(len(config.subjects), steering.n_subjects)
    texts = subject_prompts(config)
    prompts, keys = [], []
    for row in rows:
        for text in texts[row][: steering.n_templates]:
            prompts += [text] * steering.seeds
            keys += [f"seed {number}" for number in range(steering.seeds)]
    return prompts, keys, tuple(config.all_subjects[row].name for row in rows)


def _cell(config: Audit) -> Cell:
    """Return the main cell in full: as the store spells it, where latents are in a feature store."""
    from diffprobe.features.cell_selection import choose_cell
    from diffprobe.features.reader import FeatureStore
    from diffprobe.features.writer import MANIFEST

    assert config.store is not None
    name = config.cells[0]
    if (Path(config.store) / MANIFEST).is_file():
        name = choose_cell(name, FeatureStore.open(config.store).cells)
    try:
        return Cell.parse(name)
    except ConfigError as error:
        raise ConfigError(
            f"steering: the main cell '{name}' is not a tap of a model, at which a direction can be added.",
            *error.details, fix="cells=[TAP@tTIMESTEP, ...], or remove steering",
        ) from error  # fmt: skip


def _require_same_model(config: Audit, model: SteeredReader, latents: AuditLatents) -> None:
    from diffprobe.features.reader import FeatureStore
    from diffprobe.features.writer import MANIFEST
    from diffprobe.runs.provenance import backbone_digest

    assert config.steering is not None and config.store is not None
    if (Path(config.store) / MANIFEST).is_file():
        digest = backbone_digest(FeatureStore.open(config.store).manifest.backbone)
        if digest != model.digest:
            raise StoreMismatch(
                f"store '{config.store}' is of another model than steering.generator='{config.steering.generator}'.",
                "a direction is added to the model whose latents it is made of",
                fix="steering.generator of the store, or a store of this generator",
            )
    d = latents.features.shape[-1]
    if d != model.width:
        raise ConfigError(
            f"the latents of '{config.cells[0]}' have {d} numbers; its features in generator "
            f"'{config.steering.generator}' have {model.width}.",
            fix="the generator and the tap whose latents these are",
        )


def _readers(config: Audit, axes: Mapping[str, tuple[Axis, str]], cell: Cell) -> OpenedReaders:
    from diffprobe.evaluation.steered_model import plan_steered

    steering = config.steering
    assert steering is not None
    if steering.labelled is not None:
        return open_latent_readers(steering.labelled, axes, generator=steering.generator, cell=cell)
    assert steering.reader is not None
    resolution = plan_steered(steering.generator, cell, fix="").plan.resolution
    return open_scene_readers(
        steering.reader, axes, confusion=steering.confusion, resolution=resolution, seed=config.seed
    )
