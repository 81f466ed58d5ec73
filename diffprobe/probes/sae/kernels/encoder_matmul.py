"""The product of the encoder in chunks of rows, with the library that is fastest on this processor.

Bounds the largest buffer of a step, [rows, latents]. In float32, torch multiplies with MKL, which uses narrower vectors
on processors that are not from Intel. oneDNN, which torch includes too, does not: equally exact, it took 0.45 of the
time on an AMD EPYC with AVX-512 (2,048 rows, d_in 1,280, 5,120 latents, 2 threads).
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
"""Largest [rows, latents] buffer by device type; small on a CPU, so that it stays in the cache."""

MIN_ONEDNN_WEIGHTS = 1 << 18
"""Smallest weight matrix (elements) sent to oneDNN; below it, the layout copy costs more than the product."""


def chunk_of(W_enc: Tensor, n_latents: int, chunk_bytes: int | None = None) -> tuple[torch.dtype, int]:
    """Return the precision of the encoder product, and the number of rows per chunk.

    Args:
        W_enc: the weights, which determine device and precision.
        n_latents: pre-activations per row.
        chunk_bytes: size of the largest buffer; None for `CHUNK_BYTES` of the device. A chunk has at least one row.
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
    """Yield pre-activations in chunks of rows. Chunks share one buffer: each is valid until the next is requested.

    Under autocast the product is computed in the lower precision; the weights are not changed.

    Args:
        chunk_bytes: see `chunk_of`.
    """
    device, n = centred.device.type, centred.shape[0]
    dtype, rows = chunk_of(W_enc, W_enc.shape[0], chunk_bytes)
    by_onednn = device == "cpu" and dtype == torch.float32 and W_enc.numel() >= MIN_ONEDNN_WEIGHTS and mkl_is_narrow()
    rows = max(1, rows // 2) if by_onednn else rows  # its output needs a second buffer of the same size
    rows = -(-n // -(-n // rows)) if n else 1  # equal chunks: a short last one would cost a full pass over W_enc
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
    """Return whether MKL computes float32 products on this processor with vectors narrower than it supports.

    Decided from the processor and not by a measurement, so that a machine returns the same numbers in every run.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return wide and cpu_vendor() not in (None, "GenuineIntel")


def cpu_vendor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """Return the vendor of this processor from `cpuinfo`; None on systems without it, and for processors but x86."""
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.is_file():
        return None
    for line in cpuinfo.read_text("utf-8").splitlines():
        if line.startswith("vendor_id"):
            return line.partition(":")[2].strip()
    return None
