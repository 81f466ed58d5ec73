"""Rates of one core, and extraction by several processes (`diffprobe bench scaling`); scaling_plan.py plans with them.

Shards of synthetic photographs are written to a temporary folder. Reading, checksums, decoding and the writing of
features are timed alone on one core, then `extract` with the backbone "pixels", which is the whole path but for the
network, in 1, 2 and more processes of one thread each. Files are read from the memory of the system, so that the rates
are those of the processor; the bandwidth of the storage is a figure of the user.
"""

import io
import json
import math
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import torch

from diffprobe.benchmarks.machine import machine
from diffprobe.benchmarks.scaling_plan import Rates
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.progress import Bar
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.extract import extract
from diffprobe.features.manifest import Manifest, ShardEntry
from diffprobe.features.writer import ExtractedBatch, StoreWriter
from diffprobe.shards.batch import collate
from diffprobe.shards.decode import decode_sample
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.writer import write_shards

_SECONDS = 600
"""Seconds for which processes wait for each other before they begin."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Settings of the measurement."""

    images: int = 512
    """Number of images; rounded down to equal shards."""
    side: int = 512
    """Side of the square images in pixels, as stored and as decoded."""
    cells: int = 20
    """Cells of the store whose writing is timed."""
    width: int = 1280
    """Width of a cell."""
    batch_size: int = 32
    """Images per batch."""
    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes of the extraction."""
    repeats: int = 3
    """Repetitions; the fastest counts."""

    def __post_init__(self) -> None:
        for name in ("side", "cells", "width", "batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: at least 1.")
        if not self.processes or min(self.processes) < 1:
            raise ConfigError(f"processes={list(self.processes)} is out of range: each at least 1.")
        if self.images < self.shards:
            raise ConfigError(f"images={self.images} is too small for these processes: at least {self.shards}.")

    @property
    def shards(self) -> int:
        """Number of shards: at least 8, and the same number for each process."""
        common = math.lcm(*self.processes)
        return -(-8 // common) * common


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Extraction by some processes."""

    processes: int
    images_s: float
    """Images/s of all of them together, without the start of the processes."""


@dataclass(frozen=True, kw_only=True)
class ScalingReport:
    """The measurements, and the machine."""

    machine: str
    cores: int
    image_bytes: float
    """Mean bytes of a sample in its shard."""
    setting: Measurement
    rates: Rates
    rows: tuple[Scaled, ...]

    def to_json(self) -> str:
        """Return all measurements as JSON."""
        return json.dumps(asdict(self), indent=2) + "\n"


def bench_scaling(setting: Measurement, *, progress: Callable[[str], None] = lambda line: None) -> ScalingReport:
    """Measure the rates of one core, and extraction by several processes.

    Args:
        setting: what to measure.
        progress: called with a line of text before each step.

    Raises: RunFailed if a process of the extraction fails.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="diffprobe-bench-") as scratch:
            return _measured(setting, Path(scratch), progress)
    finally:
        torch.set_num_threads(threads)


def _measured(setting: Measurement, scratch: Path, progress: Callable[[str], None]) -> ScalingReport:
    setting = replace(setting, images=setting.images // setting.shards * setting.shards)
    progress(f"writing {setting.images:,} images of {setting.side} px")
    shards = scratch / "shards"
    write_shards(_photographs(setting), shards, "train", samples_per_shard=setting.images // setting.shards)
    shard_set = build_index(shards, name="scaling", licence="none")
    n_mb = sum(shard.n_bytes for shard in shard_set.shards) / 1e6
    best = _Fastest(setting.repeats, progress)
    rates = Rates(
        read_mb_s=n_mb / best("reading shards", lambda: _read(shard_set)),
        checksum_mb_s=n_mb / best("checksums of shards", lambda: _hash(shard_set)),
        decode_images_s=setting.images / best("decoding", _decoder(shard_set, setting)),
        write_mb_s=_write_mb(setting) / best("writing features", _feature_writer(setting, scratch)),
    )
    rows = []
    for n in setting.processes:
        seconds = best(f"extraction by {n} processes", _extractor(shards, setting, n, scratch))
        rows.append(Scaled(processes=n, images_s=setting.images / seconds))
    return ScalingReport(
        machine=machine(), cores=os.cpu_count() or 1, image_bytes=n_mb * 1e6 / setting.images, setting=setting,
        rates=rates, rows=tuple(rows),
    )  # fmt: skip


class _Fastest:
    """Times a call several times; the fastest counts. A call may return its own seconds."""

    def __init__(self, repeats: int, progress: Callable[[str], None]) -> None:
        self._repeats, self._progress = repeats, progress

    def __call__(self, name: str, run: Callable[[], float | None]) -> float:
        self._progress(f"measuring {name}")
        times = []
        for _ in range(self._repeats):
            start = time.perf_counter()
            own = run()
            times.append(time.perf_counter() - start if own is None else own)
        return max(min(times), 1e-9)


def _photographs(setting: Measurement) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Make images with the detail of photographs: noise that falls with the frequency."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(setting.images):
        image = np.zeros((setting.side, setting.side, 3))
        for step in (2, 8, 32, 128):
            small = generator.normal(size=(-(-setting.side // step), -(-setting.side // step), 3))
            grown = small.repeat(step, 0).repeat(step, 1)[: setting.side, : setting.side]
            image += grown * step**0.5
        image = 128 + 40 * image / image.std()
        buffer = io.BytesIO()
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(buffer, "jpeg", quality=90)
        yield f"image{i:06d}", {"jpg": buffer.getvalue(), "json": json.dumps({"label": i % 10}).encode()}


def _read(shard_set: ShardSet) -> None:
    for shard in shard_set.shards:
        for _ in shard_set.read(shard.file):
            pass


def _hash(shard_set: ShardSet) -> None:
    for shard in shard_set.shards:
        digest_file(shard_set.root / shard.file)


def _decoder(shard_set: ShardSet, setting: Measurement) -> Callable[[], None]:
    raws = [raw for shard in shard_set.shards for raw in shard_set.read(shard.file)]

    def run() -> None:
        for first in range(0, len(raws), setting.batch_size):
            batch = raws[first : first + setting.batch_size]
            samples = [decode_sample(raw, shard_set, fields=shard_set.fields, resolution=setting.side) for raw in batch]
            collate(samples, shard_set)

    return run


def _write_mb(setting: Measurement) -> float:
    return 4 * setting.images * setting.cells * setting.width / 1e6


def _feature_writer(setting: Measurement, scratch: Path) -> Callable[[], None]:
    cells = {f"mid_block@t{i}:empty:mean": setting.width for i in range(setting.cells)}
    shard = ShardEntry(file="train-0000.tar", split="train", n=setting.images, sha256="0" * 64)
    recorded = {"backbone": "b", "data": "d", "licence": "l", "classes": ["x"], "attributes": {}, "versions": {}}
    manifest = Manifest(
        backbone={"seed": 0}, cells=cells, data={"shard_set": "0" * 64}, shards=(shard,), recorded=recorded
    )
    values = torch.randn(setting.batch_size, setting.width, generator=torch.Generator().manual_seed(0))

    def batches() -> Iterator[ExtractedBatch]:
        for first in range(0, setting.images, setting.batch_size):
            n = min(setting.batch_size, setting.images - first)
            keys = [f"image{first + i:06d}" for i in range(n)]
            features = dict.fromkeys(cells, values[:n])
            yield ExtractedBatch(FeatureBatch(features, keys, torch.zeros(n).long(), {}), [""] * n)

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            StoreWriter(Path(folder), manifest).write(shard, batches())

    return run


def _extractor(shards: Path, setting: Measurement, n: int, scratch: Path) -> Callable[[], float]:
    """Return a function that extracts with n processes and returns the seconds from their common begin to the end."""

    def run() -> float:
        context = multiprocessing.get_context("spawn")
        with tempfile.TemporaryDirectory(dir=scratch) as store:
            barrier, times = context.Barrier(n), context.Queue()
            children = [
                context.Process(target=_extract_part, args=(shards, setting, Path(store), (i, n), barrier, times))
                for i in range(n)
            ]
            for child in children:
                child.start()
            while any(child.is_alive() for child in children):
                if any(child.exitcode for child in children):
                    barrier.abort()  # the others would wait for it
                children[0].join(0.1)
                time.sleep(0.1)
            failed = [child.exitcode for child in children if child.exitcode]
            if failed:
                raise RunFailed(f"a process of the extraction ended with status {failed[0]}; its message is above.")
            spans = [times.get() for _ in children]
        return max(end for _, end in spans) - min(begin for begin, _ in spans)

    return run


class _NoBar:
    def update(self, n: int, /) -> None:
        """Count nothing."""


def _extract_part(
    shards: Path,
    setting: Measurement,
    store: Path,
    process: tuple[int, int],
    barrier: Barrier,
    times: "Queue[tuple[float, float]]",
) -> None:
    torch.set_num_threads(1)
    began: list[float] = []

    @contextmanager
    def together(total: int) -> Iterator[Bar]:
        barrier.wait(_SECONDS)  # the backbone is loaded, and nothing is read yet
        began.append(time.time())
        yield _NoBar()

    extract(
        BackboneConfig(path="pixels", device="cpu"),
        DataConfig(path=str(shards), batch_size=setting.batch_size),
        FeaturesConfig(taps=("pixels",), timesteps=(0,), resolution=setting.side, store=str(store)),
        splits=("train",),
        process=process,
        progress=together,
    )
    times.put((began[0], time.time()))


def rate_rows(rates: Rates) -> list[str]:
    """Return the rates of one core as lines of a Markdown table."""
    return [
        "| on one core | rate |",
        "|---|---|",
        f"| reading shards | {rates.read_mb_s:,.0f} MB/s |",
        f"| checksums of shards | {rates.checksum_mb_s:,.0f} MB/s |",
        f"| decoding | {rates.decode_images_s:,.0f} images/s |",
        f"| writing features | {rates.write_mb_s:,.0f} MB/s |",
    ]


def render(report: ScalingReport) -> str:
    """Return the measurements as Markdown tables."""
    first = report.rows[0]
    lines = [
        f"{report.machine}, {report.cores} cores; {report.setting.side} px, "
        f"{report.image_bytes / 1e3:,.0f} kB per image",
        "",
        *rate_rows(report.rates),
        "",
        "| processes of extraction | images/s | of linear |",
        "|---|---|---|",
    ]
    for row in report.rows:
        linear = first.images_s / first.processes * row.processes
        lines.append(f"| {row.processes} | {row.images_s:,.0f} | {row.images_s / linear:.0%} |")
    return "\n".join(lines)
