"""The k largest entries of each row: `torch.topk`, and an equally exact and faster method for long rows on a CPU.

`torch.topk` compares pairs of value and index one by one. Here the candidates are reduced first: the k largest entries
of a row are in the k groups with the largest maxima. The candidates are then partitioned as integers that combine value
and position, for which numpy uses vector instructions.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

BITS = {
    torch.float32: (torch.int32, torch.int64, 32),
    torch.bfloat16: (torch.int16, torch.int32, 16),
    torch.float16: (torch.int16, torch.int32, 16),
}
"""Float type -> integer type of its width, integer type of twice the width, width in bits."""

GROUPS = (4, 16)
"""Smallest and largest group. Smaller groups leave too many candidates; larger ones cost more in the second stage."""


def row_topk(h: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Return the k largest entries of each row, largest first, and their positions, as `h.topk(k, dim=1)` does.

    The choice among equal entries depends on their row only, not on the other rows.
    """
    found = None
    if h.device.type == "cpu" and h.dtype in BITS and k > 0:
        least, largest = GROUPS
        group = min(
            largest, 2 ** round(np.log2(max(1, h.shape[1] / k)) / 2)
        )  # about the square root: both stages take equal time
        positions = 1 << min(BITS[h.dtype][2], 31)
        if group >= least and max(h.shape[1] // group, k * group + group) <= positions:
            found = _by_groups(h, k, group)
    if found is None:
        values, indices = h.topk(k, dim=1)
        return values, indices
    return found


def _by_groups(h: Tensor, k: int, group: int) -> tuple[Tensor, Tensor] | None:
    """Select in two stages; return None if an entry is NaN, which is left to torch.

    Entry j belongs to group j modulo the number of groups, so that the maxima are over contiguous memory. Entries after
    the last full group are always candidates.
    """
    n_groups = h.shape[1] // group
    full = n_groups * group
    maxima = h[:, :full].unflatten(1, (group, n_groups)).amax(1)
    if (maxima.sum() + h[:, full:].sum()).isnan():  # also for infinities of both signs: rare
        return None
    groups = _largest_positions(maxima, k)
    candidates = (groups[:, None, :] + torch.arange(0, full, n_groups)[:, None]).flatten(1)
    if full < h.shape[1]:
        rest = torch.arange(full, h.shape[1]).expand(h.shape[0], -1)
        candidates = torch.cat([candidates, rest], 1)
    indices = candidates.gather(1, _largest_positions(h.gather(1, candidates), k))
    return h.gather(1, indices), indices


def _largest_positions(values: Tensor, k: int) -> Tensor:
    """Return the positions of the k largest entries of each row, largest first."""
    same, double, width = BITS[values.dtype]
    bits = values.contiguous().view(same)
    ordered = bits ^ (
        (bits >> (width - 1)) & ((1 << (width - 1)) - 1)
    )  # the bits of negative floats are in reverse order
    keys = (ordered.to(double) << width) | torch.arange(values.shape[1], dtype=double)
    table, kth = keys.numpy(), values.shape[1] - k

    def select(rows: slice) -> None:
        table[rows].partition(kth, axis=1)
        table[rows, kth:].sort(axis=1)

    threads = torch.get_num_threads()
    edges = np.linspace(0, len(table), threads + 1).astype(int)
    list(_pool(threads, os.getpid()).map(select, map(slice, edges[:-1], edges[1:])))
    return (keys[:, kth:] & ((1 << width) - 1)).flip(1).long()


@functools.cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads for numpy, which releases the GIL while it sorts. A forked process needs a pool of its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="row_topk")
