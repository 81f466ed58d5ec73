"""The training step by dense products, for devices where these cost less than gathers: tensor cores in 16 bits.

Loss and gradients are those of `sparse_step`, from the same selection, up to rounding. The code is a [rows, latents]
matrix that is made again for backward, so that none outlives its chunk of rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from diffprobe.probes.sae.kernels.encoder_matmul import chunk_of


class Chosen(NamedTuple):
    """Selected latents of each sample, in parts that are decoded each by itself."""

    values: Float[Tensor, "batch width"]
    """Pre-activations."""
    latents: Int[Tensor, "batch width"]
    """Their latents; a latent is at most once in a part of a row."""
    part: Int[Tensor, "batch width"]
    """Part of each, -1 if it is left out."""
    spans: Sequence[range]
    """Latents that each part selects from: the product of a part is with these only."""


def dense_step(
    centred: Float[Tensor, "batch d_in"],
    b_pre: Float[Tensor, " d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    W_dec: Float[Tensor, "n_latents d_out"],
    chosen: Sequence[Chosen],
    *,
    relu: bool = True,
    chunk_bytes: int | None = None,
) -> Float[Tensor, "bags d_out"]:
    """Decode selections that were made from W_enc (x - b_pre) + b_enc, differentiably, by dense products.

    Under autocast all products, those of backward included, are computed in the lower precision. Their results, and the
    sums over parts and chunks, have the precision of the weights.

    Args:
        centred, b_pre, relu: see `sparse_step`; of one autoencoder.
        chosen: the selections. Row `sample * n_parts + part` of each is decoded, one selection after the other.
        chunk_bytes: see `chunk_of`.

    Returns: the weighted sums of decoder rows, without the pre-bias. Gradients of x, b_pre, W_enc, b_enc and W_dec.
    """
    dtype, rows = chunk_of(W_enc, W_enc.shape[0], chunk_bytes)
    decoded: Tensor = _DenseStep.apply(centred, b_pre, W_enc, b_enc, W_dec, tuple(chosen), relu, dtype, rows)  # type: ignore[no-untyped-call]
    return decoded


class _DenseStep(torch.autograd.Function):
    """Decoding, with the gradients of all weights from dense products of the code and of its gradient."""

    @staticmethod
    def forward(
        ctx: Any, centred: Tensor, b_pre: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, *settings: Any
    ) -> Tensor:
        chosen, relu, ctx.dtype, ctx.rows = settings
        ctx.relu, ctx.spans = relu, [one.spans for one in chosen]
        values = [one.values.relu() if relu else one.values for one in chosen]
        ctx.save_for_backward(
            centred, W_enc, W_dec, *values, *(one.latents for one in chosen), *(one.part for one in chosen)
        )
        n, found = len(centred), []
        with torch.autocast(centred.device.type, enabled=False):
            weight = W_dec.to(ctx.dtype)
            for activations, one in zip(values, chosen, strict=True):
                out = W_dec.new_empty(n, len(one.spans), W_dec.shape[1])
                for part, span in enumerate(one.spans):
                    for rows in _chunks(n, ctx.rows):
                        code = _code(activations[rows], one.latents[rows], one.part[rows] == part, span, ctx.dtype)
                        out[rows, part] = (code @ weight[span.start : span.stop]).to(out.dtype)
                found.append(out.flatten(0, 1))
        return torch.cat(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        centred, W_enc, W_dec, *saved = ctx.saved_tensors
        n, count, dtype = len(centred), len(ctx.spans), ctx.dtype
        sizes = [n * len(spans) for spans in ctx.spans]
        parts = [one.unflatten(0, (n, len(spans))) for one, spans in zip(g.split(sizes), ctx.spans, strict=True)]
        d_enc, d_dec, d_bias = torch.zeros_like(W_enc), torch.zeros_like(W_dec), W_enc.new_zeros(len(W_enc))
        d_x = torch.empty_like(centred) if ctx.needs_input_grad[0] else None
        with torch.autocast(centred.device.type, enabled=False):
            weight, inputs, everything = W_dec.to(dtype), centred.to(dtype), range(len(W_enc))
            encoder = W_enc.to(dtype) if d_x is not None else None
            for rows in _chunks(n, ctx.rows):
                d_code = inputs.new_zeros(len(inputs[rows]), len(W_enc))
                for i, spans in enumerate(ctx.spans):
                    values, latents, part = (saved[i + j * count][rows] for j in range(3))
                    d_values = torch.zeros_like(values)
                    for number, span in enumerate(spans):
                        own, inside = part == number, slice(span.start, span.stop)
                        g_part = parts[i][rows, number].to(dtype)
                        code = _code(values, latents, own, span, dtype)
                        d_dec[inside] += code.T @ g_part
                        d_own = (g_part @ weight[inside].T).gather(1, _places(latents, own, span))
                        d_values = torch.where(own, d_own.to(d_values.dtype), d_values)
                    kept = (part >= 0) & (values > 0) if ctx.relu else part >= 0
                    _add(d_code, d_values, latents, kept, everything)
                d_enc += d_code.T @ inputs[rows]
                d_bias += d_code.sum(0, dtype=d_bias.dtype)
                if d_x is not None and encoder is not None:
                    d_x[rows] = (d_code @ encoder).to(d_x.dtype)
            d_pre = -(d_bias @ W_enc) if ctx.needs_input_grad[1] else None
        return d_x, d_pre, d_enc, d_bias, d_dec, None, None, None, None


def _chunks(n: int, rows: int) -> Iterator[slice]:
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _places(latents: Tensor, own: Tensor, span: range) -> Tensor:
    """Return the column of each latent in a matrix of a span; 0 for those that are not in it."""
    return torch.where(own, latents - span.start, 0)


def _code(values: Tensor, latents: Tensor, own: Tensor, span: range, dtype: torch.dtype) -> Tensor:
    """Return the [rows, span] matrix of the values that are `own`."""
    return _add(values.new_zeros(len(values), len(span), dtype=dtype), values, latents, own, span)


def _add(code: Tensor, values: Tensor, latents: Tensor, own: Tensor, span: range) -> Tensor:
    """Add to a [rows, span] matrix the values that are `own`; what is left out adds 0 to column 0."""
    return code.scatter_add_(1, _places(latents, own, span), torch.where(own, values, 0).to(code.dtype))
