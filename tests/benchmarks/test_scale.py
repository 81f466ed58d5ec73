"""Growth of work with the data: the table, and exponents near 1."""

import json

import pytest

from diffprobe.benchmarks.scale import Measured, bench_scale
from diffprobe.core.errors import ConfigError


def test_exponents_are_those_of_powers() -> None:
    measured = Measured("x", (10, 20, 40), (1.0, 2.0, 8.0))
    assert measured.exponents == pytest.approx((1.0, 2.0))


def test_every_step_is_measured_at_four_sizes() -> None:
    lines: list[str] = []
    report = bench_scale(samples=160, classes=80, cells=16, progress=lines.append)
    assert len(report.rows) == 7 and len(lines) == 28
    assert report.rows[0].sizes == (20, 40, 80, 160)
    assert all(len(row.exponents) == 3 for row in report.rows)
    assert json.loads(report.to_json())["rows"][0]["step"] == report.rows[0].step


def test_sizes_that_have_no_eighth_are_refused() -> None:
    with pytest.raises(ConfigError, match="cells=7"):
        bench_scale(cells=7)


@pytest.mark.slow
def test_work_is_linear() -> None:
    """CPU time is noisy, so that the mean exponent over three doublings is compared with that of a square law, 2."""
    report = bench_scale(samples=80_000, classes=40_000, cells=800, progress=lambda line: None)
    growth = {row.step: sum(row.exponents) / 3 for row in report.rows if row.seconds[-1] > 0.2}
    assert len(growth) >= 4
    assert max(growth.values()) < 1.5, growth
