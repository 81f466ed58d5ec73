import dataclasses

import pytest

from diffprobe.benchmarks import extraction
from diffprobe.benchmarks.extraction import (
    COMPILED,
    ONEDNN,
    ExtractionReport,
    ExtractionRow,
    Setting,
    Way,
    bench_extraction,
    read_report,
    render,
)
from diffprobe.benchmarks.extraction_models import SIZES, TIMESTEPS
from diffprobe.core.errors import ConfigError


@pytest.fixture(
    scope="module",
    params=["small", "small-sdxl", "small-dit", "small-mmdit", pytest.param("small-flux", marks=pytest.mark.slow)],
)
def report(request: pytest.FixtureRequest) -> ExtractionReport:
    return bench_extraction(Setting(size=request.param, resolution=32, images=1, repeats=1, device="cpu"))


@pytest.mark.slow
def test_all_ways_give_the_same_features(report: ExtractionReport) -> None:
    assert [row.largest_difference < 1e-3 for row in report.rows] == [True, True]
    for row in report.rows:
        (way,) = row.ways
        assert way.name == ONEDNN and way.largest_difference is not None and way.largest_difference < 1e-3


@pytest.mark.slow
def test_the_floor_is_what_the_counted_work_takes(report: ExtractionReport) -> None:
    one, grid = report.rows
    assert (grid.taps, grid.timesteps) == (SIZES[report.setting.size].grid, TIMESTEPS)
    assert 0 < one.floor_s < grid.floor_s
    assert grid.naive_s > one.naive_s  # twenty passes and one
    assert report.vae_gflop > 0 and report.denoiser_gflop > 0 and report.matmul_gflops > 0


def row(*ways: Way) -> ExtractionRow:
    return ExtractionRow(
        name="one tap, one timestep", taps=("a",), timesteps=(25,), naive_s=4.0, ours_s=2.0, floor_s=1.6,
        largest_difference=2e-6, ways=ways,
    )  # fmt: skip


def made(*ways: Way) -> ExtractionReport:
    return ExtractionReport(
        setting=Setting(size="dit", images=1), machine="CPU, 1 threads", clock="processor", parameters=130_000_000,
        vae_gflop=271.0, denoiser_gflop=46.0, denoiser_gflops=80.0, matmul_gflops=100.0, rows=(row(*ways),),
    )  # fmt: skip


def test_the_tables_state_all_ways() -> None:
    ran = Way(name=ONEDNN, ours_s=1.5, first_s=3.0, largest_difference=1e-6)
    absent = Way(name=COMPILED, ours_s=None, first_s=None, largest_difference=None, missing="no compiler")
    text = render(made(ran, absent))
    assert "dit at 256 px, float32, 1 images/call, processor time" in text and "(130 M parameters)" in text
    assert "| one tap, one timestep | 4 | 2 | 1.6 | 1.25 | 2.0 |" in text
    assert f"| `{ONEDNN}` | one tap, one timestep | 1.5 | 0.75 | 3.0 | 1.0e-06 |" in text
    assert f"| `{COMPILED}` | one tap, one timestep | not run: no compiler | | | |" in text
    assert "ours with" not in render(made())


def test_a_report_is_read_as_it_was_written() -> None:
    report = made(Way(name=ONEDNN, ours_s=1.5, first_s=3.0, largest_difference=1e-6))
    assert read_report(report.to_json()) == report


def test_a_way_that_cannot_be_run_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(device="cpu", compile=True)
    monkeypatch.setattr(extraction.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert extraction._ways(setting)[COMPILED] is None
    monkeypatch.setattr(extraction.shutil, "which", lambda name: None)
    assert extraction._ways(setting)[COMPILED] == "no C++ compiler (g++) was found"
    assert set(extraction._ways(dataclasses.replace(setting, dtype="bfloat16", compile=False))) == set()


@pytest.mark.parametrize(("settings", "message"), [({"size": "huge"}, "sizes: sd15, sdxl"), ({"resolution": 40}, "16")])
def test_what_cannot_be_measured_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench_extraction(Setting(**settings))  # type: ignore[arg-type]
