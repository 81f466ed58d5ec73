"""Gradients through a frozen denoiser: where they arrive, that nothing is left on the weights, and what is held."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones.base import LoadOptions
from diffprobe.backbones.differentiable import (
    DifferentiableBackbone,
    HeldBytes,
    cross_attentions,
    mean_attention,
    readable,
    set_checkpointing,
    weights_digest,
)
from diffprobe.backbones.families import describe, unet2d
from diffprobe.backbones.hooks import Capture
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.locate import locate
from diffprobe.core.errors import ConfigError, UnknownTap

TAPS = ("up_blocks.0.resnets.0", "up_blocks.1.attentions.0", "up_blocks.2")


def reader(path: Path, *, checkpointing: bool = False, trainable: bool = False) -> DifferentiableBackbone:
    checkpoint = locate(str(path))
    family, spec = describe(checkpoint, None)
    backbone = load_whole(checkpoint, family, spec, LoadOptions())
    return DifferentiableBackbone(
        backbone, spec, taps=TAPS, attention=cross_attentions(spec), checkpointing=checkpointing, trainable=trainable
    )


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(2, 4, 16, 16, generator=generator)
    return x, torch.full((2,), 1), torch.randn(2, 5, 32, generator=generator)


def loss_of(one: DifferentiableBackbone, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
    reading = one(x, t, {"encoder_hidden_states": states})
    parts = [*reading.maps.values(), *reading.attention.values()]
    return torch.stack([part.square().mean() for part in parts]).sum()


def test_gradients_reach_the_inputs_and_leave_nothing_on_the_weights(tiny_sd: Path) -> None:
    one = reader(tiny_sd, checkpointing=True)
    before = one.digest()
    x, t, states = inputs()
    loss_of(one, x.requires_grad_(), t, states.requires_grad_()).backward()
    for given in (x, states):
        assert given.grad is not None and float(given.grad.abs().max()) > 0
    networks = one.backbone.components().values()
    assert all(p.grad is None and not p.requires_grad for network in networks for p in network.parameters())
    assert one.digest() == before


def test_a_trainable_denoiser_has_gradients_and_vae_and_text_encoder_have_none(tiny_sd: Path) -> None:
    one = reader(tiny_sd, trainable=True)
    loss_of(one, *inputs()).backward()
    parts = one.backbone.components()
    assert any(p.grad is not None for p in parts.pop("denoiser").parameters())
    assert not any(p.requires_grad for network in parts.values() for p in network.parameters())


def test_computing_activations_again_gives_equal_gradients_and_holds_less(tiny_sd: Path) -> None:
    found, held, values = [], [], []
    for checkpointing in (False, True):
        one = reader(tiny_sd, checkpointing=checkpointing)
        x, t, states = inputs()
        states.requires_grad_()
        with HeldBytes(one.backbone.denoiser) as counted:
            loss = loss_of(one, x, t, states)
        loss.backward()
        assert states.grad is not None
        found.append(states.grad)
        held.append(counted.total)
        values.append(float(loss.detach()))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-9)
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert held[1] < 0.7 * held[0]


def test_maps_are_those_of_the_plain_pass_and_attention_is_the_mean_of_its_size(tiny_sd: Path) -> None:
    one = reader(tiny_sd)
    x, t, states = inputs()
    with torch.no_grad():
        reading = one(x, t, {"encoder_hidden_states": states})
        names = [f"{path}/probs" for path in one.attention]
        capture = Capture(one.backbone.denoiser, [*TAPS, *names], layout=one.spec.layout, read=lambda found, _: found)
        plain = capture(lambda: one.backbone.denoise(x, t, {"encoder_hidden_states": states}))
    for tap in TAPS:
        assert torch.equal(reading.maps[tap], plain[tap])
    for size, own in reading.attention.items():
        expected = torch.stack([plain[name] for name in names if plain[name].shape[2:] == size]).mean(0)
        torch.testing.assert_close(own, expected)
        torch.testing.assert_close(own.sum(1), torch.ones_like(own[:, 0]))


def test_mean_attention_by_hand() -> None:
    q, k = torch.randn(1, 3, 4), torch.randn(1, 2, 4)
    heads = []
    for columns in (slice(0, 2), slice(2, 4)):
        scores = q[0, :, columns] @ k[0, :, columns].T / 2**0.5
        heads.append(scores.exp() / scores.exp().sum(1, keepdim=True))
    torch.testing.assert_close(mean_attention(q, k, heads=2)[0], (heads[0] + heads[1]) / 2)


def test_a_row_does_not_depend_on_its_batch(tiny_sd: Path) -> None:
    one = reader(tiny_sd)
    x, t, states = inputs()
    with torch.no_grad():
        both = one(x, t, {"encoder_hidden_states": states})
        single = one(x[1:], t[1:], {"encoder_hidden_states": states[1:]})
    for tap in TAPS:
        torch.testing.assert_close(both.maps[tap][1:], single.maps[tap], rtol=1e-4, atol=1e-5)


def test_it_refuses_a_denoiser_without_text_an_unknown_tap_and_one_that_holds_everything(
    tiny_sd: Path, tmp_path: Path
) -> None:
    _, spec = describe(locate(str(unet2d.tiny(tmp_path / "tiny"))), None)
    with pytest.raises(ConfigError, match="text"):
        cross_attentions(spec)
    one = reader(tiny_sd)
    with pytest.raises(UnknownTap, match="up_blocks.9"):
        DifferentiableBackbone(one.backbone, one.spec, taps=["up_blocks.9"])
    with pytest.raises(ConfigError, match="plain"):
        set_checkpointing(nn.Linear(1, 1), True, "plain")


def test_a_digest_sees_one_weight() -> None:
    layer = nn.Linear(3, 2)
    before = weights_digest(layer)
    with torch.no_grad():
        layer.weight[0, 0] += 1e-6
    assert weights_digest(layer) != before


def test_taps_are_in_the_order_in_which_they_are_reached(tiny_sd: Path) -> None:
    one = reader(tiny_sd)
    every = list(readable(one.spec))
    assert [every.index(path) for path in one.paths] == sorted(every.index(path) for path in one.paths)
