"""The sparse training step: dense encoder product, selection in chunks, sparse decoding and gradients.

`scan` multiplies with the encoder and keeps candidates, one chunk of rows at a time, so that no [batch, latents] tensor
outlives its chunk. `sparse_step` decodes the selection and differentiates it; for backward it saves only the centred
features, the weights, and the selected values and indices.

Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix on kernels; here with torch operators
whose order of summation does not depend on timing.
"""

import functools
import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffprobe.probes.sae.kernels.encoder_matmul import encoder_chunks
from diffprobe.probes.sae.kernels.row_topk import row_topk


class Top(NamedTuple):
    """The largest pre-activations of each row, largest first, before any ReLU."""

    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]


class Selection(NamedTuple):
    """Selected latents in bags. A bag is decoded to one vector; a sample may have several bags."""

    values: Float[Tensor, " entries"]
    """Activation of each entry."""
    latents: Int[Tensor, " entries"]
    """Latent of each entry."""
    starts: Int[Tensor, " bags_and_one"]
    """Position of the first entry of each bag; the last element is the number of entries."""
    samples: Int[Tensor, " bags"]
    """Sample of each bag."""


@torch.no_grad()
def scan(
    centred: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    *,
    k: int,
    among: Int[Tensor, " some"] | None = None,
    k_among: int = 0,
    chunk_bytes: int | None = None,
) -> tuple[Top, Top | None]:
    """Encode once and keep the k largest latents of each row, and the k_among largest of the latents in `among`.

    Returns: both selections in the precision of the weights; the second is None without `among` or k_among.
    """
    n, dtype = centred.shape[0], W_enc.dtype
    first = Top(centred.new_empty(n, k, dtype=dtype), torch.empty(n, k, dtype=torch.int64, device=centred.device))
    second = None
    if among is not None and k_among > 0:
        second = Top(first.values.new_empty(n, k_among), first.indices.new_empty(n, k_among))
    for part, h in encoder_chunks(centred, W_enc, b_enc, chunk_bytes=chunk_bytes):
        values, indices = row_topk(h, k)
        first.values[part], first.indices[part] = values.to(dtype), indices
        if second is not None and among is not None:
            values, indices = row_topk(h.index_select(1, among), k_among)
            second.values[part], second.indices[part] = values.to(dtype), among[indices]
    return first, second


@torch.no_grad()
def scan_above(
    centred: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    threshold: Float[Tensor, ""] | Float[Tensor, " n_latents"],
    *,
    chunk_bytes: int | None = None,
) -> Top:
    """Encode and keep what is above a threshold >= 0. As wide as the longest row; the others are padded with zeros."""
    parts = []
    for _, h in encoder_chunks(centred, W_enc, b_enc, chunk_bytes=chunk_bytes):
        above = h > threshold
        width = max(1, int(above.sum(1).max()))
        values, indices = row_topk(h.masked_fill_(~above, 0), width)
        parts.append(Top(values.to(W_enc.dtype), indices))
    width = max((part.values.shape[1] for part in parts), default=1)
    if not parts:
        return Top(centred.new_zeros(0, 1), torch.zeros(0, 1, dtype=torch.int64, device=centred.device))
    padded = [[F.pad(t, (0, width - t.shape[1])) for t in part] for part in parts]
    return Top(torch.cat([values for values, _ in padded]), torch.cat([indices for _, indices in padded]))


def rows_to_bags(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], part: Int[Tensor, "batch k"], n_parts: int
) -> Selection:
    """Put the entries of each row into `n_parts` bags; entries of part -1 are dropped.

    Bag `sample * n_parts + p` contains the entries of part p.
    """
    n, width = values.shape
    if n_parts > 1:
        order = torch.where(part < 0, n_parts, part).argsort(dim=1, stable=True)
        values, indices, part = (t.gather(1, order) for t in (values, indices, part))
    sizes = torch.stack([(part == p).sum(1) for p in range(n_parts)], 1).flatten()
    starts = F.pad(sizes.cumsum(0), (1, 0))
    samples = torch.arange(n, device=values.device).repeat_interleave(n_parts)
    kept = part >= 0
    return Selection(values[kept], indices[kept], starts, samples)


def join(selections: list[Selection]) -> Selection:
    """Concatenate the bags of several selections."""
    if len(selections) == 1:
        return selections[0]
    starts, end = [selections[0].starts[:1]], 0
    for selection in selections:
        starts.append(selection.starts[1:] + end)
        end += selection.latents.numel()
    return Selection(
        torch.cat([s.values for s in selections]),
        torch.cat([s.latents for s in selections]),
        torch.cat(starts),
        torch.cat([s.samples for s in selections]),
    )


def sum_bags(
    table: Float[Tensor, "rows d"],
    rows: Int[Tensor, " entries"],
    starts: Int[Tensor, " bags_and_one"],
    weights: Float[Tensor, " entries"],
) -> Float[Tensor, "bags d"]:
    """Sum weighted rows of a table within each bag."""
    if rows.numel() == 0:
        return table.new_zeros(starts.numel() - 1, table.shape[1])
    return F.embedding_bag(
        rows, table, starts, per_sample_weights=weights.to(table.dtype), mode="sum", include_last_offset=True
    )


def sparse_step(
    centred: Float[Tensor, "batch d_in"],
    b_pre: Float[Tensor, " d_in"] | Float[Tensor, "members d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    W_dec: Float[Tensor, "n_latents d_out"],
    selection: Selection,
    *,
    relu: bool = True,
) -> tuple[Float[Tensor, "bags d_out"], Float[Tensor, " entries"]]:
    """Decode a selection that was made from W_enc (x - b_pre) + b_enc, differentiably.

    Args:
        centred: x - b_pre.detach(); x gets its gradient through it.
        b_pre: receives the gradient of its part in the encoder. One row per member if several autoencoders of one shape
            are concatenated, with equally many samples and latents each; a sample selects latents of its own member.
        selection: with the pre-activations as values.
        relu: whether negative values are set to 0.

    Returns: the weighted sum of decoder rows of each bag, without the pre-bias; and the activations. Gradients of x,
        b_pre, W_enc, b_enc and W_dec through both equal those of the dense computation.
    """
    values = selection.values.relu() if relu else selection.values
    places = selection.latents, selection.starts, selection.samples
    decoded, activations = _SparseStep.apply(centred, b_pre, W_enc, b_enc, W_dec, values, *places, relu)  # type: ignore[no-untyped-call]
    return decoded, activations


class _SparseStep(torch.autograd.Function):
    """Decoding, with the gradients of all weights from one sort of the selected latents."""

    @staticmethod
    def forward(
        ctx: Any, centred: Tensor, b_pre: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, *rest: Any
    ) -> Any:
        values, latents, starts, samples, ctx.relu = rest
        ctx.members = len(b_pre) if b_pre.ndim == 2 else None
        ctx.save_for_backward(centred, W_enc, W_dec, values, latents, starts, samples)
        return sum_bags(W_dec, latents, starts, values), values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, g_values: Tensor) -> Any:
        centred, W_enc, W_dec, values, latents, starts, samples = ctx.saved_tensors
        n_latents, g = W_dec.shape[0], g.contiguous()
        bags = torch.repeat_interleave(torch.arange(g.shape[0], device=g.device), starts.diff())
        found, order = latents.sort(stable=True)
        ends = torch.searchsorted(found, torch.arange(n_latents + 1, device=g.device))
        bags, values = bags[order], values[order]
        # sorted by latent: each decoder row is read once, and random access is to the smaller g
        d_values = entry_products(W_dec, g, bags, ends) + g_values[order]
        if ctx.relu:
            d_values = torch.where(values > 0, d_values, 0)
        d_dec = sum_bags(g, bags, ends, values)
        d_enc = sum_bags(centred, samples[bags], ends, d_values)
        d_bias = sum_bags(d_values[:, None], torch.arange(len(order), device=g.device), ends, torch.ones_like(d_values))
        d_bias = d_bias.squeeze(1)
        d_pre = None
        if ctx.needs_input_grad[1] and ctx.members is None:
            d_pre = -(d_bias @ W_enc)
        elif ctx.needs_input_grad[1]:
            d_pre = -torch.bmm(d_bias.view(ctx.members, 1, -1), W_enc.view(ctx.members, -1, W_enc.shape[1])).squeeze(1)
        d_x = None
        if ctx.needs_input_grad[0]:
            as_selected = torch.empty_like(d_values).index_copy_(0, order, d_values)
            d_x = torch.zeros_like(centred).index_add_(0, samples, sum_bags(W_enc, latents, starts, as_selected))
        return d_x, d_pre, d_enc, d_bias, d_dec, None, None, None, None, None


GATHER_BYTES = 256 << 20
"""Largest block of gathered rows in `entry_products` on other devices than a CPU."""


def entry_products(
    left: Float[Tensor, "bags d"],
    right: Float[Tensor, "rows d"],
    rows: Int[Tensor, " entries"],
    starts: Int[Tensor, " bags_and_one"],
) -> Float[Tensor, " entries"]:
    """Return left[bag] . right[row] for each entry of each bag; a bag contains a row at most once.

    Without gathering on a CPU; elsewhere in gathered blocks of `GATHER_BYTES`.
    """
    if rows.numel() == 0:
        return left.new_zeros(0)
    if left.device.type == "cpu":
        _silence_csr_warning()
        pattern = torch.sparse_csr_tensor(
            starts, rows, left.new_zeros(rows.numel()), size=(left.shape[0], right.shape[0]), check_invariants=False
        )
        return torch.sparse.sampled_addmm(pattern, left, right.T, beta=0.0).values()
    bags = torch.repeat_interleave(torch.arange(left.shape[0], device=left.device), starts.diff())
    step = max(1, GATHER_BYTES // (left.shape[1] * left.element_size()))
    blocks = zip(bags.split(step), rows.split(step), strict=True)
    return torch.cat([torch.linalg.vecdot(left[bag], right[row]) for bag, row in blocks])


@functools.cache
def _silence_csr_warning() -> None:
    """Trigger and suppress the one-time warning of torch that CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), size=(1, 1))
