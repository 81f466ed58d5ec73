"""The encoder's product, some rows at a time, by whichever of torch's libraries is fast on this processor.

Owns the largest of all buffers, [rows, latents], and how large it may be. In float32 torch multiplies with MKL, which
keeps processors of other makers than its own to narrower vectors; oneDNN, which comes with torch too, does not. It is
as exact, and on an AMD EPYC with AVX-512 it took 0.45 of the time (2,048 rows, 1,280 wide, 5,120 latents, 2 threads).
"""

import functools
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}
"""Largest [rows, latents] buffer by device type; small on a CPU, so that its pages stay warm."""

LEAST_WEIGHTS = 1 << 18
"""Products with smaller weights are over before oneDNN has their copies."""


def chunk_of(W_enc: Tensor, n_latents: int, chunk_bytes: int | None = None) -> tuple[torch.dtype, int]:
    """Return the precision in which an encoder's product is computed, and how many rows of it a chunk may hold.

    Args:
        W_enc: the weights, wherever they are.
        n_latents: pre-activations a row.
        chunk_bytes: largest buffer; None for `CHUNK_BYTES` of the device. One row is always possible.
    """
    device = W_enc.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else W_enc.dtype
    budget = chunk_bytes or CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"])
    return dtype, max(1, budget // (n_latents * dtype.itemsize))


def encoder_chunks(
    centred: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    *,
    chunk_bytes: int | None = None,
) -> Iterator[tuple[slice, Float[Tensor, "rows n_latents"]]]:
    """Yield the pre-activations of some rows at a time, in one buffer: use a chunk before asking for the next.

    Under autocast the product is computed in the lower precision; the weights themselves stay as they are.

    Args:
        chunk_bytes: see `chunk_of`.
    """
    device, n = centred.device.type, centred.shape[0]
    dtype, rows = chunk_of(W_enc, W_enc.shape[0], chunk_bytes)
    by_onednn = device == "cpu" and dtype == torch.float32 and W_enc.numel() >= LEAST_WEIGHTS and mkl_is_narrow()
    rows = max(1, rows // 2) if by_onednn else rows  # it writes a layout of its own first, as large again
    rows = -(-n // -(-n // rows)) if n else 1  # chunks of one size: a short last one would waste its pass over W_enc
    with torch.no_grad(), torch.autocast(device, enabled=False):
        centred, weight, bias = centred.to(dtype), W_enc.detach().to(dtype), b_enc.detach().to(dtype)
        parts = [slice(start, min(start + rows, n)) for start in range(0, n, rows)]
        if by_onednn:
            weight, bias = weight.to_mkldnn(), bias.to_mkldnn()
            for part in parts:
                yield part, F.linear(centred[part].to_mkldnn(), weight, bias).to_dense()
            return
        buffer = centred.new_empty(rows, W_enc.shape[0])
        for part in parts:
            yield part, torch.addmm(bias, centred[part], weight.T, out=buffer[: part.stop - part.start])


@functools.cache
def mkl_is_narrow() -> bool:
    """Tell whether torch's float32 products go through MKL on a processor that it keeps to narrower vectors.

    Judged by the processor, not by a measurement, so that a machine gives the same numbers in every run.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and maker() not in (None, "GenuineIntel")


def maker(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return who made this processor, as Linux says; None elsewhere, and for other than x86 processors."""
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.is_file():
        return None
    for line in cpuinfo.read_text("utf-8").splitlines():
        if line.startswith("vendor_id"):
            return line.partition(":")[2].strip()
    return None
