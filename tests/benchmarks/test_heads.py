"""Heads of a grid together and alone: the same heads, the same scores, all of them counted; no time is asserted."""

import json
from pathlib import Path

import pytest

from diffprobe.benchmarks.heads import bench_heads, render, single_heads
from diffprobe.config.compose import load_run
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.runs.extract import extract_run

GRID = {
    "linear": ["probe.params.learning_rate=0.01"],
    "batchnorm_linear": ["probe.batched=true"],
    "mlp": ["probe.grid.learning_rate=[0.01,0.001]", "probe.grid.seed=[0,1]"],
}


@pytest.fixture
def config(tiny_sd: Path, tiny_shards: Path, tmp_path: Path, request: pytest.FixtureRequest) -> RunConfig:
    name = request.param
    settings = [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", "features.taps=[mid_block,up_blocks.*]",
        "features.timesteps=[20,200]", f"data.path={tiny_shards}", f"features.store={tmp_path / 'stores'}",
        "data.batch_size=8", f"probe={name}", "probe.targets=[label,colour]", "trainer.max_epochs=2",
        f"output={tmp_path / 'runs'}", *GRID.get(name, []),
    ]  # fmt: skip
    found = load_run(None, settings)
    extract_run(found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("config", ["linear", "batchnorm_linear", "mlp", "linear_cv"], indirect=True)
def test_all_heads_are_listed_once_and_score_the_same_alone(config: RunConfig, tmp_path: Path) -> None:
    heads = single_heads(config)
    n_points = 4 if config.probe.name == "mlp" else 1
    assert len({(head.cell, head.target, head.member) for head in heads}) == len(heads)
    report = bench_heads(config, singles=3)
    assert (report.heads, report.singles) == (len(heads), 3)
    assert report.heads == report.cells * 2 * n_points
    assert report.largest_difference <= 1e-5
    assert report.passes == (1 if config.probe.name == "linear_cv" else 4)
    assert json.loads(report.to_json())["speed_up"] == pytest.approx(report.single_s * report.heads / report.together_s)
    assert json.loads(report.to_json())["cpu_speed_up"] == pytest.approx(report.cpu_speed_up)
    assert 0 < report.single_cpu_s < report.together_cpu_s * report.heads
    assert f"{report.heads:,} heads on {report.cells} cells" in render(report)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("config", ["linear"], indirect=True)
def test_what_has_no_grid_of_heads_is_refused(config: RunConfig) -> None:
    from dataclasses import replace

    for probe, word in (("hyperfeatures", "one head on all cells"), ("difformer", "one head on all cells")):
        with pytest.raises(ConfigError, match=word):
            bench_heads(replace(config, probe=replace(config.probe, name=probe)))
    with pytest.raises(ConfigError, match="direction"):
        bench_heads(replace(config, probe=replace(config.probe, kind="direction", name="ridge")))
    with pytest.raises(ConfigError, match="live"):
        bench_heads(replace(config, features=replace(config.features, source="live")))
    with pytest.raises(ConfigError, match="singles"):
        bench_heads(config, singles=0)
