"""`diffprobe bench extraction`: time of feature extraction, compared with a baseline and with a floor.

The model has the shape of a published one and random weights (`extraction_models.py`). The baseline encodes image and
prompt and runs the whole denoiser for every tap and timestep, in the same precision (no TF32 for float32). The floor is
computed, not run: the operations of one image encoding and of the denoiser up to the deepest tap, at the speed that the
unmodified networks reach in the same run. Ours is also measured with other kernels: `ways` of the report.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from diffprobe.backbones.base import DTYPES, Condition
from diffprobe.backbones.device import choose_device, exact
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.latent_backbone import TextBackbone
from diffprobe.backbones.taps import list_taps
from diffprobe.benchmarks.extraction_models import SIZES, TIMESTEPS, ModelShape, pooled, write_model
from diffprobe.benchmarks.machine import clock_of, count_flop, machine, matmul_gflops, seconds
from diffprobe.config.validators import a_device, at_least
from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.rng import noise_for

ONE_TIMESTEP = (25,)
"""The main setting of Revelio, with one tap."""
ONEDNN, COMPILED = "backbone.cpu_kernels=onednn", "backbone.compile=true"
"""Ways to run ours, by their setting."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Settings of one measurement."""

    size: str = "sd15"
    """One of `SIZES`."""
    resolution: int = 256
    """Side length of the images in pixels."""
    images: int = 2
    """Images per call; times are per image."""
    repeats: int = 3
    """Repetitions, alternating between ours, its ways, the baseline and the networks; the fastest of each counts."""
    dtype: str = "float32"
    """Precision of the forward pass."""
    device: str = "auto"
    """Torch device."""
    compile: bool = False
    """Measure ours with compiled blocks too; the first call then takes minutes."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """Ours with another setting of speed, in the same run."""

    name: str
    """The setting."""
    ours_s: float | None
    """Seconds per image; None if it cannot be run here."""
    first_s: float | None
    """Wall seconds of the first call, with what is compiled or prepared for it."""
    largest_difference: float | None
    """Largest difference from ours as it is, relative to the largest feature."""
    missing: str | None = None
    """Why it cannot be run here."""


@dataclass(frozen=True, kw_only=True)
class ExtractionRow:
    """One scenario; seconds are per image."""

    name: str
    taps: tuple[str, ...]
    timesteps: tuple[int, ...]
    naive_s: float
    ours_s: float
    floor_s: float
    largest_difference: float
    """Largest difference between baseline features and ours, relative to the largest feature."""
    ways: tuple[Way, ...] = ()

    @property
    def over_floor(self) -> float:
        """Ours as a multiple of the floor."""
        return self.ours_s / self.floor_s

    @property
    def speed_up(self) -> float:
        """The baseline as a multiple of ours."""
        return self.naive_s / self.ours_s


@dataclass(frozen=True, kw_only=True)
class ExtractionReport:
    """The measurements, and the machine they were made on."""

    setting: Setting
    machine: str
    clock: str
    """`processor` or `wall`: what the seconds are of."""
    parameters: int
    """Parameters of the denoiser."""
    vae_gflop: float
    denoiser_gflop: float
    denoiser_gflops: float
    """Speed of the whole denoiser, in billions of operations per second."""
    matmul_gflops: float
    """Speed of one large matrix product in the same precision and unit: an upper bound for the machine."""
    rows: tuple[ExtractionRow, ...]

    def to_json(self) -> str:
        """Return all measurements as JSON."""
        return json.dumps(asdict(self), indent=2)


def read_report(text: str) -> ExtractionReport:
    """Read what `ExtractionReport.to_json` wrote."""
    found = json.loads(text)
    rows = []
    for row in found.pop("rows"):
        ways = tuple(Way(**way) for way in row.pop("ways"))
        taps, timesteps = tuple(row.pop("taps")), tuple(row.pop("timesteps"))
        rows.append(ExtractionRow(ways=ways, taps=taps, timesteps=timesteps, **row))
    return ExtractionReport(setting=Setting(**found.pop("setting")), rows=tuple(rows), **found)


def render(report: ExtractionReport) -> str:
    """Return the conditions and the tables in Markdown."""
    setting = report.setting
    lines = [
        f"{report.machine}; {setting.size} at {setting.resolution} px, {setting.dtype}, {setting.images} images/call, "
        f"{report.clock} time",
        f"per image: VAE encoder {report.vae_gflop:,.0f} GFLOP, denoiser {report.denoiser_gflop:,.0f} GFLOP "
        f"({report.parameters / 1e6:,.0f} M parameters); whole denoiser {report.denoiser_gflops:,.0f} GFLOP/s, "
        f"{report.denoiser_gflops / report.matmul_gflops:.0%} of a matrix product",
        "",
        "| features | baseline, s/image | ours, s/image | floor, s/image | ours / floor | baseline / ours |",
        "|---|---|---|---|---|---|",
    ]
    for row in report.rows:
        lines.append(
            f"| {row.name} | {row.naive_s:.3g} | {row.ours_s:.3g} | {row.floor_s:.3g} "
            f"| {row.over_floor:.2f} | {row.speed_up:.1f} |"
        )
    if any(row.ways for row in report.rows):
        lines += ["", "| ours with | features | s/image | x as it is | first call, s | largest difference |"]
        lines += ["|---|---|---|---|---|---|"]
    for row in report.rows:
        lines += [f"| `{way.name}` | {row.name} | {_way_cells(way, row.ours_s)} |" for way in row.ways]
    difference = max(row.largest_difference for row in report.rows)
    return "\n".join([*lines, "", f"largest difference from the baseline: {difference:.1e} of the largest feature"])


def _way_cells(way: Way, as_it_is: float) -> str:
    if way.ours_s is None or way.first_s is None or way.largest_difference is None:
        return f"not run: {way.missing} | | |"
    return f"{way.ours_s:.3g} | {way.ours_s / as_it_is:.2f} | {way.first_s:.1f} | {way.largest_difference:.1e}"


def bench_extraction(setting: Setting, *, progress: Callable[[str], None] = lambda line: None) -> ExtractionReport:
    """Measure both scenarios.

    Args:
        setting: what to measure.
        progress: called with a line of text before each step.
    Raises: ConfigError for an invalid size, resolution, count or device.
    """
    if setting.size not in SIZES or setting.images < 1 or setting.repeats < 1:
        raise ConfigError(f"bench extraction: invalid {setting}.", f"sizes: {', '.join(SIZES)}; counts: at least 1")
    at_least(1, resolution=setting.resolution)
    if setting.resolution % 16:
        raise ConfigError(f"bench extraction: resolution {setting.resolution} is not a multiple of 16.")
    a_device(setting.device)
    keep_freed_memory()
    shape = SIZES[setting.size]
    with tempfile.TemporaryDirectory(prefix="diffprobe-bench-") as scratch, torch.no_grad():
        progress(f"writing a model of size {setting.size} with random weights")
        folder = write_model(Path(scratch), shape, setting.resolution)
        whole = _open(folder, setting, (shape.end,), (0,))
        baseline = Baseline(whole, setting, shape)
        shares = {tap.path: tap.flop_share or 0.0 for tap in list_taps(str(folder), resolution=setting.resolution)}
        rows, speeds = [], []
        for name, taps, timesteps in (
            ("one tap, one timestep", (shape.one,), ONE_TIMESTEP),
            (f"{len(shape.grid)} taps x {len(TIMESTEPS)} timesteps", shape.grid, TIMESTEPS),
        ):
            progress(f"measuring {name}")
            row, costs = _row(name, folder, setting, taps, timesteps, baseline, max(shares[tap] for tap in taps))
            rows.append(row)
            speeds.append(costs)
        vae_flop, denoiser_flop = baseline.flop()
    return ExtractionReport(
        setting=setting,
        machine=machine(),
        clock=clock_of(whole.device)[0],
        parameters=sum(p.numel() for p in whole._backbone.denoiser.parameters()),
        vae_gflop=vae_flop / 1e9,
        denoiser_gflop=denoiser_flop / 1e9,
        denoiser_gflops=denoiser_flop / min(costs.denoiser_s for costs in speeds) / 1e9,
        matmul_gflops=_matmul_gflops(whole.device, setting.dtype),
        rows=tuple(rows),
    )


def _matmul_gflops(device: torch.device, dtype: str) -> float:
    with exact(device, dtype):
        return matmul_gflops(device, DTYPES[dtype], side=8192 if device.type == "cuda" else 2048)


def _open(
    folder: Path, setting: Setting, taps: Sequence[str], timesteps: Sequence[int], way: str | None = None
) -> DiffusionFeatures:
    return DiffusionFeatures.from_pretrained(
        str(folder),
        taps=taps,
        timesteps=timesteps,
        resolution=setting.resolution,
        dtype=setting.dtype,
        device=setting.device,
        random_weights=True,
        compile=way == COMPILED,
        cpu_kernels="onednn" if way == ONEDNN else "mkl",
    )


def _ways(setting: Setting) -> dict[str, str | None]:
    """Return the ways that are measured, and why one of them cannot be run here."""
    device, found = choose_device(setting.device), dict[str, str | None]()
    if device.type == "cpu" and setting.dtype == "float32":
        found[ONEDNN] = None if torch.backends.mkldnn.is_available() else "torch was built without oneDNN"
    if setting.compile:
        compiler = device.type != "cpu" or any(map(shutil.which, ("g++", "clang++")))
        found[COMPILED] = None if compiler else "no C++ compiler (g++) was found"
    return found


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds per image of the two large networks, unmodified."""

    vae_s: float
    denoiser_s: float


def _row(
    name: str,
    folder: Path,
    setting: Setting,
    taps: Sequence[str],
    timesteps: Sequence[int],
    baseline: "Baseline",
    share: float,
) -> tuple[ExtractionRow, Costs]:
    """Measure one scenario; `share` is the part of the denoiser's operations until the deepest tap."""
    ours = _open(folder, setting, taps, timesteps)
    absent, first, others = _ways(setting), dict[str, float](), dict[str, DiffusionFeatures]()
    found = {"": ours(baseline.images, keys=baseline.keys)}  # warm-up: caches, kernels, memory pages
    for way, reason in absent.items():
        if reason is None:
            start = time.perf_counter()
            try:
                others[way] = _open(folder, setting, taps, timesteps, way)
                found[way] = others[way](baseline.images, keys=baseline.keys)
            except DiffprobeError as error:  # of a compiler, or a model without layers that a way is for
                absent[way] = error.what
                others.pop(way, None)
            first[way] = time.perf_counter() - start
    times: dict[str, float] = {}

    def note(key: str, run: Callable[[], object]) -> None:
        times[key] = min(times.get(key, float("inf")), seconds(run, ours.device, baseline.clock))

    expected: dict[tuple[str, int], Tensor] = {}
    for _ in range(setting.repeats):
        for way, extractor in {"": ours, **others}.items():
            note(way, lambda extractor=extractor: extractor(baseline.images, keys=baseline.keys))  # type: ignore[misc]
        note("naive", lambda: expected.update(baseline.grid(taps, timesteps)))
        with exact(ours.device, setting.dtype):
            note("encode", baseline.encode)
            note("denoise", baseline.denoise)
    n = len(baseline.images)
    costs = Costs(vae_s=times["encode"] / n, denoiser_s=times["denoise"] / n)
    row = ExtractionRow(
        name=name,
        taps=tuple(taps),
        timesteps=tuple(timesteps),
        naive_s=times["naive"] / n,
        ours_s=times[""] / n,
        floor_s=costs.vae_s + len(timesteps) * share * costs.denoiser_s,
        largest_difference=_difference(found[""], {c.name: expected[c.tap, c.timestep] for c in ours.cells}),
        ways=tuple(
            Way(name=way, ours_s=None, first_s=None, largest_difference=None, missing=absent[way])
            if way not in others
            else Way(
                name=way,
                ours_s=times[way] / n,
                first_s=first[way],
                largest_difference=_difference(found[way], found[""]),
            )
            for way in absent
        ),
    )
    return row, costs


def _difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Return the largest difference of two sets of features, relative to the largest feature."""
    scale = max(float(value.abs().max()) for value in expected.values())
    return max(float((found[cell] - value).abs().max()) for cell, value in expected.items()) / scale


class Baseline:
    """The usual extraction: each tap and timestep encodes image and prompt and runs the whole denoiser.

    Args:
        whole: an extractor with a complete denoiser; its networks are called directly.
        setting: what to measure.
        shape: of the model.
    """

    def __init__(self, whole: DiffusionFeatures, setting: Setting, shape: ModelShape) -> None:
        self._backbone, self._shape = whole._backbone, shape
        self._plan, self._device = whole.plan, whole.device
        self.clock = clock_of(whole.device)[1]
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(setting.images, 3, setting.resolution, setting.resolution, generator=generator)
        self.images = self.images.to(whole.device)
        self.keys = [f"image {i}" for i in range(setting.images)]
        self._name, self._dtype = setting.dtype, DTYPES[setting.dtype]
        with exact(self._device, self._name):
            self._clean, self._condition = self.encode(), self._embed()

    def grid(self, taps: Sequence[str], timesteps: Sequence[int]) -> dict[tuple[str, int], Tensor]:
        """Return the spatial means of some taps at some timesteps, one after the other."""
        with exact(self._device, self._name):
            return {(tap, t): self._features(tap, t) for tap in taps for t in timesteps}

    def _features(self, tap: str, t: int) -> Tensor:
        """Encode images and prompt, run the whole denoiser, and return the spatial mean of one tap."""
        clean, condition, found = self.encode(), self._embed(), list[Tensor]()
        handle = self._backbone.denoiser.get_submodule(tap).register_forward_hook(
            lambda module, args, output: found.append(pooled(self._shape, output))
        )
        try:
            self._backbone.denoise(*self._noised(clean, t), condition)
        finally:
            handle.remove()
        return found[0]

    def _embed(self) -> Condition:
        """Encode the empty prompt or the null class, without the cache of prompts."""
        whole = self._backbone
        rows = whole._prompts._encode([""]) if isinstance(whole, TextBackbone) else whole.encode_conditions([None])
        return {name: x.expand(len(self.images), *x.shape[1:]) for name, x in rows.items()}

    def encode(self) -> Tensor:
        """Encode the images to latents."""
        return self._backbone.encode_images(self.images)

    def denoise(self) -> None:
        """Run the whole denoiser once."""
        self._backbone.denoise(*self._noised(self._clean, 25), self._condition)

    def flop(self) -> tuple[int, int]:
        """Count the operations per image of encoding and of the whole denoiser."""
        with exact(self._device, self._name):
            return count_flop(self.encode) // len(self.images), count_flop(self.denoise) // len(self.images)

    def _noised(self, clean: Tensor, t: int) -> tuple[Tensor, Tensor]:
        noise = torch.stack([noise_for(self._plan.seed, key, 0, tuple(clean.shape[1:])) for key in self.keys])
        timesteps = torch.full((len(clean),), t, device=clean.device)
        return self._plan.schedule.add(clean, noise.to(clean), timesteps).to(self._dtype), timesteps
