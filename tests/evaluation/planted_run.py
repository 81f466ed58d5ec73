"""A run of an autoencoder whose latents are known, on features in memory; and a writer that records what it gets."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

from diffprobe.evaluation.explore_pass import PassResult
from diffprobe.evaluation.explore_processes import Passes
from diffprobe.evaluation.explore_runs import ExploredRun, OtherSeed
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.evaluation.load_sae_run import TrainedRun
from diffprobe.evaluation.page_features import PageFeatures
from diffprobe.features.batch import FeatureTable, concatenate
from diffprobe.probes.sae.topk import Config, TopK
from diffprobe.report.explorer.records import Column, ExplorerFacts, ImagePage, LatentMatch, LatentPage

STYLES = ("flat", "oil", "ink")
CLASSES = ("cat", "dog")
D = 6
"""Latents 0..2 fire for one style each, 3 and 4 for noise, and 5 never."""
POOLED = ("mid_block@t20:empty:mean",)
SPATIAL = ("mid_block@t20:empty:none",)
TIMESTEPS = ("mid_block@t20:empty:mean", "mid_block@t40:empty:mean")


def planted_sae(order: tuple[int, ...] = tuple(range(D)), k: int = 2) -> TopK:
    """An autoencoder whose latent i reads dimension order[i]; the one of dimension 5 never fires."""
    sae = TopK(Config(k=k, n_latents=D), D, seed=0)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(D)[list(order)])
        sae.W_enc.copy_(sae.W_dec)
        sae.b_enc.copy_(torch.where(torch.tensor(order) == 5, -1e3, 0.0))
    return sae.eval()


def planted_tables(n: int = 60, *, cells: tuple[str, ...] = POOLED, n_shards: int = 3, seed: int = 0) -> list:
    """Images of one style each, whose dimension is 5 to 6 in one place (of 2 x 3 places, or the only one)."""
    generator = torch.Generator().manual_seed(seed)
    style = torch.randint(0, len(STYLES), (n,), generator=generator)
    features = {}
    for number, cell in enumerate(cells):
        x = torch.rand(n, 6, D, generator=generator) * 0.1
        x[torch.arange(n), torch.arange(n) % 6, style] = 5 + torch.rand(n, generator=generator) + number
        features[cell] = x.view(n, 2, 3, D).movedim(-1, 1) if cell.endswith("none") else x.amax(1)
    label = torch.randint(-1, len(CLASSES), (n,), generator=generator)
    table = FeatureTable(
        features, [f"image-{(7 * i) % n:03d}" for i in range(n)], label, {"style": style},
        captions=[f"a {STYLES[s]} <b>{i}</b>" if i % 3 else "" for i, s in enumerate(style.tolist())],
        shards=[f"test-{i * n_shards // n:04d}.tar" for i in range(n)],
    )  # fmt: skip
    bounds = [next(i for i in range(n + 1) if i * n_shards >= shard * n) for shard in range(n_shards + 1)]
    return [table.select(torch.arange(a, b)) for a, b in zip(bounds, bounds[1:], strict=False)]


def planted_run(
    tables: list, cells: tuple[str, ...] = POOLED, *, sae: TopK | None = None, seeds: tuple[OtherSeed, ...] = ()
) -> ExploredRun:
    """The run of `planted_sae` on some tables."""
    features = PageFeatures(
        widths=dict.fromkeys(cells, D), classes=CLASSES, attributes={"style": STYLES},
        table=lambda split: concatenate(tables), iter_tables=lambda split: iter(tables), images=None,
        missing="they were moved.",
    )  # fmt: skip
    config = SimpleNamespace(
        backbone=SimpleNamespace(path="models/tiny"), seed=0,
        data=SimpleNamespace(path="sets/planted", caps=None, train_split="train"),
    )  # fmt: skip
    result = SimpleNamespace(run="0123", experiment="planted/sae", artifacts={}, seeds={}, config={}, metrics=[])
    trained = cast(TrainedRun, SimpleNamespace(config=config, result=result, folder=Path("planted")))
    return ExploredRun(
        trained=trained, sae=sae or planted_sae(), cells=cells, split="test", features=features, seeds=seeds
    )


def pass_over(run: ExploredRun, *, n_top: int, max_values: int) -> PassResult:
    """Return what one process finds in the images of a run."""
    return Passes(run, ExploreConfig(device="cpu", n_top=n_top, max_values=max_values)).find()


class Recorder:
    """A writer that keeps the records."""

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []
        self.matches: list[LatentMatch] = []

    def run(self, facts: ExplorerFacts, columns: Any, pages: Any, images: Any, texts: Any = ()) -> None:
        found: dict[str, Any] = {"facts": facts, "columns": {column.key: column for column in columns}}
        found["texts"] = {text.key: text for text in texts}
        self.runs.append({**found, "latents": list(pages), "images": list(images)})

    def compare(self, matches: Any) -> None:
        self.matches = list(matches)

    def close(self) -> Path:
        return Path("index.html")

    def column(self, key: str, run: int = 0) -> Column:
        return self.runs[run]["columns"][key]

    def latent(self, latent: int, run: int = 0) -> LatentPage:
        return self.runs[run]["latents"][latent]

    def image(self, image: int, run: int = 0) -> ImagePage:
        return self.runs[run]["images"][image]
