"""Plain reference implementations of the kernels: the same functions, written from their formulas.

They are slower, use more memory, and are differentiated by autograd. Tests compare the kernels with them; read them to
see what a kernel computes.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.probes.sae.kernels.sparse_step import Selection, Top


def preactivations(
    centred: Float[Tensor, "batch d_in"], W_enc: Float[Tensor, "n_latents d_in"], b_enc: Float[Tensor, " n_latents"]
) -> Float[Tensor, "batch n_latents"]:
    """Reference of `encoder_matmul.encoder_chunks`, all rows at once."""
    return F.linear(centred, W_enc, b_enc)


def row_topk(h: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Reference of `row_topk.row_topk`."""
    values, indices = h.topk(k, dim=1)
    return values, indices


def scan(
    centred: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    *,
    k: int,
    among: Int[Tensor, " some"] | None = None,
    k_among: int = 0,
) -> tuple[Top, Top | None]:
    """Reference of `sparse_step.scan`."""
    h = preactivations(centred, W_enc, b_enc)
    if among is None or k_among == 0:
        return Top(*row_topk(h, k)), None
    values, positions = row_topk(h[:, among], k_among)
    return Top(*row_topk(h, k)), Top(values, among[positions])


def scan_above(
    centred: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    threshold: Float[Tensor, ""] | Float[Tensor, " n_latents"],
) -> Top:
    """Reference of `sparse_step.scan_above`."""
    h = preactivations(centred, W_enc, b_enc)
    width = max(1, int((h > threshold).sum(1).max())) if len(h) else 1
    return Top(*row_topk(torch.where(h > threshold, h, 0), width))


def sparse_step(
    centred: Float[Tensor, "batch d_in"],
    b_pre: Float[Tensor, " d_in"] | Float[Tensor, "members d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    W_dec: Float[Tensor, "n_latents d_in"],
    selection: Selection,
    *,
    relu: bool = True,
) -> tuple[Float[Tensor, "bags d_in"], Float[Tensor, " entries"]]:
    """Reference of `sparse_step.sparse_step`: every selected pre-activation is computed again, for autograd."""
    shift = (b_pre - b_pre.detach()).view(-1, b_pre.shape[-1])  # 0, with the gradient of the pre-bias
    x = centred - shift.repeat_interleave(len(centred) // len(shift), dim=0)
    bag = torch.repeat_interleave(selection.starts.diff())
    values = (x[selection.samples[bag]] * W_enc[selection.latents]).sum(1) + b_enc[selection.latents]
    activations = values.relu() if relu else values
    decoded = x.new_zeros(len(selection.samples), x.shape[1])
    return decoded.index_add(0, bag, activations[:, None] * W_dec[selection.latents]), activations


def squared_error(
    centred: Float[Tensor, "batch d_in"], b_pre: Float[Tensor, " d_in"], parts: Float[Tensor, "batch levels d_in"]
) -> tuple[Float[Tensor, " levels"], Float[Tensor, "batch levels d_in"]]:
    """Reference of `squared_error.squared_error`."""
    residual = (centred + b_pre.detach())[:, None] - (parts.cumsum(1) + b_pre)
    return residual.square().sum((0, 2)), residual.detach()
