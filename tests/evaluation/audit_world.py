"""An audit of the synthetic world on disk, for tests of what reads and shows it."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffprobe.analysis.audit.causal import causal_link
from diffprobe.analysis.audit.comparison import rank_agreement
from diffprobe.analysis.audit.spec import Axis, Subject
from diffprobe.analysis.certification.steering import SteeredReadings
from diffprobe.analysis.dose_response import DataCloud, dose_response
from diffprobe.core.result import RunResult, StartTime, make_result
from diffprobe.evaluation.audit_inputs import write_arrays
from diffprobe.evaluation.audit_measures import measure_cell
from diffprobe.evaluation.audit_records import notes_of, records_of
from diffprobe.evaluation.audit_settings import Audit
from diffprobe.evaluation.audit_steering import SteeredAudit, SteeredAxis
from diffprobe.evaluation.audit_steering_records import steering_records
from diffprobe.evaluation.audit_steering_settings import AuditSteering
from tests.analysis.audit.world import World

RATES = {"cook": 0.9, "judge": 0.1, "poet": 0.5, "pilot": 0.5, "miner": 0.75, "actor": 0.25}
TEXTURE = Axis(name="texture", positive=("striped",), negative=("plain",))
TONE = Axis(name="tone", positive=("dark",), negative=("light",), context="{prompt}, {attribute} tone")


def settings(n_templates: int = 20, **more: Any) -> Audit:
    tree: dict[str, Any] = {
        "experiment": "audits/test", "cells": ("mid@t1",), "axes": (TEXTURE,), "descriptors": ("red", "blue", "old"),
        "templates": tuple(f"view {i} of a {{subject}}" for i in range(n_templates)),
        "subjects": tuple(Subject(name=name, group="arts" if name in ("poet", "actor") else None) for name in RATES),
        "n_resamples": 60, "n_permutations": 99, "max_clusters": 3, **more,
    }  # fmt: skip
    return Audit(**tree)


def write_store(folder: Path, config: Audit, **world: Any) -> Path:
    """Write latents of all cells of an audit; those of later cells are noisier."""
    cells = {}
    for number, cell in enumerate(config.cells):
        latents = World(RATES, **{"n_seeds": 6, "noise": 1.0 + number, **world}).latents(config)
        cells[cell] = latents.features
    write_arrays(folder, latents.prompts, cells)
    return folder


@cache
def example(**more: Any) -> RunResult:
    """Return the result of an audit that is not written, with times and versions that do not change."""
    config = settings(**more)
    measures = measure_cell(config, World(RATES, n_seeds=6).latents(config), words=None, images=None, reference=None)
    records = records_of(config, measures, (), notes_of(config, measures))
    return make_result(
        run="audits/test/0", experiment="audits/test", kind="audit", config=_plain(config), seeds={}, metrics=records,
        started_at=StartTime(0.0, 0.0),
    )  # fmt: skip


def _plain(config: Audit) -> dict[str, Any]:
    from diffprobe.config.parse import record_tree

    tree: dict[str, Any] = record_tree(config)
    return tree


def rates_csv(path: Path, rates: dict[str, float], spread: float = 0.05) -> Path:
    lines = [f"{name},{rate},{max(0, rate - spread)},{min(1, rate + spread)}" for name, rate in rates.items()]
    path.write_text("\n".join(["subject,rate,low,high", *lines]) + "\n")
    return path


def shuffled(rates: dict[str, float]) -> dict[str, float]:
    names = list(rates)
    return dict(zip(names, np.roll(list(rates.values()), 1).tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class PlantedReader:
    """A reader with known errors; it reads nothing."""

    name: str = "planted eyes"
    validated_on: str = "400 planted images"
    confusion: Any = field(default_factory=lambda: np.array([[160, 40], [20, 180]]))
    needs_images: bool = False

    def read(self, latents: Any, images: Any) -> Any:
        raise NotImplementedError


def steered_example(**more: Any) -> RunResult:
    """Return an audit whose steering is planted: rates .5 + .2 * strength on the first axis, none along random ones."""
    block = AuditSteering(generator="model", labelled="data", strengths=(-2.0, 0.0, 2.0), n_random=2, seeds=4)
    config = settings(steering=block, **more)
    measures = measure_cell(config, World(RATES, n_seeds=6).latents(config), words=None, images=None, reference=None)
    names = [axis.name for axis in config.axes]
    subjects = tuple(one.name for one in config.all_subjects)
    prompts = [name for name in subjects for _ in range(4)]
    axes = []
    for number, axis in enumerate(names):
        generator = np.random.default_rng(number)
        noise, unit = generator.uniform(size=len(prompts)), np.eye(8)[number]
        base = generator.normal(size=(len(prompts), 8))
        cloud = DataCloud(features=generator.normal(size=(60, 8)))
        readings, doses = {}, {}
        for label, slope in ((axis, 0.2), ("random 1", 0.0), ("random 2", 0.0)):
            codes = np.stack([noise < 0.5 + slope * s for s in block.strengths]).astype(np.int64)
            readings[label] = SteeredReadings(strengths=block.strengths, codes=dict.fromkeys(names, codes))
            along = {axis: unit, **{other: np.eye(8)[i] for i, other in enumerate(names) if other != axis}}
            features = {s: base + 5 * slope * s * unit for s in block.strengths}
            doses[label] = dose_response(features, along, cloud, prompts, n_resamples=20)
        scores = measures.axis(axis).associations.cosine.value
        rates = readings[axis].codes[axis][1].reshape(len(subjects), -1).mean(1)
        axes.append(SteeredAxis(
            axis=axis, reader=PlantedReader(), doses=doses, images={s: [object()] for s in block.strengths},
            link=causal_link(readings, prompts, PlantedReader().confusion, axis=axis, sampling=config.sampling),
            subject_rates=rates, scores=scores,
            agreement=rank_agreement(scores, rates, n_resamples=20, n_permutations=19),
        ))  # fmt: skip
    steered = SteeredAudit(axes=tuple(axes), subjects=subjects, n_images=len(prompts))
    records = [*records_of(config, measures, (), notes_of(config, measures)), *steering_records(config, steered)]
    return make_result(
        run="audits/test/0", experiment="audits/test", kind="audit", config=_plain(config), seeds={}, metrics=records,
        started_at=StartTime(0.0, 0.0),
    )  # fmt: skip
