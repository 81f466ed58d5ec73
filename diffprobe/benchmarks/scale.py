"""Growth of work with samples, classes, attribute values and cells (`diffprobe bench scale`).

Each part runs at an eighth, a quarter, a half and all of its size. The growth exponent between two sizes is
log2 of the ratio of their CPU times per doubling: 1 is linear, 2 quadratic. Data are synthetic, without images.
"""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from diffprobe.benchmarks.machine import machine
from diffprobe.core.errors import ConfigError
from diffprobe.core.progress import Countdown
from diffprobe.features.batch import FeatureTable
from diffprobe.features.row_layout import RowLayout
from diffprobe.features.stored import StoredRows
from diffprobe.shards.annotation import Fields
from diffprobe.shards.index import ShardInfo, ShardSet, write_index
from diffprobe.shards.reader import RawSample
from diffprobe.shards.scan import Scan
from diffprobe.training.sae_scores import SplitScores

_PER_SHARD = 1000
_WIDTH, _LATENTS, _BATCH = 16, 32, 16


@dataclass(frozen=True)
class Measured:
    """The CPU seconds of one step at several sizes."""

    step: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponents(self) -> tuple[float, ...]:
        """The growth exponent between consecutive sizes."""
        pairs = list(zip(self.sizes, self.seconds, strict=True))
        return tuple(
            math.log(max(t, 1e-6) / max(before, 1e-6)) / math.log(n / n_before)
            for (n_before, before), (n, t) in zip(pairs, pairs[1:], strict=False)
        )


@dataclass(frozen=True)
class Report:
    """All measurements, and the machine."""

    machine: str
    rows: tuple[Measured, ...]

    def to_json(self) -> str:
        """Return the report as JSON text."""
        rows = [{**asdict(row), "exponents": row.exponents} for row in self.rows]
        return json.dumps({"machine": self.machine, "rows": rows}, indent=2) + "\n"


def bench_scale(
    *, samples: int = 1_000_000, classes: int = 100_000, cells: int = 1000, progress: Callable[[str], None] = print
) -> Report:
    """Measure all steps.

    Args:
        samples: samples of the largest index.
        classes: classes, and values of an attribute, of the largest index.
        cells: cells of the largest probe.
        progress: receives a line before each step and size, with the time left.

    Raises: ConfigError for sizes below 8.
    """
    if min(samples, classes, cells) < 8:
        raise ConfigError(f"samples={samples}, classes={classes}, cells={cells}: each at least 8, to have an eighth.")
    steps: list[tuple[str, int, Callable[[int], Callable[[], object]]]] = [
        ("scan of an index: samples", samples, _scan_samples),
        ("scan of an index: classes", classes, _scan_classes),
        ("scan of an index: values of an attribute", classes, _scan_values),
        ("writing and loading an index: classes and values", classes, _index_file),
        ("look-up of classes and values: samples", samples, _look_up),
        ("rows of a stored batch: cells", cells, _stored_rows),
        ("scores of an autoencoder: cells", cells, _sae_scores),
    ]
    rows = []
    step = Countdown(4 * len(steps), progress)
    for name, largest, prepare in steps:
        sizes = tuple(largest // part for part in (8, 4, 2, 1))
        seconds = []
        for size in sizes:
            step(f"{name}: {size:,}")
            run = prepare(size)
            started = time.process_time()
            run()
            seconds.append(time.process_time() - started)
        rows.append(Measured(name, sizes, tuple(seconds)))
    return Report(machine(), tuple(rows))


def _raws(n: int, *, n_classes: int, n_values: int, start: int = 0) -> Iterator[RawSample]:
    for i in range(start, start + n):
        label, value = i % n_classes, i % n_values
        record = {"label": label, "class_name": f"class {label}", "caption": "c", "attributes": {"a": f"value {value}"}}
        files = {"png": b"", "json": json.dumps(record).encode()}
        yield RawSample(key=f"k{i}", shard=f"train-{i // _PER_SHARD}.tar", position=i % _PER_SHARD, files=files)


def _scan(n: int, n_classes: int, n_values: int) -> Callable[[], object]:
    def run() -> object:
        scan = Scan(Fields())
        for start in range(0, n, _PER_SHARD):
            scan.samples(_raws(min(_PER_SHARD, n - start), n_classes=n_classes, n_values=n_values, start=start))
        scan.check_columns()
        return scan.classes()

    return run


def _scan_samples(n: int) -> Callable[[], object]:
    return _scan(n, 100, 100)


def _scan_classes(n: int) -> Callable[[], object]:
    return _scan(n, n, 100)


def _scan_values(n: int) -> Callable[[], object]:
    return _scan(n, 100, n)


def _shard_set(root: Path, n_samples: int, n_classes: int, n_values: int) -> ShardSet:
    """Make the set of an index whose shards are empty files."""
    shards = []
    for start in range(0, n_samples, _PER_SHARD):
        file = f"train-{start // _PER_SHARD:06d}.tar"
        (root / file).touch()
        count = min(_PER_SHARD, n_samples - start)
        shards.append(ShardInfo(file=file, split="train", n_samples=count, sha256="0" * 64, n_bytes=0))
    names = tuple(f"class {i}" for i in range(n_classes))
    values = {"a": tuple(sorted(f"value {i}" for i in range(n_values)))}
    return ShardSet(name="scale", root=root, shards=tuple(shards), classes=names, attributes=values, licence="none")


def _index_file(n: int) -> Callable[[], object]:
    def run() -> object:
        with tempfile.TemporaryDirectory() as folder:
            shard_set = _shard_set(Path(folder), 10 * _PER_SHARD, n, n)
            write_index(shard_set, Path(folder) / "index.json")
            return ShardSet.load(folder).digest

    return run


def _look_up(n: int) -> Callable[[], object]:
    shard_set = ShardSet(
        name="scale", root=Path(), shards=(), classes=tuple(f"class {i}" for i in range(n)),
        attributes={"a": tuple(f"value {i}" for i in range(n))}, licence="none",
    )  # fmt: skip

    def run() -> object:
        return sum(shard_set.class_ids[f"class {i}"] + shard_set.attribute_ids["a"][f"value {i}"] for i in range(n))

    return run


def _names(n: int) -> tuple[str, ...]:
    return tuple(f"mid_block@t{i}:empty:mean" for i in range(n))


def _stored_rows(n: int) -> Callable[[], object]:
    cells = _names(n)
    features = {cell: torch.zeros(_BATCH, _WIDTH) for cell in cells}
    table = FeatureTable(features, ["k"] * _BATCH, torch.zeros(_BATCH).long(), {})
    rows = StoredRows([table, table])
    layout = RowLayout.of(cells, table.features)
    chosen = torch.randperm(2 * _BATCH * n, generator=torch.Generator().manual_seed(0))

    def run() -> object:
        return [rows.take_rows(layout, chosen) for _ in range(5)]

    return run


def _sae_scores(n: int) -> Callable[[], object]:
    from diffprobe.features.batch import RowValues
    from diffprobe.probes.sae.types import Code

    scores = SplitScores(_WIDTH, _LATENTS, _names(n))
    x = torch.randn(_BATCH * n, _WIDTH, generator=torch.Generator().manual_seed(0))
    group = torch.arange(n).repeat_interleave(_BATCH)
    sample = torch.arange(_BATCH).repeat(n)
    rows = RowValues(x, group, sample, group)
    code = Code(x[:, :4].relu(), torch.arange(4).expand(len(x), 4))

    def run() -> object:
        for _ in range(2):
            scores.update(rows, x, code)
        return scores

    return run
