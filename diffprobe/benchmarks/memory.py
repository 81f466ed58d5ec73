"""`diffprobe bench memory`: peak memory of an extraction with the denoiser held whole, in files or in 8 bits.

The model is a DiT or a transformer like FLUX, of random weights, written to a temporary folder. Each measurement is a
process of its own. Its peak is the kernel's (VmHWM of proc(5)): it includes pages of files that are mapped while
weights are read. Finished measurements can be kept in a file of lines, from which a call that was stopped continues.
"""

import hashlib
import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from diffprobe.backbones.base import DTYPES
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.network_size import network_bytes
from diffprobe.backbones.offload import held_bytes, offload_of
from diffprobe.backbones.quantized import INSTALL, packed_bytes
from diffprobe.backbones.testing.tiny_transformer import tiny_vae
from diffprobe.benchmarks.kept_lines import KeptLines
from diffprobe.benchmarks.machine import machine
from diffprobe.core.errors import ConfigError, RunFailed


@dataclass(frozen=True, kw_only=True)
class MemorySize:
    """A transformer to measure."""

    blocks: int
    """Blocks of a DiT, or of FLUX those with two streams."""
    heads: int
    width: int
    """Width of a head."""
    single: int = 0
    """Blocks of FLUX with one stream; 0 makes a DiT."""
    dtype: str = "float32"
    """Precision of the files and of the pass."""

    @property
    def tap(self) -> str:
        """The last block."""
        return (
            f"single_transformer_blocks.{self.single - 1}" if self.single else f"transformer_blocks.{self.blocks - 1}"
        )


SIZES = {
    "xl": MemorySize(blocks=28, heads=16, width=72),
    "wide": MemorySize(blocks=24, heads=24, width=64),
    "flux": MemorySize(blocks=5, heads=24, width=128, single=10, dtype="bfloat16"),
    "tiny": MemorySize(blocks=3, heads=2, width=16),
    "tiny-flux": MemorySize(blocks=1, heads=2, width=16, single=2, dtype="bfloat16"),
}
"""`xl` is DiT-XL/2; `flux` has blocks as wide as those of FLUX.1 (19 and 38 there), about a quarter of them."""
WAYS = (("none", "none"), ("blocks", "none"), ("none", "int8"), ("none", "fp8"))
"""Values of `backbone.offload` and `backbone.quantize` that are measured."""
WEIGHTS = ("trained", "random")
"""Weights that are measured: read from files, and drawn."""
_SIDE = 64
"""Side of the images in pixels; the VAE halves it, so a block has 256 tokens of the image, as DiT at 256 px."""
_SHARD = "1GB"
"""Most bytes of one weight file, as published models have several; a file is mapped while it is read."""


@dataclass(frozen=True, kw_only=True)
class MemoryRow:
    """One way to hold the weights."""

    weights: str
    """`trained` (read from files) or `random` (drawn)."""
    offload: str
    """Value of `backbone.offload`."""
    quantize: str
    """Value of `backbone.quantize`."""
    held_gb: float
    """Weights of the denoiser that stay in memory between passes."""
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
    dtype: str
    n_parameters: int
    """Parameters of the denoiser."""
    weights_gb: float
    """All weights of the denoiser in that precision."""
    block_gb: float
    """Weights of its largest block."""
    rows: tuple[MemoryRow, ...]

    def to_json(self) -> str:
        """Return all measurements as JSON."""
        return json.dumps(asdict(self), indent=2)


def bench_memory(
    size: str,
    *,
    weights: Sequence[str] = WEIGHTS,
    kept: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> MemoryReport:
    """Measure trained and random weights in each of WAYS; those in 8 bits only where torchao is installed.

    Args:
        size: one of SIZES.
        weights: those of WEIGHTS that are measured.
        kept: a file to which each finished measurement is added as a line, and in which it is looked for first; lines
            of other sizes and machines stay. None to keep nothing.
        progress: called with a line of text before each step.
    Raises: ConfigError for another size, and for other weights or none; RunFailed where features with offload differ
        from those without.
    """
    if size not in SIZES:
        raise ConfigError(f"bench memory: no size '{size}'.", f"allowed: {', '.join(SIZES)}")
    if not weights or set(weights) - set(WEIGHTS):
        raise ConfigError(f"bench memory: weights {', '.join(weights)}.", f"allowed: {', '.join(WEIGHTS)}")
    ways = WAYS if find_spec("torchao") is not None else WAYS[:2]
    if ways != WAYS:
        progress(f"weights in 8 bits are not measured: torchao is not installed ({INSTALL})")
    place = machine()
    lines = KeptLines(kept, {"size": size, "machine": place, **asdict(SIZES[size])})
    with tempfile.TemporaryDirectory(prefix="diffprobe-bench-") as scratch:
        progress(f"writing a model of size {size}")
        n_parameters, total, block = _alone(_write, scratch, size)
        rows = []
        for kind in dict.fromkeys(weights):
            for offload, quantize in ways:
                key = {"weights": kind, "offload": offload, "quantize": quantize}
                found = lines.find(key)
                if found is None:
                    progress(f"measuring {kind} weights, offload={offload}, quantize={quantize}")
                    found = asdict(_alone(_measure, scratch, size, kind, offload, quantize))
                    lines.add(key, found)
                rows.append(MemoryRow(**found))
    for a, b in zip(rows[:: len(ways)], rows[1 :: len(ways)], strict=True):
        if a.digest != b.digest:
            raise RunFailed(f"features of {a.weights} weights differ with offload.", "this is a bug in diffprobe")
    return MemoryReport(
        size=size, machine=place, dtype=SIZES[size].dtype, n_parameters=n_parameters, weights_gb=total / 1e9,
        block_gb=block / 1e9, rows=tuple(rows),
    )  # fmt: skip


def render(report: MemoryReport) -> str:
    """Return the table in Markdown."""
    head = ("weights", "offload", "quantize", "held, GB", "peak, GB", "above the start, GB", "most blocks", "open, s")
    lines = [f"| {' | '.join(head)} | one image, s |", f"|{'---|' * (len(head) + 1)}"]
    for row in report.rows:
        sizes = [f"{x:.2f}" for x in (row.held_gb, row.peak_gb, row.peak_gb - row.start_gb)]
        cells = [row.weights, row.offload, row.quantize, *sizes, str(row.most_blocks or "all")]
        lines.append(f"| {' | '.join([*cells, f'{row.load_s:.1f}', f'{row.read_s:.1f}'])} |")
    return "\n".join(lines)


def _alone(run: Callable[..., Any], *args: object) -> Any:
    """Run a function in a new process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(run, *args, torch.get_num_threads()).result()


def _write(folder: str, size: str, threads: int) -> tuple[int, int, int]:
    """Write a pipeline; return the parameters of its denoiser, and the bytes of it and of its largest block."""
    torch.set_num_threads(threads)
    chosen = SIZES[size]
    torch.manual_seed(0)
    with quiet_libraries():
        transformer = _write_flux(folder, chosen) if chosen.single else _write_dit(folder, chosen)
    blocks = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]
    n_parameters = sum(x.numel() for x in transformer.parameters())
    return n_parameters, network_bytes(transformer), max(map(network_bytes, blocks))


def _write_dit(folder: str, size: MemorySize) -> Any:
    import diffusers

    transformer: Any = diffusers.DiTTransformer2DModel(
        sample_size=_SIDE // 2, num_layers=size.blocks, num_attention_heads=size.heads,
        attention_head_dim=size.width, in_channels=4, out_channels=8, num_embeds_ada_norm=10,
    )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    vae = tiny_vae(_SIDE, latent_channels=4)
    pipeline: Any = diffusers.DiTPipeline(transformer=transformer, vae=vae, scheduler=scheduler)
    pipeline.save_pretrained(folder, max_shard_size=_SHARD)
    return transformer


def _write_flux(folder: str, size: MemorySize) -> Any:
    """Write a tiny pipeline of FLUX with a large transformer, which is made in its precision."""
    import diffusers

    from diffprobe.backbones.families import flux

    part = flux.tiny(folder) / "transformer"
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    shutil.rmtree(part)
    third = size.width // 8
    changes = {
        "num_layers": size.blocks, "num_single_layers": size.single, "num_attention_heads": size.heads,
        "attention_head_dim": size.width, "axes_dims_rope": (2 * third, 3 * third, 3 * third),
    }  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(DTYPES[size.dtype])
    try:
        transformer: Any = diffusers.FluxTransformer2DModel.from_config({**config, **changes})
    finally:
        torch.set_default_dtype(before)
    transformer.save_pretrained(part, max_shard_size=_SHARD)
    return transformer


def _measure(folder: str, size: str, weights: str, offload: str, quantize: str, threads: int) -> MemoryRow:
    torch.set_num_threads(threads)
    start, before = _resident("VmRSS"), time.perf_counter()
    features = DiffusionFeatures.from_pretrained(
        folder,
        taps=[SIZES[size].tap],
        timesteps=[100],
        resolution=_SIDE,
        device="cpu",
        dtype=SIZES[size].dtype,
        random_weights=weights == "random",
        offload=offload,
        quantize=quantize,
    )
    network = features._backbone.denoiser
    opened = time.perf_counter()
    (found,) = features(torch.rand(1, 3, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0)), keys=["a"]).values()
    done, blocks = time.perf_counter(), offload_of(network)
    return MemoryRow(
        weights=weights,
        offload=offload,
        quantize=quantize,
        held_gb=(packed_bytes if blocks is None else held_bytes)(network) / 1e9,
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
