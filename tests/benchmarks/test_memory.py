import json
from pathlib import Path

import pytest
import torch

from diffprobe.benchmarks import memory
from diffprobe.benchmarks.memory import WAYS, MemoryReport, MemoryRow, _measure, _write, bench_memory, render
from diffprobe.core.errors import ConfigError


@pytest.fixture(scope="module")
def report() -> MemoryReport:
    return bench_memory("tiny")


@pytest.mark.slow
def test_each_way_is_measured_and_gives_the_same_features(report: MemoryReport) -> None:
    rows = [row for row in report.rows if row.quantize == "none"]
    assert [(row.weights, row.offload) for row in rows] == [
        (weights, offload) for weights in ("trained", "random") for offload in ("none", "blocks")
    ]
    trained, apart, random, _ = rows
    assert trained.digest != random.digest and all(row.peak_gb > row.start_gb * 0.9 > 0 for row in report.rows)
    assert [row.most_blocks for row in rows] == [None, 2, None, 2]
    assert 0 < 3 * report.block_gb < report.weights_gb
    assert trained.held_gb - apart.held_gb == pytest.approx(3 * report.block_gb)


@pytest.mark.slow
def test_the_table_has_a_line_per_way(report: MemoryReport) -> None:
    lines = render(report).splitlines()
    assert len(lines) == 2 + len(report.rows) and lines[2].startswith("| trained | none | none | ")
    assert json.loads(report.to_json())["size"] == "tiny"


@pytest.mark.parametrize("weights", ["trained", "random"])
def test_a_transformer_like_flux_is_measured_in_its_precision(weights: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    n_parameters, total, block = _write(str(tmp_path), "tiny-flux", threads)
    whole, apart = (_measure(str(tmp_path), "tiny-flux", weights, way, "none", threads) for way in ("none", "blocks"))
    assert 2 * n_parameters == total > whole.held_gb * 1e9 > total / 2  # what follows the last block is not read
    assert 0 < apart.held_gb * 1e9 < whole.held_gb * 1e9 - block
    assert whole.digest == apart.digest and apart.most_blocks == 2


def test_other_sizes_and_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match="xl, wide, flux, tiny"):
        bench_memory("huge")
    for weights in ((), ("trained", "drawn")):
        with pytest.raises(ConfigError, match="trained, random"):
            bench_memory("tiny", weights=weights)


def test_a_stopped_call_continues_after_its_finished_measurements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[tuple[object, ...]] = []

    def stand_in(run: object, scratch: str, size: str, *way: str) -> object:
        if run is _write:
            return 10, 20, 5
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(way)
        sizes = {"held_gb": 1.0, "start_gb": 0.5, "peak_gb": float(len(measured)), "load_s": 1.0, "read_s": 1.0}
        weights, offload, quantize = way
        names = {"weights": weights, "offload": offload, "quantize": quantize, "digest": weights, "most_blocks": None}
        return MemoryRow(**names, **sizes)  # type: ignore[arg-type]

    monkeypatch.setattr(memory, "_alone", stand_in)
    monkeypatch.setattr(memory, "find_spec", lambda name: name)
    wanted = [(weights, *way) for weights in ("trained", "random") for way in WAYS]
    found = None
    for _ in range(3):
        try:
            found = bench_memory("tiny", kept=tmp_path / "kept.jsonl")
        except KeyboardInterrupt:
            measured = []
    assert found is not None and measured == wanted[6:]
    assert [(row.weights, row.offload, row.quantize) for row in found.rows] == wanted
    assert [row.peak_gb for row in found.rows] == [1, 2, 3, 1, 2, 3, 1, 2]
    measured = []
    part = bench_memory("tiny", weights=("random",), kept=tmp_path / "kept.jsonl")
    assert part.rows == found.rows[4:] and not measured
