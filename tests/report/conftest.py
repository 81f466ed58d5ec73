"""Hand-written results, their table, and a small page whose every text is hostile."""

import dataclasses
import io
from pathlib import Path

import pytest
from PIL import Image

from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.collect import collect
from diffprobe.report.pages.page import Page
from diffprobe.report.pages.panels import DirectionPanel, Estimate, LatentPanel, LatentSection, Picture, make_histogram
from diffprobe.report.table_spec import TableSpec, load_spec

HERE = Path(__file__).parent
HOSTILE = "\"><script>alert('x')</script>&amp;<img src=http://evil.example/x onerror=y>"


@pytest.fixture
def results() -> list[RunResult]:
    return collect(HERE / "results")


@pytest.fixture
def spec() -> TableSpec:
    return load_spec(HERE / "table.yaml")


@pytest.fixture
def hostile() -> str:
    return HOSTILE


@pytest.fixture
def sae_run():
    return make_sae_run


def picture(text: str, value: float | None = 1.0) -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(buffer, format="PNG")
    return Picture(data=buffer.getvalue(), caption=text, key="k", value=value)


def make_sae_run(value: float, control: str = "none", **changes) -> RunResult:
    record = MetricRecord(name="fvu", value=value, split="test", n=50, cell="mid_block@t25:empty:mean", probe="topk")
    run = RunResult(
        run=f"sae-{control}", experiment="toy/sae", kind="sae", config={"control": control}, config_digest="d" * 64,
        git_commit=None, versions={}, seeds={"run": 0}, hardware={}, started="2026-11-01T12:00:00+00:00",
        wall_time_s=2.0, metrics=(record,), artifacts={}, wandb_run_id=None,
    )  # fmt: skip
    return dataclasses.replace(run, **changes)


@pytest.fixture
def page(results: list[RunResult], spec: TableSpec) -> Page:
    """A full page; labels, captions, names and notes all try to leave their place."""
    latent = LatentPanel(
        latent=7, pictures=(picture(HOSTILE),) * 9, n_active=1234, density=0.125, mean_activation=1.5,
        max_activation=4.0, label_entropy=1.25, chance_entropy=2.5, chance_entropy_sd=0.25, top_label=HOSTILE,
        top_label_share=0.75,
    )  # fmt: skip
    estimate = Estimate(
        estimator="ridge", auroc=0.987, n=50, interval=(0.951, 0.999), random_mean=0.503, random_sd=0.081,
        shuffled=0.512,
    )  # fmt: skip
    direction = DirectionPanel(
        target=HOSTILE, positive=HOSTILE, negative="twemoji", cell=HOSTILE, estimates=(estimate,), shown="ridge",
        positive_end=(picture("positive " + HOSTILE, 2.5),), negative_end=(picture("the negative end", -2.5),),
        histogram=make_histogram({HOSTILE: [1.0, 2.0], "twemoji": [-1.0]}), note=HOSTILE,
    )  # fmt: skip
    section = LatentSection(panels=(latent,), rule=HOSTILE, cell=HOSTILE, n_classes=16, name=HOSTILE)
    return Page(
        title=HOSTILE, lead=HOSTILE, facts=(("data", HOSTILE), (HOSTILE, "x")),
        results=(*results, make_sae_run(0.125), make_sae_run(0.0625, control="random_weights")),
        tables=(spec,), latents=(section,), directions=(direction,), limits=(HOSTILE,),
        next_steps=(HOSTILE,),
    )  # fmt: skip
