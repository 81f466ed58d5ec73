"""Self-representation alignment: its loss by hand, the teacher's timesteps, and training with it."""

import dataclasses
from pathlib import Path

import pytest
import torch

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.generative.ema import EMACallback
from diffprobe.generative.flow_denoiser import FlowDenoiserModule
from diffprobe.generative.objectives.base import ObjectiveConfig
from diffprobe.generative.self_alignment import SelfAlignmentConfig, alignment_loss, make_head
from diffprobe.training.checkpoint import find_checkpoint
from tests.generative.test_flow_denoiser import Interrupt, config, fit  # noqa: F401

ALIGNMENT = SelfAlignmentConfig(student_block=0, teacher_block=1, weight=0.5)


@pytest.fixture
def aligned(config):  # noqa: F811
    return dataclasses.replace(config, self_alignment=ALIGNMENT)


def averaging() -> EMACallback:
    return EMACallback(0.9)


def weights(module: FlowDenoiserModule) -> dict[str, torch.Tensor]:
    return dict(module.state_dict())


def test_the_loss_by_hand():
    """Quadratic below .05: (.02^2 / .1 + (1 - .025)) / 2."""
    found = alignment_loss(torch.tensor([[[0.02, 1.0]]]), torch.zeros(1, 1, 2))
    assert float(found) == pytest.approx((0.02**2 / 0.1 + 0.975) / 2, rel=1e-5)
    assert float(alignment_loss(torch.ones(1, 2, 3), torch.ones(1, 2, 3))) == 0


def test_the_teacher_sees_less_noise_within_the_interval():
    timesteps = torch.tensor([1, 100, 500, 1000]).repeat(200)
    found = ALIGNMENT.teacher_timesteps(timesteps, 1000, torch.Generator().manual_seed(0))
    less = timesteps - found
    assert bool((found >= 0).all() and (less >= 0).all()) and int(less.max()) <= 200
    assert int(less[timesteps == 1000].max()) > 180 and int(less[timesteps == 1000].min()) < 20
    same = dataclasses.replace(ALIGNMENT, max_interval=0.0)
    assert torch.equal(same.teacher_timesteps(timesteps, 1000, torch.Generator()), timesteps)


def test_a_head_is_seeded_and_leaves_the_random_state():
    state = torch.get_rng_state()
    one, two = make_head(4, 1), make_head(4, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.slow
def test_training_moves_the_head_and_the_network_and_saves_no_head(config, aligned, tmp_path: Path):  # noqa: F811
    start = aligned.make()[0]
    module = fit(aligned, tmp_path / "aligned", callbacks=[averaging()])
    plain = fit(config, tmp_path / "plain", callbacks=[averaging()])
    assert bool(module.logged["train/self_alignment"].isfinite()) and "train/self_alignment" not in plain.logged
    assert not torch.equal(start.alignment_head[0].weight, module.alignment_head[0].weight)
    name = "transformer.transformer_blocks.0.attn.to_q.weight"
    assert not torch.equal(weights(module)[name], weights(plain)[name])
    module.save(tmp_path / "weights")
    saved = sum(path.stat().st_size for path in (tmp_path / "weights/transformer").glob("*.safetensors"))
    plain.save(tmp_path / "plain-weights")
    assert saved == sum(p.stat().st_size for p in (tmp_path / "plain-weights/transformer").glob("*.safetensors"))
    assert not any(block._forward_hooks for block in module.transformer.transformer_blocks)


def test_the_term_of_a_step_is_that_of_a_plain_computation(aligned, monkeypatch, tmp_path: Path):
    """Student and teacher start from the same weights, so a plain pass of the module itself gives both outputs."""
    module, _ = aligned.make()
    teacher, _ = aligned.make()
    monkeypatch.setattr(FlowDenoiserModule, "_averaged", lambda self: teacher)
    clean, noise = torch.randn(2, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps, captions = torch.tensor([900, 300, 20]), ["noto emoji, red round", "", "round"]
    module.train().errors(clean, captions, timesteps, noise, torch.Generator().manual_seed(3))

    earlier = ALIGNMENT.teacher_timesteps(timesteps, 1000, torch.Generator().manual_seed(3))
    outputs = {}
    for index, at in ((0, timesteps), (1, earlier)):
        read = lambda m, a, output, index=index: outputs.__setitem__(index, output[1])  # noqa: E731
        handle = module.transformer.transformer_blocks[index].register_forward_hook(read)
        s = (at / 1000)[:, None, None, None]
        module.predict((1 - s) * clean + s * noise, at, captions)
        handle.remove()
    expected = torch.nn.functional.smooth_l1_loss(module.alignment_head(outputs[0]), outputs[1], beta=0.05)
    torch.testing.assert_close(module._alignment_loss, expected)


@pytest.mark.slow
def test_resumed_equals_uninterrupted_bit_for_bit(aligned, tmp_path: Path):
    changed = dataclasses.replace(aligned.trainer, max_epochs=3, checkpoint_every_steps=1)
    aligned = dataclasses.replace(aligned, trainer=changed)
    whole = weights(fit(aligned, tmp_path / "whole", callbacks=[averaging()]))
    with pytest.raises(RuntimeError, match="stopped"):
        fit(aligned, tmp_path / "cut", callbacks=[averaging(), Interrupt()])
    last = find_checkpoint(tmp_path / "cut", resume=True)
    resumed = weights(fit(aligned, tmp_path / "cut", checkpoint=last, callbacks=[averaging()]))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def test_without_averaged_weights_the_run_stops(aligned, tmp_path: Path):
    with pytest.raises(RunFailed, match="EMACallback"):
        fit(aligned, tmp_path)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"student_block": 2, "teacher_block": 1}, "student_block=2"), ({"student_block": -1}, "student_block=-1"),
        ({"weight": 0.0}, "weight=0.0"), ({"max_interval": 1.5}, "max_interval=1.5"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, fact):
    with pytest.raises(ConfigError, match=fact):
        dataclasses.replace(ALIGNMENT, **settings)


def test_an_alignment_without_what_it_needs_is_refused(config):  # noqa: F811
    with pytest.raises(ConfigError, match="teacher_block=2.*blocks 0 to 1"):
        dataclasses.replace(config, self_alignment=SelfAlignmentConfig(student_block=0, teacher_block=2))
    with pytest.raises(ConfigError, match="no effect without transformer"):
        velocity = ObjectiveConfig(name="velocity_prediction")
        dataclasses.replace(config, transformer=None, objective=velocity, self_alignment=ALIGNMENT)
    with pytest.raises(ConfigError, match="ema_decay=0"):
        dataclasses.replace(config, self_alignment=ALIGNMENT, ema_decay=0.0)
