"""The comparison with scikit-learn runs on the same problems, and the log-losses agree; no time is asserted."""

import json

import pytest

from diffprobe.benchmarks.solver import PATH, Size, bench_solver, render
from diffprobe.config.compose import load_run
from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.runs.extract import extract_run


@pytest.mark.slow
def test_both_solve_the_same_problems():
    report = bench_solver(Size(samples=120, width=6, classes=3, folds=3, cells=2))
    assert report.converged and max(report.largest_difference) < 1e-3
    assert len(json.loads(report.to_json())["largest_difference"]) == len(PATH)
    assert "120 samples" in render(report) and f"{6 * len(PATH)} problems" in render(report)
    assert "floor" in render(report) and report.floor_s > 0


def test_a_cell_of_a_store_is_solved_by_both(tiny_sd, tiny_shards, tmp_path):
    model = [f"backbone.path={tiny_sd}", "backbone.device=cpu", "features.taps=[mid_block]", "features.timesteps=[20]"]
    data = [f"data.path={tiny_shards}", f"features.store={tmp_path}", "data.batch_size=8"]
    store = extract_run(load_run(None, [*model, *data]))
    report = bench_solver(Size(store=str(store), cell="mid_block", target="group", group="colour", folds=2))
    assert (report.size.cells, report.size.samples, report.size.classes) == (1, 16, 2)
    assert max(report.largest_difference) < 0.1  # eight samples to learn from: others lie far outside
    with pytest.raises(UnknownName, match="colours"):
        bench_solver(Size(store=str(store), cell="mid_block", group="colours"))


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(ConfigError, match="4 groups for 5 folds"):
        bench_solver(Size(samples=16, width=8, classes=3, folds=5, cells=1))
