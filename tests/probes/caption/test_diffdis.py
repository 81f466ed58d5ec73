"""The DiffDis head against plain formulas: attention with loops, diffusers' DDIM, and what may not enter."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.caption.diffdis import (
    N_TIMESTEPS,
    AlignmentHead,
    Config,
    JointBlock,
    check_pool,
    contrast,
    embed,
    make,
    unit_rms,
)

SMALL = {"grid": 2, "width": 8, "heads": 2, "blocks": 2, "ddim_steps": 5}


def head(**changes: Any) -> AlignmentHead:
    torch.manual_seed(0)
    return make(Config(**{**SMALL, **changes}), 12, 6, seed=3).eval()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_a_block_is_plain_attention_with_two_feed_forward_layers() -> None:
    torch.manual_seed(0)
    block, x = JointBlock(8, 2).eval(), draw(3, 5, 8)
    normed = F.layer_norm(x, (8,), block.before.weight, block.before.bias)
    q, k, v = (normed @ block.qkv.weight.T).chunk(3, -1)
    parts = []
    for number in range(2):
        own = slice(4 * number, 4 * number + 4)
        weights = (q[..., own] @ k[..., own].transpose(1, 2) / 2).softmax(-1)
        parts.append(weights @ v[..., own])
    x = x + block.joined(torch.cat(parts, -1))
    expected = torch.cat([x[:, :1] + block.of_query(x[:, :1]), x[:, 1:] + block.of_image(x[:, 1:])], 1)
    torch.testing.assert_close(block(draw(3, 5, 8)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_iterative_inference_is_ddim_of_diffusers() -> None:
    from diffusers import DDIMScheduler

    module, features = head(), draw(4, 12)
    scheduler: Any = DDIMScheduler(
        num_train_timesteps=N_TIMESTEPS, beta_start=1e-4, beta_end=0.02, prediction_type="sample", clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(5)
    image, noised = module.image_tokens(features), module.start.expand(4, -1)
    for t in scheduler.timesteps.tolist():
        found = module.denoise(noised, torch.full((4,), t), image)
        noised = scheduler.step(unit_rms(found), t, noised).prev_sample
    module.inference = "ddim"
    torch.testing.assert_close(module(features), found, atol=1e-5, rtol=1e-5)
    module.inference = "one_step"
    one = module.denoise(module.start.expand(4, -1), torch.full((4,), N_TIMESTEPS - 1), image)
    torch.testing.assert_close(module(features), one, atol=1e-6, rtol=0)


@torch.no_grad()
def test_training_noises_the_query_by_the_formula() -> None:
    module, features, captions = head(gamma=0.5, p_dropout=0.0), draw(3, 12), draw(3, 6, seed=1)
    seen: list[tuple[Tensor, Tensor]] = []
    denoise = module.denoise
    module.denoise = lambda noised, t, image: seen.append((noised, t)) or denoise(noised, t, image)  # type: ignore
    embed(module, features, captions, [5, 6, 7])
    (noised, t) = seen[0]
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, N_TIMESTEPS), 0)[t][:, None]
    e = captions / captions.square().mean(1, keepdim=True).sqrt()
    left = (noised - 0.5 * kept.sqrt() * e) / (1 - kept).sqrt()
    embed(module, features, 100 * captions, [5, 6, 7])
    assert torch.equal(seen[0][1], seen[1][1])
    torch.testing.assert_close(seen[1][0], noised, atol=1e-4, rtol=1e-4)  # norms of captions have no effect
    assert left.abs().max() < 5 and left.std() > 0.3 and len(set(t.tolist())) == 3


@torch.no_grad()
def test_a_sample_does_not_depend_on_the_batch() -> None:
    module, features, captions = head(p_dropout=0.5), draw(6, 12), draw(6, 6, seed=1)
    whole = embed(module, features, captions, list(range(6)))
    order = [4, 2, 0]
    part = embed(module, features[order], captions[order], order)
    torch.testing.assert_close(part, whole[order], atol=1e-5, rtol=1e-5)
    for inference in ("one_step", "ddim"):
        module.inference = inference
        torch.testing.assert_close(module(features[order]), module(features)[order], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_caption_enters_an_inference() -> None:
    """A re-implementation feeds the text of the true class. Here an image alone fixes its embedding."""
    module, features = head(), draw(2, 12)
    before = module(features)
    embed(module, features, draw(2, 6, seed=9), [1, 2])
    assert torch.equal(module(features), before)
    assert (module(features)[0] - module(features.flip(0))[1]).abs().max() < 1e-6
    assert (before[0] - before[1]).abs().max() > 1e-4


@torch.no_grad()
def test_guidance_extrapolates_from_the_prediction_without_an_image() -> None:
    features = draw(2, 12)
    plain, guided = head(), head(guidance=2.0)
    t = torch.full((2,), N_TIMESTEPS - 1)
    blind = plain.denoise(plain.start.expand(2, -1), t, plain.no_image.expand(2, -1, -1))
    torch.testing.assert_close(guided(features), 3 * plain(features) - 2 * blind, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_are_the_places_of_a_map() -> None:
    module, maps = head(), draw(2, 3, 2, 2)
    expected = module.image_in(maps.permute(0, 2, 3, 1).reshape(2, 4, 3)) + module.places
    torch.testing.assert_close(module.image_tokens(maps.flatten(1)), expected)


def test_the_loss_reaches_every_part() -> None:
    module = head(p_dropout=0.5).train()
    captions = draw(8, 6, seed=1)
    found = embed(module, draw(8, 12), captions, list(range(8)))
    contrast(module, found, captions, torch.eye(8, dtype=torch.bool)).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in module.parameters())


def test_features_that_are_not_tokens_and_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="13 numbers"):
        make(Config(grid=2), 13, 6, seed=0)
    check_pool(Config(grid=4), "grid", 4)
    check_pool(Config(grid=1), "mean", 1)
    for kind, size in (("grid", 2), ("none", 1), ("tokens", 4)):
        with pytest.raises(ConfigError, match="grid=4"):
            check_pool(Config(grid=4), kind, size)


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"width": 10, "heads": 4}, "heads"),
        ({"gamma": 0.0}, "gamma"),
        ({"p_dropout": 1.0}, "p_dropout"),
        ({"guidance": 1.0, "p_dropout": 0.0}, "guidance"),
        ({"ddim_steps": 0}, "ddim_steps"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_out_of_range_are_named(given: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        Config(**given)
