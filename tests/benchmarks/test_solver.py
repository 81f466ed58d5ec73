"""The comparison with scikit-learn runs on the same problems, and the log-losses agree; no time is asserted."""

import json

import pytest

from diffprobe.benchmarks.solver import PATH, Size, bench_solver, render
from diffprobe.core.errors import ConfigError


def test_both_solve_the_same_problems():
    report = bench_solver(Size(samples=120, width=6, classes=3, folds=3, cells=2))
    assert report.converged and max(report.largest_difference) < 1e-3
    assert len(json.loads(report.to_json())["largest_difference"]) == len(PATH)
    assert "120 samples" in render(report) and f"{6 * len(PATH)} problems" in render(report)
    assert "floor" in render(report) and report.floor_s > 0


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(ConfigError, match="4 groups for 5 folds"):
        bench_solver(Size(samples=16, width=8, classes=3, folds=5, cells=1))
