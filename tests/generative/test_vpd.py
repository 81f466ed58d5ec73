"""VPD on a tiny pipeline: what each switch trains, weights that stay, runs that can be interrupted, bad input."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.differentiable import DifferentiableBackbone
from diffprobe.backbones.families import unet2d
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import BadTimestep, ConfigError, RunFailed
from diffprobe.core.result import read_result
from diffprobe.generative.vpd import OWN, VpdModule, VpdTraining, end_states, unscaled
from diffprobe.generative.vpd_settings import Control, Switch
from diffprobe.runs.train_generative import train_generative
from diffprobe.shards.class_maps import IGNORED
from diffprobe.shards.datasets import scenes
from diffprobe.training.checkpoint import find_checkpoint

CLASSES = {"background": (0,), "object": (1,), "figure": (2, 3, 4, 5), "hat": (6,), "tool": (7,)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    scenes.build(path, n=60, resolution=32)
    return path


@pytest.fixture
def config(tiny_sd: Path, shards: Path, tmp_path: Path) -> VpdTraining:
    return VpdTraining(
        experiment="tiny/vpd",
        model=str(tiny_sd),
        data=DataConfig(path=str(shards), batch_size=8),
        trainer=TrainerConfig(
            accelerator="cpu", max_epochs=2, enable_progress_bar=False, log_every_steps=1, learning_rate=1e-3
        ),
        logger=LoggerConfig(kind="none"),
        classes=CLASSES, head_width=8, n_train=16, n_val=4, n_test=4, warmup_steps=1, output=str(tmp_path / "runs"),
    )  # fmt: skip


def stepped(module: VpdModule, config: VpdTraining, *, steps: int = 1) -> torch.optim.Optimizer:
    """Take optimiser steps without a Trainer."""
    _, data = config.make()
    module._trainer = type("T", (), {"datamodule": data, "global_step": 0})()
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    found: Any = module.configure_optimizers()
    for _ in range(steps):
        found["optimizer"].zero_grad()
        module.training_step(torch.arange(8), 0).backward()
        found["optimizer"].step()
    optimizer: torch.optim.Optimizer = found["optimizer"]
    return optimizer


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["frozen", "adapter", "finetune"])
def test_a_switch_trains_its_own_parts_alone(config: VpdTraining, switch: Switch) -> None:
    controls: tuple[Control, ...] = ("random_weights",) if switch == "frozen" else ("frozen", "random_weights")
    config = dataclasses.replace(config, switch=switch, controls=controls)
    module = VpdModule(config)
    before = {name: branch.reader.digest() for name, branch in module._all()}
    names = {name for name, p in module.named_parameters() if p.requires_grad}
    assert any(".adapter." in name for name in names) == (switch != "frozen")
    assert any(".denoiser." in name for name in names) == (switch == "finetune")
    trained = {"frozen": ("head",), "adapter": ("adapter", "head"), "finetune": ("adapter", "denoiser", "head")}
    parts: dict[str, set[str]] = {}
    for name in names:
        branch_name, part = name.split(".")[1:3]
        parts.setdefault(branch_name, set()).add(part)
    for name, own in parts.items():  # the random denoiser has the switch of the row that it is set beside
        assert own == set(trained["frozen" if name == "frozen" else switch])
    start = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer = stepped(module, config)
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.parameters()}
    assert {id(p) for p in optimizer.state} <= optimised
    frozen = [one for name, one in module._all() if one.switch != "finetune"]
    for one in frozen:
        assert not optimised & {id(p) for p in one.reader.backbone.denoiser.parameters()}
    for name, branch in module._all():
        changed = branch.reader.digest() != before[name]
        assert changed == (name != "frozen" and switch == "finetune")
        backbone = branch.reader.backbone
        for part, network in backbone.components().items():
            if part != "denoiser" or not changed:
                assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    after = module.state_dict()
    for part in ("adapter.mlp.2.weight", "adapter.gamma", "head.classify.weight"):
        key = f"branches.{OWN}.{part}"
        if key in start:
            assert not torch.equal(start[key], after[key])


def test_the_denoiser_has_a_tenth_of_the_step_size(config: VpdTraining) -> None:
    module = VpdModule(config)
    stepped(module, config, steps=0)
    rest, own = module.configure_optimizers()["optimizer"].param_groups
    assert own["initial_lr"] == pytest.approx(0.1 * rest["initial_lr"]) and rest["initial_lr"] == 1e-3
    trained = [module._own, module.branches["random_weights"]]
    assert {id(p) for p in own["params"]} == {
        id(p)
        for branch in trained
        for p in branch.reader.backbone.denoiser.parameters()  # type: ignore[union-attr,operator]
    }


@pytest.mark.slow
def test_the_input_is_the_published_one(config: VpdTraining) -> None:
    module = VpdModule(config)
    _, data = config.make()
    x, t, states = module._inputs(data.train, torch.arange(3))
    backbone = module._own.reader.backbone
    vae: Any = backbone.components()["vae"]
    expected = vae.encode(data.train.to_float(torch.arange(3)) * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(x, expected)
    assert t.tolist() == [1, 1, 1] and states.shape == (3, 5, 32)
    torch.testing.assert_close(unscaled(backbone, expected * vae.config.scaling_factor), expected)
    scaled = dataclasses.replace(config, recipe="mine", scale_latents=True)
    torch.testing.assert_close(VpdModule(scaled)._inputs(data.train, torch.arange(3))[0] / vae.config.scaling_factor, x)


def test_a_class_is_the_mean_state_at_the_end_token_of_its_texts(config: VpdTraining) -> None:
    module = VpdModule(dataclasses.replace(config, prompts=("a {}", "one {} here")))
    text = module._text[0]
    rows = []
    for prompt in ("a hat", "one hat here"):
        n = int(text.tokens([prompt]).attention_mask.sum())
        rows.append(text([prompt]).last_hidden_state[0, n - 1])
        torch.testing.assert_close(end_states(text, ["longer than the other text", prompt])[1], rows[-1])
    torch.testing.assert_close(module._class_embedding("hat"), torch.stack(rows).mean(0))


def test_activations_are_computed_again_beside_a_frozen_control_too(config: VpdTraining) -> None:
    module = VpdModule(dataclasses.replace(config, switch="adapter", checkpointing=True))
    for _, branch in module._all():  # the first and the frozen one share a denoiser
        network: Any = branch.reader.backbone.denoiser
        assert network.is_gradient_checkpointing


@pytest.mark.slow
def test_a_control_does_not_depend_on_the_branches_beside_it(config: VpdTraining) -> None:
    found: list[Tensor] = []
    for switch in ("adapter", "finetune"):
        own = dataclasses.replace(config, switch=switch, trainer=dataclasses.replace(config.trainer, gradient_clip=0.1))
        module = VpdModule(own)
        stepped(module, own, steps=2)
        found.append(module.state_dict()["branches.frozen.head.classify.weight"])
    assert torch.equal(*found)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["referring", "depth"])
def test_the_other_tasks_train_and_are_scored(config: VpdTraining, task: str) -> None:
    given: dict[str, Any] = {"task": task, "switch": "adapter", "controls": ("frozen",)}
    if task == "depth":
        given |= {"classes": {}, "attention_maps": False, "max_depth": 5.0}
    else:
        given |= {"expressions": {"the {hat}": "hat", "the {tool}": "tool"}}
    result = read_result(train_generative(dataclasses.replace(config, **given)))
    tested = {record.name: record for record in result.metrics if record.split == "test"}
    assert set(tested) == ({"rmse", "abs_rel", "delta1"} if task == "depth" else {"oiou", "miou_per_image"})
    assert all(record.probe == "vpd-adapter" and set(record.controls) == {"frozen"} for record in tested.values())


@pytest.mark.slow
def test_a_run_that_is_interrupted_ends_with_the_same_weights_and_scores(config: VpdTraining, tmp_path: Path) -> None:
    config = dataclasses.replace(config, switch="adapter", controls=("frozen",), checkpointing=True)
    whole = read_result(train_generative(config))
    parts = dataclasses.replace(
        config, output=str(tmp_path / "again"), trainer=dataclasses.replace(config.trainer, checkpoint_every_steps=1)
    )
    from diffprobe.runs import train_generative as runner

    folder = runner.run_dir_of(parts)

    class Stop(Exception):
        pass

    step = VpdModule.training_step

    def broken(self: VpdModule, rows: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == 3:
            raise Stop
        return step(self, rows, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VpdModule, "training_step", broken)
        with pytest.raises(Stop):
            train_generative(parts)
    checkpoint = find_checkpoint(folder, resume=True)
    assert checkpoint is not None
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(name.startswith("branches.") and ".denoiser." not in name for name in state)
    resumed = read_result(train_generative(parts))
    weights = "own.safetensors"
    assert resumed.artifacts[weights] == whole.artifacts[weights]
    assert [record.value for record in resumed.metrics] == [record.value for record in whole.metrics]


def test_ignored_pixels_are_in_no_loss_and_no_score(config: VpdTraining) -> None:
    classes = {name: values for name, values in CLASSES.items() if name != "background"}
    module = VpdModule(dataclasses.replace(config, classes=classes, ignore=(0,), controls=()))
    output, truth = torch.randn(2, 4, 3, 3), torch.randint(0, 4, (2, 3, 3)).to(torch.uint8)
    truth[:, 0] = IGNORED
    expected = torch.nn.functional.cross_entropy(output[:, :, 1:], truth[:, 1:].long())
    torch.testing.assert_close(module.loss(output, truth), expected)
    own = dataclasses.replace(config, classes=classes, ignore=(0,), switch="adapter", controls=())
    module, data = own.make()
    counts = module.score(data.test)
    assert counts.own.sum((1, 2)).tolist() == (data.test.truth != IGNORED).sum((1, 2)).tolist()
    assert (data.test.truth == IGNORED).any()


@pytest.mark.slow
def test_the_cost_counts_the_passes_that_a_run_makes(config: VpdTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(config, switch="adapter", controls=("frozen", "random_weights"), n_test=3)
    passes = {True: 0, False: 0}
    call = DifferentiableBackbone.__call__

    def counted(self: DifferentiableBackbone, x: Tensor, t: Tensor, condition: Any) -> Any:
        passes[torch.is_grad_enabled()] += len(x)
        return call(self, x, t, condition)

    monkeypatch.setattr(DifferentiableBackbone, "__call__", counted)
    train_generative(config)
    (line,) = [line for line in config.cost_lines if line.startswith("denoiser passes")]
    assert line == f"denoiser passes of an image: {passes[True]:,} with a backward pass, {passes[False]:,} without"


def test_changed_frozen_weights_are_noticed(config: VpdTraining, tmp_path: Path) -> None:
    module = VpdModule(dataclasses.replace(config, switch="adapter"))
    with torch.no_grad():
        next(module._own.reader.backbone.denoiser.parameters()).add_(1)
    with pytest.raises(RunFailed, match="own"):
        module.save(tmp_path / "weights")


def test_it_refuses_a_model_without_text_and_a_timestep_out_of_range(config: VpdTraining, tmp_path: Path) -> None:
    path = unet2d.tiny(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="text encoder"):
        VpdModule(dataclasses.replace(config, model=str(path)))
    with pytest.raises(BadTimestep, match="1000"):
        VpdModule(dataclasses.replace(config, recipe="mine", timestep=1000))
