"""The benchmark of scores: it counts the rows of each side, prunes as the scorer does, and reads prunings."""

import dataclasses
import json
from pathlib import Path

import pytest
from torch import nn

from diffprobe.benchmarks.scores import ScoreSetting, bench_scores, render, stages_of
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.score.staged_errors import Stage
from diffprobe.scoring.denoising_error import DenoisingError


@pytest.fixture
def setting(tiny_sd: Path, tiny_shards: Path) -> ScoreSetting:
    return ScoreSetting(
        backbone=str(tiny_sd), data=str(tiny_shards), split="train", images=3, candidates=3, timesteps=4,
        stages=(Stage(n_timesteps=1, kept=2), Stage(n_timesteps=2, kept=1)), group="colour", device="cpu",
    )  # fmt: skip


@pytest.mark.slow
def test_each_side_counts_the_rows_that_went_through_the_denoiser(
    setting: ScoreSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    original = DenoisingError.__init__

    def counted(self: DenoisingError, *args: object, **keys: object) -> None:
        original(self, *args, **keys)  # type: ignore[arg-type]
        network: nn.Module = self.backbone.denoiser
        network.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))

    monkeypatch.setattr(DenoisingError, "__init__", counted)
    report = bench_scores(setting)
    assert report.ours.passes == 3 * 3 * 4 and report.pruned.passes == 3 * (3 + 2 + 1 * 2)
    assert report.baseline.passes == 3 * 4 and report.batch == 20 * 3
    sides = (report.ours, report.pruned, report.baseline, report.bare)
    warm = 3 * 4 + 3 * 4 + report.batch
    assert sum(rows) == warm + sum(side.passes for side in sides)
    assert report.share == report.ours.rate / report.bare.rate
    assert report.saved_passes == pytest.approx(36 / 21)
    assert json.loads(report.to_json())["saved_passes"] == report.saved_passes


@pytest.mark.slow
def test_pruning_that_keeps_all_changes_no_choice(setting: ScoreSetting) -> None:
    report = bench_scores(dataclasses.replace(setting, stages=(Stage(n_timesteps=1, kept=3),)))
    assert report.changed == 0 and report.accuracy == report.accuracy_pruned and report.saved_passes == 1
    shown = render(report)
    assert "| ours, all candidates at all timesteps | 36 |" in shown and "changes 0 of 3 choices" in shown
    assert report.changed_bound == pytest.approx(1 - 0.025 ** (1 / 3))  # of three images nothing can be said
    assert "(95 % interval up to 70.8 %)" in shown


def test_prunings_are_read_and_wrong_ones_refused(setting: ScoreSetting) -> None:
    assert stages_of("1:40,4:5") == (Stage(n_timesteps=1, kept=40), Stage(n_timesteps=4, kept=5))
    for wrong in ("1", "1:", "a:2", "1:2,"):
        with pytest.raises(ConfigError, match="pruning"):
            stages_of(wrong)
    with pytest.raises(ConfigError, match="stages"):
        dataclasses.replace(setting, stages=(Stage(n_timesteps=9, kept=2),))
    with pytest.raises(ConfigError, match="pruning"):
        dataclasses.replace(setting, stages=())
    with pytest.raises(EmptyClass, match="40 candidate captions"):
        bench_scores(dataclasses.replace(setting, candidates=40))
