"""Rates of one core and extraction by processes: what is measured, not how fast it is."""

import json

import pytest

from diffprobe.benchmarks.scaling import Measurement, bench_scaling, render
from diffprobe.benchmarks.scaling_plan import read_rates
from diffprobe.core.errors import ConfigError


@pytest.mark.slow
def test_everything_is_measured(tmp_path) -> None:
    lines: list[str] = []
    setting = Measurement(images=17, side=32, cells=2, width=8, batch_size=2, repeats=1)
    report = bench_scaling(setting, progress=lines.append)
    assert report.setting.images == 16 and [row.processes for row in report.rows] == [1, 2]
    assert report.image_bytes > 512 and min(row.images_s for row in report.rows) > 0 and len(lines) == 7
    file = tmp_path / "scaling.json"
    file.write_text(report.to_json())
    assert read_rates(file) == report.rates and json.loads(file.read_text())["setting"]["side"] == 32
    text = render(report)
    assert "| decoding |" in text and "| 1 |" in text and "| 100% |" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"processes": ()}, "processes="), ({"processes": (0,)}, "processes="), ({"side": 0}, "side=0"),
        ({"images": 7}, "images=7 .*at least 8"), ({"images": 20, "processes": (3, 8)}, "at least 24"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_measured_are_refused(changes: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Measurement(**changes)


def test_every_process_has_the_same_number_of_shards() -> None:
    assert [Measurement(processes=n).shards for n in ((1, 2), (1, 2, 4), (3,), (1, 16))] == [8, 8, 9, 16]
