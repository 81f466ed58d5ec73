"""Settings of the alignment task, its negatives, the encoder half, and the rule of equal compute."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.generative.alignment import AlignmentConfig, encoder_half, require_negatives, steps_of_equal_compute
from diffprobe.generative.architectures import DenoiserShape, make_unet

JOINT = "scenes/diffdis_joint/joint"


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"weight": -1.0}, "weight=-1"),
        ({"weight": float("inf")}, "weight=inf"),
        ({"gamma": 0.0}, "gamma=0"),
        ({"heads": 3}, "heads=3"),
        ({"p_dropout": 1.0}, "p_dropout=1"),
        ({"temperature": 0.001}, "temperature=0.001"),
        ({"weight": 0.0, "generation": False}, "nothing to train"),
        ({"weight": 0.0, "blocks": 3}, "alignment.blocks: no effect"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(settings: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        AlignmentConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        (["data.batch_size=1"], "batch_size=1: InfoNCE"),
        (["text_learning_rate=1.0"], "frozen text encoder"),
        (["text_encoder=null"], "frozen text encoder"),
        (["classes={attribute: role}", "regularizer={name: cbdm}"], "class-contrast term"),
    ],
)
def test_a_training_that_alignment_is_not_defined_with_is_refused(settings: list[str], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        load(JOINT, settings)


def test_a_transformer_has_no_encoder_half() -> None:
    with pytest.raises(ConfigError, match="does not have"):
        load("scenes/train_flow", ["alignment={weight: 1.0}"])


def test_without_weight_the_settings_of_generation_alone_are_kept() -> None:
    config = load("scenes/train_denoiser", ["alignment={weight: 0}"])
    assert not config.alignment.trains_head and config.text_learning_rate == 1.0


def test_captions_that_are_all_equal_are_refused_by_name() -> None:
    require_negatives(["a cook", "a cook", "a poet"], "a batch")
    with pytest.raises(EmptyClass, match=r"a batch has one caption \('a cook'\) for 3 samples.*no negatives"):
        require_negatives(["a cook"] * 3, "a batch")
    with pytest.raises(EmptyClass, match="none"):
        require_negatives([], "split 'train'")


def test_the_encoder_half_is_the_mid_block_of_a_whole_pass() -> None:
    shape = DenoiserShape(channels=(8, 16), cross_attention=(True, False), heads=2, norm_groups=4, text_width=16)
    unet = make_unet(replace(shape, text_heads=2), latent_channels=2, latent_side=8, seed=0)
    clean, context = torch.randn(3, 2, 8, 8), torch.randn(1, 5, 16).expand(3, -1, -1)
    seen: list[torch.Tensor] = []
    late: list[int] = []
    unet.mid_block.register_forward_hook(lambda *call: seen.append(call[2]))
    unet.up_blocks[0].register_forward_hook(lambda *call: late.append(1))
    found = encoder_half(unet, clean, context)
    assert not late and found.shape == (3, 16 * 4 * 4)
    with torch.no_grad():
        unet(clean, torch.zeros(3, dtype=torch.long), context)
    assert late
    torch.testing.assert_close(found, seen[-1].flatten(1), atol=1e-5, rtol=1e-5)
    found.sum().backward()
    assert unet.conv_in.weight.grad is not None and unet.conv_out.weight.grad is None


def test_the_experiments_have_equal_compute_by_the_rule() -> None:
    from diffprobe.generative.joint_denoiser import JointDenoiserModule

    joint, generation, alignment = (
        load(f"scenes/diffdis_joint/{name}", []) for name in ("joint", "generation", "alignment")
    )
    flops = JointDenoiserModule(joint).flops_per_sample()
    expected = steps_of_equal_compute(joint.trainer.max_steps, flops)
    assert expected == {"generation": generation.trainer.max_steps, "alignment": alignment.trainer.max_steps}
    assert generation.alignment is None and not alignment.alignment.generation
    for other in (generation, alignment):  # nothing else differs
        same = replace(
            other, experiment=joint.experiment, alignment=joint.alignment,
            trainer=replace(other.trainer, max_steps=joint.trainer.max_steps),
        )  # fmt: skip
        assert same == joint
