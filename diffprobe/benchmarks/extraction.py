"""`diffprobe bench extraction`: time of feature extraction, compared with a baseline and with a floor.

The model has the shape of Stable Diffusion 1.5 and random weights. The baseline encodes image and prompt and runs the
whole denoiser for every tap and timestep, in the same precision (no TF32 for float32). The floor is computed, not run:
the operations of one image encoding and of the denoiser up to the deepest tap, at the speed that the unmodified
networks reach in the same run.
"""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.backbones.base import DTYPES
from diffprobe.backbones.device import exact
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.taps import list_taps
from diffprobe.backbones.text_encoders import load_clip_text
from diffprobe.benchmarks.machine import count_flop, machine, matmul_gflops, seconds, wait
from diffprobe.config.validators import a_device, at_least
from diffprobe.core.errors import ConfigError
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.rng import noise_for

ONE = ("up_blocks.1",), (25,)
"""One tap at one timestep: the main setting of Revelio."""
GRID = ("mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"), (0, 25, 100, 200, 500)
"""The layers and timesteps of Revelio."""

SIZES: dict[str, dict[str, Any]] = {
    "sd15": {"unet": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "layers": 2, "text": (768, 12, 12)},
    "small": {"unet": (64, 128, 128, 128), "vae": (64, 64, 64, 64), "layers": 1, "text": (32, 2, 4)},
}
"""Channels per level, layers per block, and width, layers and heads of the text encoder."""


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
    """Repetitions, alternating between ours and the baseline; the fastest of each counts."""
    dtype: str = "float32"
    """Precision of the forward pass."""
    device: str = "auto"
    """Torch device."""


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
    a_device(setting.device)
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="diffprobe-bench-") as scratch, torch.no_grad():
        progress(f"writing a model of size {setting.size} with random weights")
        folder = write_checkpoint(Path(scratch), SIZES[setting.size])
        whole = _open(folder, setting, ("conv_out",), (0,))
        baseline = Baseline(whole, setting, folder)
        progress("measuring the unmodified networks")
        costs = baseline.costs()
        shares = {tap.path: tap.flop_share or 0.0 for tap in list_taps(str(folder), resolution=setting.resolution)}
        rows = []
        for name, (taps, timesteps) in (("one tap, one timestep", ONE), ("4 taps x 5 timesteps", GRID)):
            progress(f"measuring {name}")
            deepest = max(shares[tap] for tap in taps)
            floor = costs.vae_s + len(timesteps) * deepest * costs.denoiser_s
            rows.append(_row(name, _open(folder, setting, taps, timesteps), baseline, floor))
    return ExtractionReport(
        setting=setting,
        machine=machine(),
        vae_gflop=costs.vae_flop / 1e9,
        denoiser_gflop=costs.denoiser_flop / 1e9,
        denoiser_gflops=costs.denoiser_flop / costs.denoiser_s / 1e9,
        matmul_gflops=_matmul_gflops(whole.device, setting.dtype),
        rows=tuple(rows),
    )


def _matmul_gflops(device: torch.device, dtype: str) -> float:
    with exact(device, dtype):
        return matmul_gflops(device, DTYPES[dtype], side=8192 if device.type == "cuda" else 2048)


def _open(folder: Path, setting: Setting, taps: Sequence[str], timesteps: Sequence[int]) -> DiffusionFeatures:
    return DiffusionFeatures.from_pretrained(
        str(folder),
        taps=taps,
        timesteps=timesteps,
        resolution=setting.resolution,
        dtype=setting.dtype,
        device=setting.device,
        random_weights=True,
    )


def _row(name: str, ours: DiffusionFeatures, baseline: "Baseline", floor: float) -> ExtractionRow:
    taps, timesteps = [tap.path for tap in ours.plan.taps], ours.plan.timesteps
    n, times = len(baseline.images), {"naive": float("inf"), "ours": float("inf")}
    found = ours(baseline.images, keys=baseline.keys)  # warm-up: caches, kernels, memory pages
    for _ in range(baseline.repeats):
        times["ours"] = min(times["ours"], seconds(lambda: ours(baseline.images, keys=baseline.keys), ours.device))
        start = time.perf_counter()
        expected = {(tap, t): baseline.features(tap, t) for tap in taps for t in timesteps}
        wait(ours.device)
        times["naive"] = min(times["naive"], time.perf_counter() - start)
    pairs = [(found[cell.name], expected[cell.tap, cell.timestep]) for cell in ours.cells]
    scale = max(float(theirs.abs().max()) for _, theirs in pairs)
    return ExtractionRow(
        name=name,
        taps=tuple(taps),
        timesteps=tuple(timesteps),
        naive_s=times["naive"] / n,
        ours_s=times["ours"] / n,
        floor_s=floor,
        largest_difference=max(float((mine - theirs).abs().max()) for mine, theirs in pairs) / scale,
    )


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Operations and seconds per image."""

    vae_flop: int
    vae_s: float
    denoiser_flop: int
    denoiser_s: float


class Baseline:
    """The usual extraction: each tap and timestep encodes image and prompt and runs the whole denoiser.

    Args:
        whole: an extractor with a complete denoiser; its networks are called directly.
        setting: what to measure.
        folder: the checkpoint.
    """

    def __init__(self, whole: DiffusionFeatures, setting: Setting, folder: Path) -> None:
        self._backbone = whole._backbone
        self._plan, self.repeats, self._device = whole.plan, setting.repeats, whole.device
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(setting.images, 3, setting.resolution, setting.resolution, generator=generator)
        self.keys = [f"image {i}" for i in range(setting.images)]
        self._name, self._dtype = setting.dtype, DTYPES[setting.dtype]
        text = load_clip_text(folder, dtype=self._dtype)
        text.encoder.to(whole.device)
        self._embed = lambda: {"encoder_hidden_states": text([""])[0].expand(setting.images, -1, -1)}

    def features(self, tap: str, t: int) -> Tensor:
        """Encode images and prompt, run the whole denoiser, and return the spatial mean of one tap."""
        found: list[Tensor] = []
        with exact(self._device, self._name):
            clean, condition = self._backbone.encode_images(self.images.to(self._device)), self._embed()
            return self._read(tap, clean, t, condition, found)

    def _read(self, tap: str, clean: Tensor, t: int, condition: dict[str, Tensor], found: list[Tensor]) -> Tensor:
        handle = self._backbone.denoiser.get_submodule(tap).register_forward_hook(
            lambda module, args, output: found.append(output if isinstance(output, Tensor) else output[0])
        )
        try:
            self._backbone.denoise(*self._noised(clean, t), condition)
        finally:
            handle.remove()
        return found[0].float().mean((2, 3))

    def costs(self) -> Costs:
        """Count and time the operations of the two large networks, unmodified."""
        images = self.images.to(self._device)
        clean, condition = self._backbone.encode_images(images), self._embed()
        encode = lambda: self._backbone.encode_images(images)  # noqa: E731
        denoise = lambda: self._backbone.denoise(*self._noised(clean, 25), condition)  # noqa: E731
        n = len(images)
        times = {"encode": float("inf"), "denoise": float("inf")}
        with exact(self._device, self._name):
            for _ in range(self.repeats):
                times["encode"] = min(times["encode"], seconds(encode, self._device))
                times["denoise"] = min(times["denoise"], seconds(denoise, self._device))
        return Costs(
            vae_flop=count_flop(encode) // n,
            vae_s=times["encode"] / n,
            denoiser_flop=count_flop(denoise) // n,
            denoiser_s=times["denoise"] / n,
        )

    def _noised(self, clean: Tensor, t: int) -> tuple[Tensor, Tensor]:
        noise = torch.stack([noise_for(self._plan.seed, key, 0, tuple(clean.shape[1:])) for key in self.keys])
        timesteps = torch.full((len(clean),), t, device=clean.device)
        return self._plan.schedule.add(clean, noise.to(clean), timesteps).to(self._dtype), timesteps


def write_checkpoint(folder: Path, size: dict[str, Any]) -> Path:
    """Write a pipeline folder. The U-Net has a config only; its random weights are drawn when it is opened."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    from diffprobe.generative.tokenizer import train_tokenizer

    width, layers, heads = size["text"]
    tokenizer = train_tokenizer(["a photo"], vocab_size=600, max_tokens=77)
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            block_out_channels=size["vae"],
            layers_per_block=size["layers"],
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            sample_size=512,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
        with torch.device("meta"):
            unet: Any = diffusers.UNet2DConditionModel(
                block_out_channels=size["unet"], layers_per_block=size["layers"], cross_attention_dim=width
            )
        scheduler: Any = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        parts: dict[str, Any] = {"vae": vae, "text_encoder": text, "tokenizer": tokenizer, "scheduler": scheduler}
        for name, part in parts.items():
            part.save_pretrained(folder / name)
        unet.save_config(folder / "unet")
    index = {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
