"""`diffprobe bench quantize`: the error of features whose backbone holds its weights in 8 bits, on images.

Feature maps are compared with those of the same backbone in float32: all values of a cell together (relative error),
and image by image (cosine). Passes in bfloat16 are measured too, to show what another precision costs.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.quantized import packed_bytes
from diffprobe.benchmarks.machine import machine
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError
from diffprobe.features.live import LiveFeatures

WAYS = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "int8": ("float32", "int8"),
    "fp8": ("float32", "fp8"),
}
"""Name of a way to hold the weights -> `backbone.dtype` and `backbone.quantize`. The first is the reference."""


@dataclass(frozen=True, kw_only=True)
class QuantizedRow:
    """One cell read with weights that are held in one way."""

    way: str
    """A key of WAYS."""
    cell: str
    """Tap and timestep."""
    error: float
    """Norm of the difference from float32, divided by the norm of the features in float32."""
    cosine: float
    """Cosine of each image's map with that in float32, averaged over images."""
    lowest: float
    """The lowest one of them."""


@dataclass(frozen=True, kw_only=True)
class QuantizedReport:
    """The measurements, and what they were made on."""

    machine: str
    backbone: str
    data: str
    n_images: int
    megabytes: dict[str, float]
    """Way -> 1e6 bytes of the weights of the denoiser that are held, up to the deepest tap."""
    rows: tuple[QuantizedRow, ...]

    def to_json(self) -> str:
        """Return all measurements as JSON."""
        return json.dumps(asdict(self), indent=2)


def compare(one: Float[Tensor, "images ..."], other: Float[Tensor, "images ..."]) -> tuple[float, float, float]:
    """Return the relative error of `other`, and the mean and the lowest cosine over images.

    >>> import torch
    >>> compare(torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, -4.0]]))
    (1.6, -0.28, -0.28)
    """
    a, b = one.flatten(1).double(), other.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    error = float((a - b).norm() / a.norm())
    return round(error, 9), round(float(cosine.mean()), 9), round(float(cosine.min()), 9)


def bench_quantized(
    backbone: str,
    data: str,
    *,
    taps: Sequence[str],
    timesteps: Sequence[int],
    n_images: int,
    split: str = "val",
    device: str = "auto",
    ways: Sequence[str] = tuple(WAYS),
    progress: Callable[[str], None] = lambda line: None,
) -> QuantizedReport:
    """Read the same cells of the same images with each way to hold the weights.

    Args:
        backbone: folder or name of a backbone.
        data: folder or name of a shard set.
        taps: what is read; as maps.
        timesteps: where it is read.
        n_images: the first images of the split.
        split: split of the images.
        device: torch device.
        ways: keys of WAYS; the reference is always measured.
        progress: called with a line of text before each step.
    Raises: ConfigError for an unknown way, or one without its library, and for less than one image.
    """
    unknown = [way for way in ways if way not in WAYS]
    if unknown or n_images < 1:
        what = f"no way '{unknown[0]}'" if unknown else f"{n_images} images"
        raise ConfigError(f"bench quantize: {what}.", f"allowed: {', '.join(WAYS)}; at least 1 image")
    first, *others = WAYS
    features = FeaturesConfig(source="live", taps=tuple(taps), timesteps=tuple(timesteps), pool="none")
    kept: dict[str, Tensor] = {}
    rows: list[QuantizedRow] = []
    megabytes: dict[str, float] = {}
    for way in (first, *(other for other in others if other in ways)):
        progress(f"reading {n_images} images, {way}")
        dtype, how = WAYS[way]
        model = BackboneConfig(path=backbone, device=device, dtype=dtype, quantize=how)  # type: ignore[arg-type]
        source = LiveFeatures(model, DataConfig(path=data, limit=n_images, batch_size=min(n_images, 16)), features)
        found = source.table(split).features
        megabytes[way] = denoiser_bytes(source.request.extractor) / 1e6
        if way == first:
            kept = found
            continue
        for cell, maps in found.items():
            error, mean, lowest = compare(kept[cell], maps)
            rows.append(
                QuantizedRow(way=way, cell=cell.partition(":")[0], error=error, cosine=mean, lowest=lowest)
            )  # fmt: skip
    n = len(next(iter(kept.values())))
    return QuantizedReport(
        machine=machine(), backbone=backbone, data=data, n_images=n, megabytes=megabytes, rows=tuple(rows)
    )


def denoiser_bytes(features: DiffusionFeatures) -> int:
    """Return the bytes of the denoiser's weights as they are held."""
    return packed_bytes(features._backbone.denoiser)


def render(report: QuantizedReport) -> str:
    """Return the table in Markdown."""
    lines = [
        "| weights | denoiser, MB | tap and timestep | relative error | mean cosine | lowest cosine |",
        "|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        numbers = f"{row.error:.4f} | {row.cosine:.5f} | {row.lowest:.5f}"
        lines.append(f"| {row.way} | {report.megabytes[row.way]:.2f} | `{row.cell}` | {numbers} |")
    return "\n".join(lines)
