"""Stores of prompts and of images with planted attributes, for the tests of open discovery."""

from pathlib import Path

import numpy as np
import torch

from diffprobe.evaluation.discover_inputs import KEPT_IMAGES
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.manifest import ShardEntry
from diffprobe.features.reader import FeatureStore
from diffprobe.features.writer import ExtractedBatch, StoreWriter
from tests.analysis.discovery.planted import Planted, planted
from tests.features.conftest import make_manifest

CELL = "mid_block@t100:empty:mean"
SIDE = 8
"""Side of the images, which are bright where a sample has the hidden attribute."""


def images_of(made: Planted) -> np.ndarray:
    """Return float images (samples, 3, side, side) in [0, 1]."""
    return np.broadcast_to(
        np.where(made.hidden, 0.8, 0.2)[:, None, None, None], (len(made.names), 3, SIDE, SIDE)
    ).astype(np.float32)


def prompt_store(root: Path, *, n_subjects: int = 6, n_seeds: int = 80, images: bool = True) -> FeatureStore:
    """Write a store of one prompt per subject, with shared seeds."""
    made = planted(n_subjects, n_seeds, paired=True, d=6)
    cells = {CELL: 6, **({KEPT_IMAGES: 3} if images else {})}
    attributes = {
        "role": list(made.design.names), "prompt_id": [f"id{i}" for i in range(n_subjects)],
        "seed": [str(i) for i in range(n_seeds)],
    }  # fmt: skip
    prompts = [f"a {made.design.names[i]}" for i in made.design.subjects]
    batch = FeatureBatch(
        features={
            CELL: torch.from_numpy(made.features.astype(np.float32)),
            **({KEPT_IMAGES: torch.from_numpy(images_of(made).copy())} if images else {}),
        },
        keys=[f"id{i}/{int(seed)}" for i, seed in zip(made.design.subjects, made.design.blocks or (), strict=True)],
        label=torch.full((len(made.names),), -1),
        attributes={
            "role": torch.from_numpy(made.design.subjects), "prompt_id": torch.from_numpy(made.design.subjects),
            "seed": torch.tensor([int(seed) for seed in made.design.blocks or ()]),
        },
    )  # fmt: skip
    return _write(root, batch, prompts, cells, attributes, classes=[], sampling=True)


def image_store(root: Path, *, n_subjects: int = 6, n_seeds: int = 80, captions: bool = True) -> FeatureStore:
    """Write a store of images with labels, of which one has none."""
    made = planted(n_subjects, n_seeds, d=6)
    label = torch.from_numpy(made.design.subjects.copy())
    label[5] = -1
    batch = FeatureBatch(
        features={CELL: torch.from_numpy(made.features.astype(np.float32))}, keys=made.names, label=label,
        attributes={"style": torch.zeros(len(made.names), dtype=torch.long)},
    )  # fmt: skip
    texts = made.captions if captions else [""] * len(made.names)
    return _write(root, batch, texts, {CELL: 6}, {"style": ["flat"]}, classes=list(made.design.names), sampling=False)


def _write(
    root: Path, batch: FeatureBatch, captions: list[str], cells: dict[str, int], attributes: dict[str, list[str]],
    *, classes: list[str], sampling: bool,
) -> FeatureStore:  # fmt: skip
    backbone = {"weights": "ab", "taps": ["mid_block"], "timesteps": [100], **({"sampling": {}} if sampling else {})}
    entry = ShardEntry(file="train-0000.tar", split="train", n=len(batch), sha256="0")
    manifest = make_manifest(
        backbone=backbone, cells=cells, shards=(entry,),
        recorded={"backbone": "toy", "data": "toy", "licence": "none", "classes": classes, "versions": {},
                  "attributes": attributes},
    )  # fmt: skip
    writer = StoreWriter(root, manifest)
    writer.write(entry, [ExtractedBatch(batch, captions)])
    writer.finish()
    return FeatureStore.open(writer.path)
