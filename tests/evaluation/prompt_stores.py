"""A store of planted prompt latents: context + value * direction + seed, in three cells."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from diffprobe.features.batch import FeatureBatch
from diffprobe.features.manifest import Manifest, ShardEntry
from diffprobe.features.writer import ExtractedBatch, StoreWriter

CELLS = {"mid_block@t199:caption:mean": 8, "mid_block@t200:empty:mean": 8, "up_blocks.0@t199:caption:none": 2}
BACKBONE = {
    "family": "toy", "weights": "ab", "random_seed": None, "schedule": "cd", "taps": ["mid_block"], "timesteps": [199],
    "sampling": {},
}  # fmt: skip
ENDS = ("striped", "plain")
DIRECTION = np.eye(8)[2]


def write_prompt_store(
    root: Path, *, seeds: int = 4, contexts: Sequence[str] = ("cook", "judge", "poet", "pilot"), strength: float = 2.0
) -> Path:
    """Write the store, and return its folder; the first cell has the direction `DIRECTION` of length `strength`."""
    generator = np.random.default_rng(0)
    prompts = [(context, value) for context in contexts for value in ENDS]
    ids = sorted(f"{context}-{value}" for context, value in prompts)
    attributes = {
        "context": sorted(contexts), "prompt_id": ids, "seed": [str(s) for s in range(seeds)], "texture": sorted(ENDS),
    }  # fmt: skip
    shard = ShardEntry(file="train-00000", split="train", n=seeds * len(prompts), sha256="0")
    manifest = Manifest(
        backbone=BACKBONE, cells=dict(CELLS), data={"shard_set": "ef", "fields": {}, "on_error": "raise"},
        shards=(shard,),
        recorded={"backbone": "toy", "data": "prompts", "licence": "none", "classes": [], "attributes": attributes,
                  "versions": {}},
    )  # fmt: skip
    of_context = {context: 5 * generator.standard_normal(8) for context in contexts}
    of_seed = 3 * generator.standard_normal((seeds, 8))
    rows = [(context, value, s) for context, value in prompts for s in range(seeds)]
    latents = np.stack([
        of_context[context] + of_seed[s] + (strength / 2 if value == "striped" else -strength / 2) * DIRECTION
        + 0.05 * generator.standard_normal(8)
        for context, value, s in rows
    ])  # fmt: skip
    first = torch.from_numpy(latents).float()
    batch = FeatureBatch(
        features=dict(zip(CELLS, (first, 2 * first, first[:, :2, None, None].expand(-1, 2, 2, 2)), strict=True)),
        keys=[f"{context}-{value}/{s}" for context, value, s in rows],
        label=torch.full((len(rows),), -1),
        attributes={
            "context": torch.tensor([attributes["context"].index(context) for context, _, _ in rows]),
            "prompt_id": torch.tensor([ids.index(f"{context}-{value}") for context, value, _ in rows]),
            "seed": torch.tensor([s for _, _, s in rows]),
            "texture": torch.tensor([attributes["texture"].index(value) for _, value, _ in rows]),
        },
    )
    writer = StoreWriter(root, manifest)
    writer.write(shard, [ExtractedBatch(batch, [f"a {context}, {value} clothes" for context, value, _ in rows])])
    writer.finish()
    return writer.path


def write_image_store(
    root: Path, *, cells: Sequence[str] = tuple(CELLS)[:2], n: int = 40, noise: float = 1.0, weights: str = "ab",
    reverse: bool = False, prefix: str = "image", seed: int = 1, captions: bool = True,
) -> Path:  # fmt: skip
    """Write features of images, half of each end, in families of four, and return the folder of the store."""
    generator = np.random.default_rng(seed)
    keys = [f"{prefix}-{i:03d}" for i in range(n)]
    striped = np.arange(n) % 2 == 0
    families = sorted({f"family-{i // 4}" for i in range(n)})
    latents = np.where(striped, 1.0, -1.0)[:, None] * DIRECTION + noise * generator.standard_normal((n, 8))
    order = np.arange(n)[::-1] if reverse else np.arange(n)
    backbone = {**BACKBONE, "weights": weights}
    backbone.pop("sampling")
    shard = ShardEntry(file="test-0000.tar", split="test", n=n, sha256="0")
    manifest = Manifest(
        backbone=backbone, cells=dict.fromkeys(cells, 8), data={"shard_set": "gh", "fields": {}, "on_error": "raise"},
        shards=(shard,),
        recorded={"backbone": "toy", "data": "images", "licence": "none", "classes": [],
                  "attributes": {"texture": sorted(ENDS), "family": families}, "versions": {}},
    )  # fmt: skip
    batch = FeatureBatch(
        features={cell: torch.from_numpy(latents[order]).float() for cell in cells},
        keys=[keys[i] for i in order], label=torch.full((n,), -1),
        attributes={
            "texture": torch.tensor([sorted(ENDS).index("striped" if striped[i] else "plain") for i in order]),
            "family": torch.tensor([families.index(f"family-{i // 4}") for i in order]),
        },
    )  # fmt: skip
    texts = ["a cook, striped clothes" if striped[i] and i % 3 else "a cook" for i in order] if captions else []
    writer = StoreWriter(root, manifest)
    writer.write(shard, [ExtractedBatch(batch, texts or [""] * n)])
    writer.finish()
    return writer.path
