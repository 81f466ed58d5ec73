"""Comparison of queries and keys against torch's own attention."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from diffprobe.backbones.attended import Attended, n_heads, text_given
from diffprobe.core.errors import RunFailed


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def probs_of_torch(q: Tensor, k: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Torch's own attention with the identity as values gives back its weights."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    eye = torch.eye(k.shape[2]).expand(*k.shape[:2], -1, -1)
    return scaled_dot_product_attention(q, k, eye, attn_mask=mask).mean(1)


@pytest.mark.parametrize("kind", ["none", "bias", "boolean", "flat"])
def test_probabilities_respect_the_mask(kind: str) -> None:
    q, k = torch.randn(2, 6, 12), torch.randn(2, 5, 12)
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
    bias = (~keep).float() * -10000.0
    mask = {"none": None, "bias": bias[:, None], "boolean": keep[:, None], "flat": bias}[kind]
    expected = None if kind == "none" else (keep if kind == "boolean" else bias)[:, None, None]
    found = Attended(q, k, mask).mean_over_heads(3, probs=True)
    close(found, probs_of_torch(q, k, expected, 3))
    assert (float(found[0, :, 3:].max()) < 1e-6) == (kind != "none")


def test_a_mask_may_differ_between_heads() -> None:
    q, k, bias = torch.randn(2, 6, 12), torch.randn(2, 5, 12), torch.randn(2, 3, 1, 5)
    close(Attended(q, k, bias).mean_over_heads(3, probs=True), probs_of_torch(q, k, bias, 3))


def test_a_text_among_other_keys_gets_its_share_of_all_of_them() -> None:
    q, k = torch.randn(2, 6, 12), torch.randn(2, 5, 12)
    found = Attended(q, k, None, text=slice(1, 3))
    close(found.mean_over_heads(3, probs=True), probs_of_torch(q, k, None, 3)[..., 1:3])
    close(found.mean_over_heads(3, probs=False), q @ k[:, 1:3].transpose(1, 2) * 4**-0.5 / 3)
    assert found.n_text == 2 and Attended(q, k, None).n_text == 5


def test_logits_are_those_before_the_mask() -> None:
    q, k = torch.randn(2, 6, 12), torch.randn(2, 5, 12)
    masked = Attended(q, k, torch.zeros(2, 1, 5, dtype=torch.bool))
    close(masked.mean_over_heads(2, probs=False), Attended(q, k, None).mean_over_heads(2, probs=False))


def test_a_mask_of_another_length_is_refused() -> None:
    found = Attended(torch.randn(2, 6, 12), torch.randn(2, 5, 12), torch.zeros(2, 1, 7))
    with pytest.raises(RunFailed, match="does not fit 2 rows of 5 tokens"):
        found.mean_over_heads(3, probs=True)


def test_heads_are_stated_under_either_name() -> None:
    module = nn.Identity()
    module.heads = 3  # type: ignore[assignment]  # as most attentions of diffusers do
    assert n_heads(module) == 3
    other = nn.Identity()
    other.num_heads = 3  # type: ignore[assignment]  # as a block with attentions inside does
    assert n_heads(other) is None
    other.to_query = nn.Linear(2, 2)  # as Kandinsky 5 does
    assert n_heads(other) == 3
    assert n_heads(nn.Identity()) is None
    named = nn.Module()
    named.heads = nn.Identity()
    assert n_heads(named) is None


class _Named(nn.Module):
    def forward(self, norm_hidden_states: Tensor, masks: Tensor | None, norm_encoder_hidden_states: Tensor) -> None:
        """Has the arguments of the attention of HiDream."""


def test_a_text_is_found_by_the_names_of_the_arguments() -> None:
    image, text = torch.zeros(1, 4, 2), torch.zeros(1, 3, 2)
    assert text_given(_Named(), (image, None, text), {}) is text
    assert text_given(_Named(), (image,), {"norm_encoder_hidden_states": text}) is text
    assert text_given(_Named(), (image, image), {}) is None
