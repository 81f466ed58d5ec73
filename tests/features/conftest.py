"""Small stores with made-up features, for the tests that need no backbone."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import lightning
import pytest
import torch
from torch import nn

from diffprobe.features.batch import FeatureBatch
from diffprobe.features.manifest import LATENTS, Manifest, ShardEntry
from diffprobe.features.reader import FeatureStore
from diffprobe.features.writer import ExtractedBatch, StoreWriter

CELLS = {"mid_block@t10:empty:mean": 3, "up_blocks.0@t10:empty:mean": 5}
SHARDS = (("train-0000.tar", "train", 7), ("train-0001.tar", "train", 4), ("val-0000.tar", "val", 5))


def make_manifest(**changes: object) -> Manifest:
    content = {
        "backbone": {"weights": "ab" * 32, "seed": 0, "taps": ["mid_block", "up_blocks.0"], "timesteps": [10]},
        "cells": dict(CELLS),
        "data": {"shard_set": "cd" * 32, "fields": {"label": "label"}, "on_error": "raise"},
        "shards": tuple(ShardEntry(file=f, split=s, n=n, sha256=f"{i:064x}") for i, (f, s, n) in enumerate(SHARDS)),
        "recorded": {
            "backbone": "toy",
            "data": "toy",
            "licence": "none",
            "classes": ["cat", "dog"],
            "attributes": {"style": ["a", "b", "c"]},
            "versions": {"torch": torch.__version__},
        },
    }
    return Manifest(**{**content, **changes})  # type: ignore[arg-type]


def row(shard: ShardEntry, cell: str, number: int, width: int) -> torch.Tensor:
    """The made-up feature of one sample: depends on shard, cell and number, and is not a round float."""
    return torch.sin(torch.arange(width) + 17.3 * number + 3.1 * len(cell) + int(shard.sha256, 16))


def batches_of(manifest: Manifest, shard: ShardEntry, batch_size: int = 3) -> Iterator[ExtractedBatch]:
    for start in range(0, shard.n, batch_size):
        numbers = range(start, min(start + batch_size, shard.n))
        features = {c: torch.stack([row(shard, c, i, w) for i in numbers]) for c, w in manifest.cells.items()}
        batch = FeatureBatch(
            features=features,
            keys=[f"{shard.file}/{i}" for i in numbers],
            label=torch.tensor([i % 2 for i in numbers]),
            attributes={"style": torch.tensor([i % 4 - 1 for i in numbers])},
        )
        yield ExtractedBatch(batch, [f"caption {i}" for i in numbers])


@pytest.fixture
def manifest() -> Manifest:
    return make_manifest()


@pytest.fixture
def latent_manifest() -> Manifest:
    return make_manifest(kind=LATENTS, cells={"vae_latents": 4})


@pytest.fixture
def changed_manifest() -> Callable[..., Manifest]:
    return make_manifest


@pytest.fixture
def toy_batches() -> Callable[..., Iterator[ExtractedBatch]]:
    return batches_of


@pytest.fixture
def fill() -> Callable[..., FeatureStore]:
    """Write a store of a manifest below a folder: all of it, or the part of `process`."""

    def write(
        root: Path, manifest: Manifest, *, process: tuple[int, int] = (0, 1), batch_size: int = 3
    ) -> FeatureStore:
        writer = StoreWriter(root, manifest)
        for shard in writer.pending(process):
            writer.write(shard, batches_of(manifest, shard, batch_size))
        writer.finish()
        return FeatureStore.open(writer.path, kind=None)

    return write


@pytest.fixture
def file_bytes() -> Callable[[Path], dict[str, bytes]]:
    """Read a folder: relative name -> bytes of every file."""
    return lambda root: {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def make_configs(tiny_sd: Path, tiny_shards: Path, store: Path, **changes: object) -> tuple:
    from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig

    parts: dict[str, dict[str, object]] = {
        "backbone": {"path": str(tiny_sd), "device": "cpu"},
        "data": {"path": str(tiny_shards), "batch_size": 4},
        "features": {"taps": ("mid_block", "up_blocks.0"), "timesteps": (20, 400), "store": str(store)},
    }
    for name, value in changes.items():
        part, _, field = name.partition("_")
        parts[part][field] = value
    return (
        BackboneConfig(**parts["backbone"]),  # type: ignore[arg-type]
        DataConfig(**parts["data"]),  # type: ignore[arg-type]
        FeaturesConfig(**parts["features"]),  # type: ignore[arg-type]
    )


@pytest.fixture
def configs(tiny_sd: Path, tiny_shards: Path, tmp_path: Path) -> Callable[..., tuple]:
    """Make the three configs of a request over the tiny backbone and shards; the store is in the test's folder.

    Takes fields of any of the three by `backbone_x=`, `data_x=`, `features_x=`.
    """
    return lambda **changes: make_configs(tiny_sd, tiny_shards, tmp_path / "s", **changes)


@pytest.fixture(scope="session")
def filled(tiny_sd: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """The configs of a request whose store is written already."""
    from diffprobe.features.extract import extract

    parts = make_configs(tiny_sd, tiny_shards, tmp_path_factory.mktemp("filled"))
    extract(*parts, progress=False)
    return parts


@pytest.fixture(scope="session")
def alone(filled: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the shared request in a folder that holds no other."""
    from diffprobe.features.request import Request

    path = FeatureStore.find(filled[2].store, Request(*filled).manifest).path
    return shutil.copytree(path, tmp_path_factory.mktemp("alone") / path.name)


@pytest.fixture
def broken_shards(tiny_shards: Path, tmp_path: Path) -> tuple[Path, str]:
    """A copy of the tiny shards with half an image, and the key of that sample."""
    from diffprobe.shards.index import build_index
    from diffprobe.shards.reader import read_shard
    from diffprobe.shards.writer import write_shard

    root, bad = tmp_path / "broken", ""
    root.mkdir()
    for path in sorted(tiny_shards.glob("*.tar*")):
        samples = [(raw.key, dict(raw.files)) for raw in read_shard(path)]
        if path.name.startswith("train") and not bad:
            bad, files = samples[1]
            files["png"] = files["png"][: len(files["png"]) // 2]
        write_shard(root / path.name, samples)
    build_index(root, name="broken", licence="none")
    return root, bad


@pytest.fixture
def both(filled: tuple) -> tuple:
    """Live and stored features of one store, which many tests share."""
    from diffprobe.features.live import LiveFeatures
    from diffprobe.features.stored import StoredFeatures

    return LiveFeatures(*filled, seed=3), StoredFeatures(*filled, seed=3)


@pytest.fixture
def shared(filled: tuple, configs: Callable[..., tuple]) -> Callable[..., tuple]:
    """Make configs like `configs` whose store is the shared one."""
    return lambda **changes: configs(**{"features_store": filled[2].store, **changes})


class Probe(lightning.LightningModule):
    """A linear probe that writes down what it saw."""

    def __init__(self, cell, width, n_classes):
        super().__init__()
        self.cell, self.head, self.seen = cell, nn.Linear(width, n_classes), []

    def training_step(self, batch, index):
        assert isinstance(batch, FeatureBatch)
        self.seen.append(tuple(batch.keys))
        return nn.functional.cross_entropy(self.head(batch.features[self.cell]), batch.label.clamp(min=0))

    def validation_step(self, batch, index):
        assert isinstance(batch, FeatureBatch)
        self.seen.append(("val", *batch.keys))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture
def probe_class() -> type[Probe]:
    return Probe


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., lightning.Trainer]:
    """Make a quiet Trainer of two epochs on the CPU, working in the test's folder."""

    def make(**options: object) -> lightning.Trainer:
        defaults = {"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
        arguments = {"default_root_dir": tmp_path, "enable_model_summary": False, **defaults, **options}
        return lightning.Trainer(**arguments)  # type: ignore[arg-type]

    return make


@pytest.fixture
def by_key() -> Callable[[Iterable[FeatureBatch]], dict]:
    """Gather batches by key and refuse a duplicate key."""

    def gather(batches: Iterable[FeatureBatch]) -> dict:
        rows = {}
        for batch in batches:
            assert isinstance(batch, FeatureBatch)
            for i, key in enumerate(batch.keys):
                assert key not in rows
                features = {cell: values[i] for cell, values in batch.features.items()}
                rows[key] = (features, int(batch.label[i]), {name: int(v[i]) for name, v in batch.attributes.items()})
        return rows

    return gather


@pytest.fixture
def assert_same() -> Callable[[dict, dict], None]:
    """Compare what `by_key` gathered: features to 1e-5, labels and attributes exactly."""

    def compare(first: dict, second: dict) -> None:
        assert first.keys() == second.keys()
        for key, (features, label, attributes) in first.items():
            assert (label, attributes) == second[key][1:]
            assert features.keys() == second[key][0].keys()
            for cell, values in features.items():
                torch.testing.assert_close(values, second[key][0][cell], atol=1e-5, rtol=0)

    return compare
