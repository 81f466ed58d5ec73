"""DifFeed as a training: what is trained, the control of no feedback, interruptions, and bad input."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass, RunFailed, UnknownTap
from diffprobe.core.result import read_result
from diffprobe.generative.difffeed import FIRST, OWN, DiffFeedModule, DiffFeedTraining, LabelledData
from diffprobe.probes.classifier.attention import PooledMaps
from diffprobe.runs import train_generative as runner
from diffprobe.runs.train_generative import train_generative
from diffprobe.training.checkpoint import find_checkpoint


@pytest.fixture
def config(tiny_sd: Path, tiny_shards: Path, tmp_path: Path) -> DiffFeedTraining:
    return DiffFeedTraining(
        experiment="tiny/difffeed",
        model=str(tiny_sd),
        data=DataConfig(path=str(tiny_shards), batch_size=8),
        trainer=TrainerConfig(
            accelerator="cpu", max_epochs=2, enable_progress_bar=False, log_every_steps=1, learning_rate=1e-3
        ),
        logger=LoggerConfig(kind="none"),
        width=16, heads=2, blocks=1, n_train=16, n_val=4, n_test=4, warmup_steps=1, output=str(tmp_path / "runs"),
    )  # fmt: skip


def ready(config: DiffFeedTraining) -> DiffFeedModule:
    """Make a module that has its data without a Trainer."""
    module, data = config.make()
    module._trainer = type("T", (), {"datamodule": data, "global_step": 0})()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module


def test_zero_feedback_gives_the_logits_of_the_head_on_the_first_pass(config: DiffFeedTraining) -> None:
    module = ready(config)
    rows = torch.arange(4)
    before = module.logits("train", rows)
    assert not torch.equal(before[OWN], before[FIRST])  # both heads start from the same weights
    module.feedback[OWN].silence()  # type: ignore[operator]
    after = module.logits("train", rows)
    assert torch.equal(after[OWN], after[FIRST]) and torch.equal(after[FIRST], before[FIRST])


@pytest.mark.slow
def test_only_feedback_and_heads_are_trained_and_the_first_pass_by_itself(config: DiffFeedTraining) -> None:
    module = ready(config)
    found: Any = module.configure_optimizers()
    optimised = {id(p) for group in found["optimizer"].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.parameters()}
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"heads", "feedback"}
    module.training_step(torch.arange(8), 0).backward()
    assert all(p.grad is not None for p in module.parameters())
    found["optimizer"].step()
    assert {id(p) for p in found["optimizer"].state} == optimised
    for passes in module.passes.values():
        for network in passes.reader.backbone.components().values():
            assert all(p.grad is None and not p.requires_grad for p in network.parameters())
        assert passes.reader.digest() in module.digests.values()
    alone = ready(dataclasses.replace(config, controls=("first_pass",)))
    alone.training_step(torch.arange(8), 0).backward()
    for one, other in zip(module.heads[FIRST].parameters(), alone.heads[FIRST].parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_the_published_head_and_feedback_have_the_published_number_of_weights() -> None:
    from diffprobe.backbones.feedback import FeedbackLayers
    from diffprobe.probes.classifier.attention import AttentionConfig

    with torch.device("meta"):
        head = PooledMaps([{"": ""}], {"": (1024, 16, 16)}, 1000, AttentionConfig())
        layers = FeedbackLayers([(1024, 1024)] * 2 + [(512, 512)] * 2 + [(256, 256)] * 2)
    n_head, n_layers = (sum(p.numel() for p in one.parameters()) for one in (head, layers))
    # 27.8 M and 30.5 M; each is rounded by itself
    assert round(n_head / 1e6, 1) == 27.8 and abs((n_head + n_layers) / 1e6 - 30.5) < 0.1


@pytest.mark.slow
def test_a_run_has_accuracies_beside_controls_and_continues_after_an_interruption(
    config: DiffFeedTraining, tmp_path: Path
) -> None:
    whole = read_result(train_generative(config))
    (tested,) = [record for record in whole.metrics if record.split == "test"]
    assert tested.name == "accuracy" and tested.n == 4 and set(tested.controls) == {FIRST, "random_weights"}
    parts = dataclasses.replace(
        config, output=str(tmp_path / "again"), trainer=dataclasses.replace(config.trainer, checkpoint_every_steps=1)
    )

    class Stop(Exception):
        pass

    step = DiffFeedModule.training_step

    def broken(self: DiffFeedModule, rows: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == 3:
            raise Stop
        return step(self, rows, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffFeedModule, "training_step", broken)
        with pytest.raises(Stop):
            train_generative(parts)
    assert find_checkpoint(runner.run_dir_of(parts), resume=True) is not None
    resumed = read_result(train_generative(parts))
    assert resumed.artifacts["difffeed.safetensors"] == whole.artifacts["difffeed.safetensors"]
    assert [record.value for record in resumed.metrics] == [record.value for record in whole.metrics]


def test_changed_frozen_weights_are_noticed(config: DiffFeedTraining, tmp_path: Path) -> None:
    module = ready(config)
    with torch.no_grad():
        next(module.passes[OWN].reader.backbone.denoiser.parameters()).add_(1)
    with pytest.raises(RunFailed, match="own"):
        module.save(tmp_path / "weights")


def test_it_refuses_targets_and_taps_that_it_cannot_use(config: DiffFeedTraining) -> None:
    with pytest.raises(EmptyClass, match="shoe"):
        LabelledData(dataclasses.replace(config, target="shoe"), 32)
    with pytest.raises(UnknownTap, match="up_blocks.9"):
        dataclasses.replace(config, read="up_blocks.9").make()
    for changes, fact in (
        ({"read": "mid_block/text"}, "slash"),
        ({"width": 10, "heads": 4}, "heads"),
        ({"controls": (FIRST, FIRST)}, "once"),
        ({"ema_decay": 0.5}, "ema_decay"),
        ({"n_val": 1}, "n_val"),
    ):
        with pytest.raises(ConfigError, match=fact):
            dataclasses.replace(config, **changes)  # type: ignore[arg-type]
