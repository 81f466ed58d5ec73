"""Parts of VPD: sizes of the published model, the adapter at zero, heads that do not depend on the batch."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from diffprobe.backbones.layout import OutputLayout
from diffprobe.core.errors import ConfigError
from diffprobe.probes.dense.vpd import (
    DepthHead,
    SemanticFpn,
    TextAdapter,
    join_pyramid,
    pyramid_channels,
    pyramid_taps,
    silog_loss,
)


def n_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_adapter_has_the_published_size_and_does_nothing_at_gamma_zero() -> None:
    with torch.device("meta"):
        published = TextAdapter(768)
    assert n_parameters(published) == 2 * (768 * 768 + 768) + 768
    states = torch.randn(2, 5, 8)
    assert torch.equal(TextAdapter(8, gamma=0.0)(states), states)
    adapter = TextAdapter(8, gamma=0.5)
    torch.testing.assert_close(adapter(states) - states, 0.5 * adapter.mlp(states))


def test_levels_of_stable_diffusion_have_the_published_channels_and_places() -> None:
    import diffusers

    with torch.device("meta"):
        unet: Any = diffusers.UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8
        )
    assert n_parameters(unet) == 859_520_964
    layout = OutputLayout(size=(64, 64))
    shapes: dict[str, tuple[int, tuple[int, int]]] = {}

    def keep(path: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> None:
            image = layout.image(output, path)
            if image is not None:
                shapes[path] = (image.shape[1], (image.shape[2], image.shape[3]))

        return hook

    for path, module in unet.named_modules():
        module.register_forward_hook(keep(path))
    with torch.no_grad():
        unet(
            torch.empty(1, 4, 64, 64, device="meta"),
            torch.ones(1, device="meta"),
            torch.empty(1, 9, 768, device="meta"),
        )
    taps = pyramid_taps(list(shapes))
    assert taps == (
        "up_blocks.3.attentions.2",
        "up_blocks.2.attentions.1",
        "up_blocks.1.attentions.1",
        "up_blocks.0.resnets.1",
    )
    levels = [shapes[tap] for tap in taps]
    assert levels == [(320, (64, 64)), (640, (32, 32)), (1280, (16, 16)), (1280, (8, 8))]
    assert pyramid_channels(levels, [(32, 32), (16, 16)], 150) == [320, 790, 1430, 1280]
    assert pyramid_channels(levels, [], 150) == [320, 640, 1280, 1280]
    with pytest.raises(ConfigError, match="up blocks"):
        pyramid_taps(["transformer_blocks.0", "up_blocks.0.resnets.0"])


def test_the_parts_have_the_number_of_weights_that_their_published_sizes_give() -> None:
    channels, width, half, n_classes = [320, 790, 1430, 1280], 256, 128, 150
    with torch.device("meta"):
        segmentation = SemanticFpn(channels, n_classes)
        depth = DepthHead([320, 640, 1280, 1280], max_depth=10.0)
    pyramid = sum(channels) * width + 4 * width + 4 * (9 * width * width + width)
    convolutions = {(width, half): 4, (half, half): 3}  # 1, 1, 2 and 3 steps to the finest size
    scaling = sum(n * (9 * a * b + 2 * b) for (a, b), n in convolutions.items())
    own_norms = 2 * sum(channels)  # of the levels; the released neck has none
    assert n_parameters(segmentation) == pyramid + scaling + half * n_classes + n_classes + own_norms
    upsampling = (4 * 256 * 32 + 32) + 2 * (4 * 32 * 32 + 32)
    fused = 9 * 3520 * 256 + 2 * 256
    assert n_parameters(depth) == 2 * 3520 + fused + upsampling + 9 * 32 + 1


def test_attention_maps_are_appended_to_levels_of_their_size_but_never_to_the_finest() -> None:
    maps = [torch.randn(1, 2, 8, 8), torch.randn(1, 3, 4, 4), torch.randn(1, 4, 2, 2)]
    attention = {(8, 8): torch.rand(1, 5, 8, 8), (4, 4): torch.rand(1, 5, 4, 4)}
    found = join_pyramid(maps, attention)
    assert [level.shape[1] for level in found] == [2, 8, 4]
    assert torch.equal(found[1][:, 3:], attention[4, 4])


@pytest.mark.parametrize("kind", ["fpn", "depth"])
def test_a_head_gives_the_same_for_a_sample_alone_and_in_a_batch(kind: str) -> None:
    levels = [torch.randn(3, 4, 8, 8), torch.randn(3, 6, 4, 4), torch.randn(3, 8, 2, 2)]
    head = SemanticFpn([4, 6, 8], 5, width=16) if kind == "fpn" else DepthHead([4, 6, 8], max_depth=7.0, width=16)
    whole, single = head(levels), head([level[1:2] for level in levels])
    assert whole.shape == ((3, 5, 8, 8) if kind == "fpn" else (3, 1, 32, 32))
    torch.testing.assert_close(whole[1:2], single)
    if kind == "depth":
        assert 0 < float(whole.min()) and float(whole.max()) < 7


def test_each_level_moves_the_logits_of_the_head() -> None:
    levels = [torch.randn(1, 4, 8, 8).requires_grad_(), torch.randn(1, 6, 4, 4).requires_grad_()]
    SemanticFpn([4, 6], 2, width=8)(levels).square().sum().backward()
    assert all(level.grad is not None and float(level.grad.abs().max()) > 0 for level in levels)


def test_silog_by_hand_and_without_known_depth() -> None:
    predicted, truth = torch.tensor([[[2.0, 8.0, 1.0]]]), torch.tensor([[[1.0, 2.0, 0.0]]])
    g = [math.log(2), math.log(4)]
    mean, square = sum(g) / 2, sum(one**2 for one in g) / 2
    assert float(silog_loss(predicted, truth)) == pytest.approx(math.sqrt(square - 0.5 * mean**2), rel=1e-6)
    assert float(silog_loss(predicted * 3, truth, weight=1.0)) == pytest.approx(math.sqrt(square - mean**2), rel=1e-5)
    assert float(silog_loss(predicted, truth * 0)) == 0
