"""The k largest of each row: torch's selection, and a faster one, as exact, for long rows on a CPU.

`torch.topk` goes through pairs of value and index one at a time. Here a row is cut down first: of its groups, only the
k with the largest maxima can hold one of its k largest entries. What is left is partitioned as integers that hold value
and place together, for which numpy has vector instructions.
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
"""Integers as wide as the float, integers of twice that, and the width in bits."""

GROUPS = (4, 16)
"""Least and largest group. Below, too much of a row is left; above, the second stage takes what the first one saves."""


def row_topk(h: Float[Tensor, "rows n"], k: int) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """Return the k largest entries of each row, largest first, and where they are, as `h.topk(k, dim=1)` does.

    Which of several equal entries are taken depends on their row alone, not on the rows beside it.
    """
    found = None
    if h.device.type == "cpu" and h.dtype in BITS and k > 0:
        least, largest = GROUPS
        group = min(largest, 2 ** round(np.log2(max(1, h.shape[1] / k)) / 2))  # about the root: equal stages
        places = 1 << min(BITS[h.dtype][2], 31)
        if group >= least and max(h.shape[1] // group, k * group + group) <= places:
            found = _by_groups(h, k, group)
    if found is None:
        values, indices = h.topk(k, dim=1)
        return values, indices
    return found


def _by_groups(h: Tensor, k: int, group: int) -> tuple[Tensor, Tensor] | None:
    """Select in two stages; None where something is not a number, whose rank is left to torch.

    Entry j belongs to group j modulo their number, so that maxima are taken of whole stretches of memory. Entries
    behind the last full group are candidates without further ado.
    """
    n_groups = h.shape[1] // group
    full = n_groups * group
    maxima = h[:, :full].unflatten(1, (group, n_groups)).amax(1)
    if (maxima.sum() + h[:, full:].sum()).isnan():  # infinities of both signs too: rarer than worth a second look
        return None
    groups = _largest_places(maxima, k)
    candidates = (groups[:, None, :] + torch.arange(0, full, n_groups)[:, None]).flatten(1)
    if full < h.shape[1]:
        rest = torch.arange(full, h.shape[1]).expand(h.shape[0], -1)
        candidates = torch.cat([candidates, rest], 1)
    indices = candidates.gather(1, _largest_places(h.gather(1, candidates), k))
    return h.gather(1, indices), indices


def _largest_places(values: Tensor, k: int) -> Tensor:
    """Return where the k largest entries of each row are, largest first."""
    same, double, width = BITS[values.dtype]
    bits = values.contiguous().view(same)
    ordered = bits ^ ((bits >> (width - 1)) & ((1 << (width - 1)) - 1))  # bits of negative floats rise as they fall
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
    """Threads for numpy, which lets go of the interpreter while it sorts. A forked process has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="row_topk")
