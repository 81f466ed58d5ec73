import json

import pytest

from diffprobe.benchmarks.memory import MemoryReport, bench_memory, render
from diffprobe.core.errors import ConfigError


@pytest.fixture(scope="module")
def report() -> MemoryReport:
    return bench_memory("tiny")


@pytest.mark.slow
def test_each_way_is_measured_and_gives_the_same_features(report: MemoryReport) -> None:
    assert [(row.weights, row.offload) for row in report.rows] == [
        (weights, offload) for weights in ("trained", "random") for offload in ("none", "blocks")
    ]
    trained, _, random, _ = report.rows
    assert trained.digest != random.digest and all(row.peak_gb > row.start_gb * 0.9 > 0 for row in report.rows)
    assert [row.most_blocks for row in report.rows] == [None, 2, None, 2]
    assert 0 < 3 * report.block_gb < report.weights_gb


@pytest.mark.slow
def test_the_table_has_a_line_per_way(report: MemoryReport) -> None:
    lines = render(report).splitlines()
    assert len(lines) == 6 and lines[2].startswith("| trained | none | ")
    assert json.loads(report.to_json())["size"] == "tiny"


def test_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="xl, wide, tiny"):
        bench_memory("huge")
