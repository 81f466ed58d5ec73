import json

import pytest

from diffprobe.benchmarks.extraction import GRID, Setting, bench_extraction
from diffprobe.core.errors import ConfigError


@pytest.fixture(scope="module")
def report():
    return bench_extraction(Setting(size="small", resolution=32, images=1, repeats=1, device="cpu"))


@pytest.mark.slow
def test_both_ways_give_the_same_features(report) -> None:
    assert [row.largest_difference < 1e-3 for row in report.rows] == [True, True]


@pytest.mark.slow
def test_the_floor_is_what_the_counted_work_takes(report) -> None:
    one, grid = report.rows
    assert (grid.taps, grid.timesteps) == GRID
    assert 0 < one.floor_s < grid.floor_s
    assert grid.naive_s > one.naive_s  # twenty passes and one
    assert report.vae_gflop > 0 and report.denoiser_gflop > 0 and report.matmul_gflops > 0


@pytest.mark.slow
def test_ratios_are_those_of_the_seconds(report) -> None:
    row = report.rows[0]
    assert row.over_floor == row.ours_s / row.floor_s and row.speed_up == row.naive_s / row.ours_s
    assert json.loads(report.to_json())["rows"][0]["naive_s"] == row.naive_s


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="sizes: sd15, small"):
        bench_extraction(Setting(size="huge"))
