"""DifFeed: no feedback gives the first pass bit by bit, the published size, and gradients to the new layers alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.base import LoadOptions
from diffprobe.backbones.differentiable import DifferentiableBackbone, readable
from diffprobe.backbones.families import describe
from diffprobe.backbones.feedback import FeedbackLayers, TwoPasses, feedback_pairs
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.locate import locate
from diffprobe.core.errors import ConfigError

READ = "up_blocks.1"


def two_passes(path: Path, *, checkpointing: bool = False) -> TwoPasses:
    family, spec = describe(locate(str(path)), None)
    pairs = feedback_pairs(list(readable(spec)))
    backbone = load_whole(locate(str(path)), family, spec, LoadOptions())
    return TwoPasses(
        DifferentiableBackbone(backbone, spec, taps=[*pairs, READ], checkpointing=checkpointing), pairs, READ
    )


def inputs() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    return torch.randn(3, 4, 16, 16), torch.full((3,), 150), {"encoder_hidden_states": torch.randn(3, 7, 32)}


def test_zero_feedback_is_the_first_pass_bit_by_bit(tiny_sd: Path) -> None:
    passes, given = two_passes(tiny_sd), inputs()
    layers, first = FeedbackLayers(passes.widths), passes.first(*given)
    changed = passes.second(layers, first, *given)
    layers.silence()
    assert torch.equal(passes.second(layers, first, *given), first[READ])
    assert not torch.equal(changed, first[READ])
    assert torch.equal(passes.first(*given)[READ], first[READ])  # nothing stays hooked


def test_one_addition_is_that_of_a_plain_hook(tiny_sd: Path) -> None:
    passes, given = two_passes(tiny_sd), inputs()
    source, target = next(iter(passes.pairs.items()))
    layers = FeedbackLayers(passes.widths).eval()
    first = passes.first(*given)
    expected_addition = layers.layers[0](first[source])
    layers.silence()
    with torch.no_grad():
        for weight in layers.layers[0].parameters():
            weight.copy_(torch.rand_like(weight))
        own = layers.layers[0](first[source])
    assert own.shape == expected_addition.shape
    module = passes.reader.backbone.denoiser.get_submodule(target)

    def add(_: object, __: object, output: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        image = output[0] if isinstance(output, tuple) else output
        resized = torch.nn.functional.interpolate(own, size=image.shape[2:], mode="bilinear", align_corners=False)
        return (image + resized,) if isinstance(output, tuple) else image + resized

    handle = module.register_forward_hook(add)
    plain = passes.first(*given)[READ]
    handle.remove()
    torch.testing.assert_close(passes.second(layers, first, *given), plain)


def test_gradients_reach_all_layers_and_no_weight_of_the_denoiser(tiny_sd: Path) -> None:
    passes, given = two_passes(tiny_sd), inputs()
    before = passes.reader.digest()
    layers = FeedbackLayers(passes.widths)
    first = passes.first(*given)
    assert not any(one.requires_grad for one in first.values())
    passes.second(layers, first, *given).square().mean().backward()
    assert all(p.grad is not None for p in layers.parameters())
    assert all(p.grad is None for p in passes.reader.backbone.denoiser.parameters())
    assert passes.reader.digest() == before


def test_the_published_network_has_the_published_pairs_and_number_of_weights() -> None:
    """ADM: 37 blocks; 1 is the first convolution, then two layers and a downsampling per level; 19 is the middle."""
    channels = [256] * 7 + [512] * 6 + [1024] * 12 + [512] * 6 + [256] * 6
    paths = [f"down_blocks.{level}.resnets.{layer}" for level in range(6) for layer in range(2)]
    paths += [f"up_blocks.{level}.resnets.{layer}" for level in range(6) for layer in range(3)]
    numbers = {f"down_blocks.{level}.resnets.{layer}": 2 + 3 * level + layer for level in range(6) for layer in (0, 1)}
    numbers |= {
        f"up_blocks.{level}.resnets.{layer}": 20 + 3 * level + layer for level in range(6) for layer in range(3)
    }
    pairs = feedback_pairs(paths)
    found = {numbers[source]: numbers[target] for source, target in pairs.items()}
    assert found == {21: 17, 24: 14, 27: 11, 30: 8, 33: 5, 36: 2}
    with torch.device("meta"):
        layers = FeedbackLayers([(channels[source - 1], channels[target - 1]) for source, target in found.items()])
    n = sum(p.numel() for p in layers.parameters())
    assert n == 2 * (1024**2 + 512**2 + 256**2) + 2 * 2 * (1024 + 512 + 256)
    assert round(n / 1e6, 1) == 2.8  # as published


def test_it_refuses_a_transformer_and_a_second_computation(tiny_sd: Path) -> None:
    with pytest.raises(ConfigError, match="up blocks"):
        feedback_pairs(["transformer_blocks.0", "transformer_blocks.1"])
    with pytest.raises(ConfigError, match="checkpointing"):
        two_passes(tiny_sd, checkpointing=True)
