"""What one attention of a pass compares: queries of the image's places and keys of the tokens that they attend to."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from diffprobe.core.errors import RunFailed

_TEXTS = ("encoder_hidden_states", "norm_encoder_hidden_states")
"""Arguments of an attention that hold a text (the second one in HiDream)."""


def n_heads(module: nn.Module | Any) -> int | None:
    """Return the number of heads that a module states as an attention of diffusers does; None without one.

    Kandinsky 5 names it `num_heads`, as blocks of U-Nets do that contain attentions.
    """
    found = getattr(module, "num_heads" if hasattr(module, "to_query") else "heads", None)
    return found if isinstance(found, int) else None


def text_given(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the text that an attention is called with beside the image; None without one."""
    names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return next((given[name] for name in _TEXTS if given.get(name) is not None), None)


@dataclass(frozen=True)
class Attended:
    """Queries and keys of one attention, all heads in one width.

    Attributes:
        q: queries of the places of the image.
        k: keys: of the text tokens in a cross-attention, of all tokens in a joint attention.
        mask: of the network, added to the scores, or boolean with True for what may be attended to; its last axis is
            the keys. One with four axes has the heads second.
        text: the keys that are text tokens.
    """

    q: Float[Tensor, "batch places width"]
    k: Float[Tensor, "batch keys width"]
    mask: Shaped[Tensor, "batch ..."] | None
    text: slice = field(default_factory=lambda: slice(None))

    @property
    def n_text(self) -> int:
        """Number of text tokens."""
        return int(self.k[:, self.text].shape[1])

    def scores(self, head: int, heads: int, *, masked: bool, keys: slice = slice(None)) -> Tensor:
        """Return q k / sqrt(d) of one head, float32 [batch, places, keys], plus the mask if `masked`.

        Args:
            head: from 0.
            heads: number of heads.
            keys: the keys that are compared.
        Raises: RunFailed for a mask that does not fit.
        """
        q, k = (x.unflatten(-1, (heads, -1))[:, :, head].float() for x in (self.q, self.k[:, keys]))
        found = q @ k.transpose(1, 2) * q.shape[-1] ** -0.5
        mask = self.mask[:, head] if self.mask is not None and self.mask.ndim == 4 else self.mask
        bias = mask_bias(mask, len(q), self.k.shape[1]) if masked else None
        return found if bias is None else found + bias[..., keys]

    def mean_over_heads(self, heads: int, *, probs: bool) -> Float[Tensor, "batch places text"]:
        """Compare queries with the keys of the text, averaged over heads, in float32.

        Args:
            heads: number of heads.
            probs: return the share of each text token in the softmax over all keys, masked, instead of q k / sqrt(d)
                without the mask.
        Source: Vaswani et al., NeurIPS 2017, equation 1.
        """
        total = torch.zeros((), device=self.q.device)
        for head in range(heads):  # one at a time: all together would be `heads` times what is kept
            if probs:
                total = total + self.scores(head, heads, masked=True).softmax(-1)[..., self.text]
            else:
                total = total + self.scores(head, heads, masked=False, keys=self.text)
        return total / heads


Ready = Callable[[Attended], None]
"""Takes what one attention compares, inside the pass."""


def mask_bias(
    mask: Shaped[Tensor, "batch ..."] | None, batch: int, n_keys: int
) -> Float[Tensor, "batch places keys"] | None:
    """Bring a mask to something that can be added to [batch, places, keys]. Raises: RunFailed."""
    if mask is None:
        return None
    if mask.shape[-1] != n_keys or mask.shape[0] != batch or mask.ndim not in (2, 3):
        raise RunFailed(
            f"an attention mask of shape {tuple(mask.shape)} does not fit {batch} rows of {n_keys} tokens.",
            "this is a bug in diffprobe: it does not handle the mask of this network",
        )
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)
    return mask.float() if mask.ndim == 3 else mask.float()[:, None]
