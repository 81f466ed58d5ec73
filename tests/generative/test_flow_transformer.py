"""The networks of flow models: shapes, seeds, and the last token that stands for many."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from diffprobe.core.errors import ConfigError
from diffprobe.generative.flow_transformer import (
    RepeatedLastToken,
    TransformerShape,
    append_zero_token,
    make_transformer,
)


def qkv(n_keys: int = 5, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=generator).to(dtype) for n in (4, n_keys, n_keys)]


@pytest.mark.parametrize("n", [1, 2, 256])
def test_the_last_key_counts_as_n_equal_keys(n: int) -> None:
    query, key, value = qkv()
    with RepeatedLastToken(n):
        found = scaled_dot_product_attention(query, key, value)
    more = [torch.cat([x, x[:, :, -1:].expand(-1, -1, n - 1, -1)], dim=2) for x in (key, value)]
    torch.testing.assert_close(found, scaled_dot_product_attention(query, *more))


def test_by_hand() -> None:
    """Two keys of equal logits, the second of which counts three times: weights 1/4 and 3/4."""
    value = torch.tensor([[[[1.0], [5.0]]]])
    with RepeatedLastToken(3):
        found = scaled_dot_product_attention(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 2, 1), value=value)
    assert found.item() == pytest.approx(4.0)


def test_half_precision_loses_no_more_than_the_attention_itself() -> None:
    query, key, value = qkv(dtype=torch.bfloat16)
    with RepeatedLastToken(256):
        found = scaled_dot_product_attention(query, key, value)
        expected = scaled_dot_product_attention(query.float(), key.float(), value.float())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)


def test_outside_of_it_attention_is_untouched() -> None:
    query, key, value = qkv()
    before = scaled_dot_product_attention(query, key, value)
    with RepeatedLastToken(256):
        assert not torch.allclose(scaled_dot_product_attention(query, key, value), before, atol=1e-2)
    assert torch.equal(scaled_dot_product_attention(query, key, value), before)


def test_a_zero_token_is_appended() -> None:
    states = torch.randn(2, 3, 4)
    found = append_zero_token(states)
    assert found.shape == (2, 4, 4) and torch.equal(found[:, :3], states) and not found[:, 3].any()


def test_weights_follow_from_the_seed_and_blocks_start_as_the_identity() -> None:
    shape = TransformerShape(layers=2, heads=2, head_width=8)

    def build(seed: int) -> torch.nn.Module:
        made: torch.nn.Module = make_transformer(shape, latent_channels=2, latent_side=8, text_width=4, seed=seed)
        return made

    before = torch.get_rng_state()
    first, second, other = build(0), build(0), build(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    inputs: list[torch.Tensor] = []
    first.get_submodule("transformer_blocks.0").register_forward_hook(
        lambda module, args, kwargs, output: inputs.extend([kwargs["hidden_states"], output[1]]), with_kwargs=True
    )
    first(
        torch.randn(1, 2, 8, 8), encoder_hidden_states=torch.randn(1, 3, 8), pooled_projections=torch.randn(1, 8),
        timestep=torch.tensor([500]),
    )  # fmt: skip
    assert inputs[0].shape == (1, 16, 16)
    torch.testing.assert_close(inputs[0], inputs[1])


@pytest.mark.parametrize("key", ["layers", "heads", "head_width", "patch_size"])
def test_sizes_below_one_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"transformer.{key}=0"):
        TransformerShape(**{key: 0})


def test_head_widths_without_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="head_width=6"):
        TransformerShape(head_width=6)
