"""The benchmark of prompts: equal numbers of passes on both sides, and a share that is their ratio."""

import json
from pathlib import Path

import pytest
from torch import nn

from diffprobe.backbones.prompt_features import PromptFeatures
from diffprobe.benchmarks.prompts import PromptSetting, bench_prompts
from diffprobe.core.errors import ConfigError


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "branches"), [(0.0, 1), (1.0, 2)])
def test_both_sides_run_equally_many_rows(
    tiny_sd: Path, monkeypatch: pytest.MonkeyPatch, guidance: float, branches: int
) -> None:
    rows: list[int] = []
    original = PromptFeatures.__init__

    def counted(self: PromptFeatures, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        network: nn.Module = self._backbone.denoiser
        network.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))

    monkeypatch.setattr(PromptFeatures, "__init__", counted)
    setting = PromptSetting(
        backbone=str(tiny_sd), prompts=2, seeds=2, steps=3, guidance=guidance, taps=("up_blocks.*",), device="cpu"
    )
    report = bench_prompts(setting)
    assert report.passes == 4 * 3 * branches and report.batch == 4
    # warm-up and measurement, ours and bare
    assert rows == [4 * branches] * (4 * 3)
    assert report.share == report.bare_s / report.ours_s > 0
    assert json.loads(report.to_json())["share"] == report.share


@pytest.mark.slow
def test_a_flow_model_is_measured_with_its_own_sampler() -> None:
    setting = PromptSetting(
        backbone="scenes-flow", prompts=1, seeds=1, steps=2, taps=("transformer_blocks.4",), device="cpu"
    )
    report = bench_prompts(setting)
    assert report.sampler == "euler" and report.passes == 2


def test_counts_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="prompts=0"):
        bench_prompts(PromptSetting(prompts=0))
