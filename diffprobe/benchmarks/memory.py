"""`diffprobe bench memory`: peak memory of an extraction with the denoiser held whole and with its blocks in files.

The model is a DiT with random weights in float32, written to a temporary folder. Each measurement is a process of its
own. Its peak is the kernel's (VmHWM of proc(5)): it includes pages of files that are mapped while weights are read.
"""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.network_size import network_bytes
from diffprobe.backbones.offload import offload_of
from diffprobe.backbones.testing.tiny_transformer import tiny_vae
from diffprobe.benchmarks.machine import machine
from diffprobe.core.errors import ConfigError, RunFailed

SIZES = {"xl": (28, 16, 72), "wide": (24, 24, 64), "tiny": (3, 2, 16)}
"""Blocks, heads, and width of a head: `xl` is DiT-XL/2."""
_SIDE = 64
"""Side of the images in pixels; the VAE halves it, so a block has 256 tokens, as DiT at 256 px."""


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """One way to hold the weights."""

    weights: str
    """`trained` (read from files) or `random` (drawn)."""
    offload: str
    """Value of `backbone.offload`."""
    start_gb: float
    """Memory of the process before the model is opened, in 1e9 bytes."""
    peak_gb: float
    """Most memory of the process."""
    load_s: float
    """Seconds to open the model."""
    read_s: float
    """Seconds of one extraction of one image at one timestep."""
    digest: str
    """sha256 of the features."""
    most_blocks: int | None
    """Most blocks in memory at one time, with offload."""


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """The measurements, and the machine they were made on."""

    size: str
    machine: str
    weights_gb: float
    """All weights of the denoiser."""
    block_gb: float
    """Weights of one block."""
    rows: tuple[MemoryRow, ...]

    def to_json(self) -> str:
        """Return all measurements as JSON."""
        return json.dumps(asdict(self), indent=2)


def bench_memory(size: str, *, progress: Callable[[str], None] = lambda line: None) -> MemoryReport:
    """Measure trained and random weights, held whole and in blocks.

    Args:
        size: one of SIZES.
        progress: called with a line of text before each step.
    Raises: ConfigError for another size; RunFailed where features of both ways differ.
    """
    if size not in SIZES:
        raise ConfigError(f"bench memory: no size '{size}'.", f"allowed: {', '.join(SIZES)}")
    with tempfile.TemporaryDirectory(prefix="diffprobe-bench-") as scratch:
        progress(f"writing a model of size {size}")
        total, block = _alone(_write, scratch, size)
        rows = []
        for weights in ("trained", "random"):
            for offload in ("none", "blocks"):
                progress(f"measuring {weights} weights, offload={offload}")
                rows.append(_alone(_measure, scratch, size, weights, offload))
    for a, b in zip(rows[::2], rows[1::2], strict=True):
        if a.digest != b.digest:
            raise RunFailed(f"features of {a.weights} weights differ with offload.", "this is a bug in diffprobe")
    return MemoryReport(size=size, machine=machine(), weights_gb=total / 1e9, block_gb=block / 1e9, rows=tuple(rows))


def render(report: MemoryReport) -> str:
    """Return the table in Markdown."""
    lines = [
        "| weights | `backbone.offload` | peak, GB | above the start, GB | open, s | one image, s |",
        "|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        cells = (row.peak_gb, row.peak_gb - row.start_gb)
        numbers = [*(f"{x:.2f}" for x in cells), f"{row.load_s:.1f}", f"{row.read_s:.1f}"]
        lines.append(f"| {row.weights} | {row.offload} | {' | '.join(numbers)} |")
    return "\n".join(lines)


def _alone(run: Callable[..., Any], *args: object) -> Any:
    """Run a function in a new process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *args, torch.get_num_threads()).result()


def _write(folder: str, size: str, threads: int) -> tuple[int, int]:
    """Write a pipeline; return the bytes of its denoiser and of one block."""
    import diffusers

    torch.set_num_threads(threads)
    layers, heads, width = SIZES[size]
    torch.manual_seed(0)
    with quiet_libraries():
        transformer: Any = diffusers.DiTTransformer2DModel(
            sample_size=_SIDE // 2, num_layers=layers, num_attention_heads=heads, attention_head_dim=width,
            in_channels=4, out_channels=8, num_embeds_ada_norm=10,
        )  # fmt: skip
        scheduler = diffusers.DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False)
        vae = tiny_vae(_SIDE, latent_channels=4)
        pipeline: Any = diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)
        pipeline.save_pretrained(folder)
    return network_bytes(transformer), network_bytes(transformer.transformer_blocks[0])


def _measure(folder: str, size: str, weights: str, offload: str, threads: int) -> MemoryRow:
    torch.set_num_threads(threads)
    start, before = _resident("VmRSS"), time.perf_counter()
    features = DiffusionFeatures.from_pretrained(
        folder,
        taps=[f"transformer_blocks.{SIZES[size][0] - 1}"],
        timesteps=[100],
        device="cpu",
        random_weights=weights == "random",
        offload=offload,
    )
    opened = time.perf_counter()
    (found,) = features(torch.rand(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0)), keys=["a"]).values()
    done, blocks = time.perf_counter(), offload_of(features._backbone.denoiser)
    return MemoryRow(
        weights=weights,
        offload=offload,
        start_gb=start / 1e9,
        peak_gb=_resident("VmHWM") / 1e9,
        load_s=opened - before,
        read_s=done - opened,
        digest=hashlib.sha256(found.numpy().tobytes()).hexdigest(),
        most_blocks=None if blocks is None else blocks.most_held,
    )


def _resident(name: str) -> int:
    """Return a number of bytes of this process, by its name in /proc/self/status. Raises: RunFailed without that."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError as error:
        raise RunFailed("bench memory reads /proc/self/status, which this system has not.") from error
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    if found is None:
        raise RunFailed(f"/proc/self/status has no {name}.")
    return int(found[1]) * 1024
