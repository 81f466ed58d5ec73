"""One training step of several TopK autoencoders of one shape: products and selections with a leading member axis.

`step_together` computes what `KSAE.step` computes, with one more axis: the same loss, the same AuxK, and gradients of
the members' own parameters, so optimiser, checkpoints and files do not change. The order of summation within a product
may differ, so results agree with single steps to rounding. Each step copies the weights once, and their gradients once.
It is meant for many small autoencoders on a GPU, where kernel launches dominate; it was not measured on a GPU.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.features.batch import FeatureBatch
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.kernels.encoder_matmul import chunk_of
from diffprobe.probes.sae.kernels.sparse_step import Selection, Top, join, rows_to_bags, sparse_step
from diffprobe.probes.sae.topk import TopK
from diffprobe.probes.sae.types import SINGLE_PROCESS, Code, Collective, StepOutput
from diffprobe.training.sae import SparseAutoencoderModule


def step_members(members: Sequence[SparseAutoencoderModule], batch: FeatureBatch) -> list[StepOutput]:
    """Step all members on a batch: together where `groups` allows it, the others one by one."""
    xs = [member.training_rows(batch) for member in members]
    dead, collective = [member.dead_latents.mask for member in members], members[0].collective
    outputs: dict[int, StepOutput] = {}
    for group in groups([member.sae for member in members], xs):
        if len(group) == 1:
            (i,) = group
            outputs[i] = members[i].sae.step(xs[i], dead=dead[i], collective=collective)
            continue
        saes = [cast(TopK, members[i].sae) for i in group]
        found = step_together(saes, [xs[i] for i in group], dead=[dead[i] for i in group], collective=collective)
        outputs |= zip(group, found, strict=True)
    return [outputs[i] for i in range(len(members))]


def groups(saes: Sequence[KSAE], xs: Sequence[Float[Tensor, "_ _"]]) -> list[list[int]]:
    """Return the positions of the autoencoders that can be stepped together: TopK of equal d_in, n_latents and rows.

    k, seed, cell and AuxK may differ. Multi-TopK, other variants and those with step=dense form groups of one.
    """
    found: dict[object, list[int]] = {}
    for i, (sae, x) in enumerate(zip(saes, xs, strict=True)):
        is_plain = type(sae) is TopK and len(sae.level_weights) == 1 and sae.config.step == "sparse"
        found.setdefault((sae.n_latents, *x.shape) if is_plain else i, []).append(i)
    return list(found.values())


def step_together(
    saes: Sequence[TopK],
    xs: Sequence[Float[Tensor, "rows d_in"]],
    *,
    dead: Sequence[Bool[Tensor, " n_latents"]],
    collective: Collective = SINGLE_PROCESS,
) -> list[StepOutput]:
    """Return what `saes[i].step(xs[i], dead=dead[i], collective=collective)` returns, to rounding.

    Args:
        saes: one group of `groups`.
        xs: rows of each autoencoder, in the unit of the features.
        dead: latents of each autoencoder that AuxK revives.
    """
    x = torch.stack([sae.scaled(rows) for sae, rows in zip(saes, xs, strict=True)])
    b_pre, W_enc = torch.stack([sae.b_pre for sae in saes]), torch.stack([sae.W_enc for sae in saes])
    b_enc, W_dec = torch.stack([sae.b_enc for sae in saes]), torch.stack([sae.W_dec for sae in saes])
    n_members, n, d_in = x.shape
    weights = x.new_tensor([sae.config.aux_weight for sae in saes])
    is_dead = torch.stack(list(dead)) & (weights > 0)[:, None]
    k = torch.tensor([sae.k for sae in saes], device=x.device)
    k_aux = is_dead.sum(1).minimum(torch.tensor([sae.k_aux for sae in saes], device=x.device))
    centred = x - b_pre.detach()[:, None]
    top, revived = _scan(centred.detach(), W_enc, b_enc, k=max(sae.k for sae in saes), is_dead=is_dead, k_aux=k_aux)
    bags = [_bags(top, k, W_enc.shape[1])]
    if revived is not None:
        bags.append(_bags(revived, k_aux, W_enc.shape[1]))
    flat = centred.flatten(0, 1), b_pre, W_enc.flatten(0, 1), b_enc.flatten(), W_dec.flatten(0, 1)
    decoded, _ = sparse_step(*flat, join(bags))
    residual = x - b_pre[:, None] - decoded[: n_members * n].view_as(x)
    reconstruction = residual.square().sum((1, 2)) / max(n, 1) / d_in
    aux = torch.zeros_like(reconstruction)
    if revived is not None:
        target, guess = residual.detach(), decoded[n_members * n :].view_as(x)
        energy = collective.mean(target.square().sum((1, 2)) / max(n, 1)).clamp(min=1e-12)
        share = (target - guess).square().sum((1, 2)) / max(n, 1) / energy
        aux = torch.where(k_aux > 0, share, 0)  # 0 for a member without dead latents
    losses = weights * aux + reconstruction
    codes = [Code(top.values[i, :, : sae.k].relu(), top.indices[i, :, : sae.k]) for i, sae in enumerate(saes)]
    return [StepOutput(losses[i], reconstruction[i], aux[i], code, {}) for i, code in enumerate(codes)]


@torch.no_grad()
def _scan(
    centred: Float[Tensor, "members rows d_in"],
    W_enc: Float[Tensor, "members n_latents d_in"],
    b_enc: Float[Tensor, "members n_latents"],
    *,
    k: int,
    is_dead: Bool[Tensor, "members n_latents"],
    k_aux: Int[Tensor, " members"],
) -> tuple[Top, Top | None]:
    """Encode once; keep the k largest latents of each row, and the max(k_aux) largest of the dead ones."""
    width = int(k_aux.max())
    kept, revived = [], []
    for h in _encoder_chunks(centred, W_enc, b_enc):
        kept.append(h.topk(k, dim=2))
        if width:
            revived.append(h.masked_fill_(~is_dead[:, None], -torch.inf).topk(width, dim=2))
    tops = [
        Top(
            torch.cat([values for values, _ in found], 1).to(W_enc.dtype), torch.cat([places for _, places in found], 1)
        )
        for found in (kept, revived)
        if found
    ]
    return tops[0], tops[1] if width else None


def _encoder_chunks(centred: Tensor, W_enc: Tensor, b_enc: Tensor) -> Iterator[Float[Tensor, "members part n_latents"]]:
    """Yield pre-activations of all members, some rows at a time: `encoder_chunks` with a member axis."""
    dtype, rows = chunk_of(W_enc, b_enc.numel())
    with torch.autocast(centred.device.type, enabled=False):
        centred, weight, bias = centred.to(dtype), W_enc.to(dtype).transpose(1, 2), b_enc.to(dtype)[:, None]
        for part in centred.split(rows, dim=1):
            yield torch.baddbmm(bias, part, weight)


def _bags(top: Top, k: Int[Tensor, " members"], n_latents: int) -> Selection:
    """Put the first k[member] entries of each row into a bag; latent i of member m becomes m * n_latents + i."""
    n_members, n, width = top.values.shape
    first = n_latents * torch.arange(n_members, device=k.device)[:, None, None]
    part = (torch.arange(width, device=k.device) < k[:, None]).long() - 1
    part = part[:, None].expand(n_members, n, width)
    return rows_to_bags(top.values.flatten(0, 1), (top.indices + first).flatten(0, 1), part.flatten(0, 1), 1)
