"""The page on scaling: its measured and computed parts are made again from the recorded rates and the stated inputs."""

import pytest

from diffprobe.benchmarks.scaling_plan import plan_extraction, read_rates
from tests.docs.markdown import ROOT


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import scaling  # type: ignore[import-not-found]

    return scaling


def test_the_page_is_what_the_recorded_rates_give(page) -> None:
    """After a new measurement: python docs/scaling.py."""
    text = page.PAGE.read_text("utf-8")
    assert page.filled(text) == text


def test_the_inputs_in_the_text_are_those_of_the_plans(page) -> None:
    text = " ".join(page.PAGE.read_text("utf-8").split())
    one, twenty = page.WORKS["one cell"], page.WORKS["twenty cells"]
    assert one.feature_bytes == 4 * 1280 and twenty.feature_bytes == 4 * 22_400 == 4 * 20 * 1120
    assert f"({one.gpu_images_s:g} images/s and GPU, 1,280 numbers" in text
    assert f"({twenty.gpu_images_s:g} images/s and GPU, 22,400 numbers" in text
    for work in page.WORKS.values():
        assert (work.gpus, work.images, work.image_bytes) == (64, 10**9, 1e5)
        assert (work.storage_read_mb_s, work.storage_write_mb_s) == (20_000, 5_000)
    seconds = {"0.00918": one, "0.0186": twenty}
    benchmarks = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    for number, work in seconds.items():
        assert f"| {number} |" in benchmarks and work.gpu_images_s == pytest.approx(1 / float(number), rel=0.01)


def test_sizes_do_not_depend_on_the_rates(page) -> None:
    plans = {name: plan_extraction(read_rates(page.RATES), work) for name, work in page.WORKS.items()}
    assert plans["one cell"].store_tb == pytest.approx(5.12) and plans["twenty cells"].store_tb == pytest.approx(89.6)
    assert plans["twenty cells"].read_tb == pytest.approx(200)
    assert plans["twenty cells, verify=false"].read_tb == pytest.approx(100)
