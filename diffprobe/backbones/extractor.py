"""`DiffusionFeatures`: images in, features of a frozen diffusion model out. The public door of this package.

Owns the order of work: an image is encoded once for all timesteps and draws, a prompt once for all images; then
timesteps x draws x images run through the denoiser, in passes of bounded size that end at the deepest tap. What a
feature is depends on (seed, key, draw, timestep) alone, never on how images were batched.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from diffprobe.backbones.base import DTYPES, Backbone, LoadOptions
from diffprobe.backbones.capture import Capture
from diffprobe.backbones.images import as_batch
from diffprobe.backbones.plan import Plan, make_plan, plan_of
from diffprobe.backbones.pool import make_pool
from diffprobe.config.schema import BackboneConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import noise_for

_PLACES = 2**16
"""Latent places (rows x height x width) a pass of the denoiser: bounds its memory at any batch and number of draws."""
_ROWS = 256
"""Rows a pass at most."""


class DiffusionFeatures:
    """A frozen diffusion model that turns images into features. Made with `from_pretrained` or `from_config`.

    On purpose no `nn.Module`: no probe, DDP wrapper, optimiser or checkpoint may ever register it.

    Attributes:
        plan: what is read from which backbone.
        cells: taps in the order in which the backbone reaches them, then timesteps ascending.
        widths: cell name -> d_in (the channels, if the map is kept).
        resolution: image side in pixels.
        device: where the backbone is.
    """

    def __init__(self, plan: Plan, backbone: Backbone, *, rows: int | None = None, channels_last: bool = True) -> None:
        self.plan, self.cells, self.widths, self.resolution = plan, plan.cells, plan.widths, plan.resolution
        self.device = torch.device("cpu")
        self._backbone, self._shape = backbone, plan.outline.latent_shape
        self._rows = rows or max(1, min(_ROWS, _PLACES // (self._shape[1] * self._shape[2])))
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        denoiser: Any = backbone.denoiser  # the stubs of torch do not know memory_format here
        denoiser.to(memory_format=self._layout)
        paths = [tap.path for tap in plan.taps]
        self._capture = Capture(backbone.denoiser, paths, latent_size=self._shape[1:], read=make_pool(plan.pool))

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str,
        *,
        taps: Sequence[str],
        timesteps: Sequence[int],
        condition: str = "empty",
        prompt: str | None = None,
        pool: str = "mean",
        draws: int = 1,
        seed: int = 0,
        resolution: int | None = None,
        dtype: str = "float32",
        device: str | torch.device = "auto",
        random_weights: bool = False,
        random_seed: int = 0,
        revision: str | None = None,
        rows: int | None = None,
        channels_last: bool = True,
    ) -> Self:
        """Load a checkpoint, cut after the deepest tap. All settings are checked before any weights are read.

        Args:
            id_or_path: folder in diffusers format, hub id, `emoji-sd` (shipped) or `pixels` (the raw-pixel null).
            taps: module paths, globs or aliases: `mid_block`, `up_blocks.*`, `up_ft1`.
            timesteps: positions on the training grid, larger is noisier.
            condition: `empty`, `caption` (the sample's own) or `prompt`.
            prompt: the prompt of condition=prompt.
            pool: `mean`, `max` or `none`.
            draws: noise samples an image, averaged.
            seed: seed of the noise.
            resolution: image side in pixels; None takes the checkpoint's own.
            dtype: precision of the forward pass; features are float32 in any case.
            device: torch device; `auto` takes the accelerator if there is one.
            random_weights: draw the denoiser's weights afresh (the null); VAE and text encoder stay trained.
            random_seed: seed of those weights.
            revision: for hub ids.
            rows: images a pass of the denoiser; None bounds it by memory. Changes features by rounding only.
            channels_last: memory layout of the convolutions. Changes features by rounding only.
        Raises: UnknownTap, BadTimestep, WeightsMissing, WeightsMismatch, ConfigError.
        """
        plan = make_plan(
            id_or_path,
            taps=taps,
            timesteps=timesteps,
            condition=condition,
            prompt=prompt,
            pool=pool,
            draws=draws,
            seed=seed,
            resolution=resolution,
            dtype=dtype,
            random_weights=random_weights,
            random_seed=random_seed,
            revision=revision,
        )
        return cls.from_plan(plan, device=device, rows=rows, channels_last=channels_last)

    @classmethod
    def from_config(cls, backbone: BackboneConfig, features: FeaturesConfig) -> Self:
        """Load the backbone of a run. Raises: see `from_pretrained`."""
        return cls.from_plan(plan_of(backbone, features), device=backbone.device)

    @classmethod
    def from_plan(
        cls, plan: Plan, *, device: str | torch.device = "auto", rows: int | None = None, channels_last: bool = True
    ) -> Self:
        """Load what a plan needs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
        chosen = _device(device)
        options = LoadOptions(dtype=DTYPES[plan.dtype], random_seed=plan.random_seed)
        backbone = plan.family.load(plan.checkpoint, plan.outline, plan.needed, options)
        return cls(plan, backbone, rows=rows, channels_last=channels_last).to(chosen)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Say in JSON everything on the backbone's side that fixes the features. See `Plan.fingerprint`."""
        return self.plan.fingerprint

    def to(self, device: torch.device | str) -> Self:
        """Move the backbone."""
        self.device = torch.device(device)
        self._backbone.to(self.device)
        return self

    def __repr__(self) -> str:
        taps = ", ".join(tap.path for tap in self.plan.taps)
        return f"DiffusionFeatures({self.plan.checkpoint.name}: {taps}; t={list(self.plan.timesteps)}, {self.device})"

    @torch.no_grad()
    def __call__(
        self, images: Tensor | Sequence[Image.Image], *, keys: Sequence[str], captions: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the features of a batch, draws averaged.

        Args:
            images: PIL images, or a float tensor [batch, 3, resolution, resolution] in [0, 1].
            keys: the samples' keys; with seed and draw they fix the noise.
            captions: the samples' captions, for condition=caption.
        Returns: cell name -> float32 on the backbone's device, [batch, d_in]; for pool=none [batch, channels, height,
        width].
        Raises: ConfigError if the images are not as promised, or keys or captions do not go with them.
        """
        self._check_batch(len(images), keys, captions)
        batch = as_batch(images, self.resolution).to(self.device)
        with _exact(self.device, self.plan.dtype):
            clean = self._backbone.encode_images(batch)
            told, row_of = self._tell(captions, len(batch))
            sums = self._run(clean, self._noise(keys), told, row_of)
        at = {t: i for i, t in enumerate(self.plan.timesteps)}
        return {cell.name: sums[cell.tap][at[cell.timestep]] / self.plan.draws for cell in self.cells}

    def _tell(self, captions: Sequence[str] | None, n: int) -> tuple[Tensor | None, Tensor]:
        """Encode each distinct prompt of the batch; return the rows and which row each image takes."""
        prompts = list(captions or ()) if self.plan.condition == "caption" else [self.plan.prompt or ""] * n
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        rows = torch.tensor([distinct[prompt] for prompt in prompts], device=self.device)
        return self._backbone.encode_prompts(list(distinct)), rows

    def _noise(self, keys: Sequence[str]) -> Tensor:
        """Make the noise of all draws, [draws, batch, channels, height, width]."""
        plan = self.plan
        rows = [noise_for(plan.seed, key, draw, self._shape) for draw in range(plan.draws) for key in keys]
        return torch.stack(rows).reshape(plan.draws, len(keys), *self._shape).to(self.device)

    def _run(self, clean: Tensor, noise: Tensor, told: Tensor | None, row_of: Tensor) -> dict[str, Tensor]:
        """Sum the taps over draws, [timesteps, batch, ...] a tap. Rows go by draw, then timestep, then image."""
        n, n_grid = len(clean), len(clean) * len(self.plan.timesteps)
        grid = torch.tensor(self.plan.timesteps, device=self.device)
        sums: dict[str, Tensor] = {}
        for start in range(0, n_grid * self.plan.draws, self._rows):
            rows = torch.arange(start, min(start + self._rows, n_grid * self.plan.draws), device=self.device)
            image, t, draw = rows % n, grid[rows // n % len(grid)], rows // n_grid
            x_t = self.plan.outline.schedule.add(clean[image], noise[draw, image], t)
            x_t = x_t.to(DTYPES[self.plan.dtype]).contiguous(memory_format=self._layout)
            condition = None if told is None else told[row_of[image]]
            found = self._capture(partial(self._backbone.denoise, x_t, t, condition))
            for tap, values in found.items():
                if tap not in sums:
                    sums[tap] = torch.zeros(n_grid, *values.shape[1:], device=self.device)
                _add_rows(sums[tap], values, start)
        return {tap: total.unflatten(0, (len(grid), n)) for tap, total in sums.items()}

    def _check_batch(self, n: int, keys: Sequence[str], captions: Sequence[str] | None) -> None:
        if n == 0:
            raise ConfigError("a batch without images has no features.")
        if isinstance(keys, str) or len(keys) != n:
            raise ConfigError(f"{n} images need {n} keys; got {'one text' if isinstance(keys, str) else len(keys)}.")
        if self.plan.condition != "caption":
            return
        if captions is None or isinstance(captions, str) or len(captions) != n:
            given = "none" if captions is None else "one text" if isinstance(captions, str) else str(len(captions))
            raise ConfigError(f"condition=caption needs a caption for each of {n} images; got {given}.")
        without = [key for key, caption in zip(keys, captions, strict=True) if not isinstance(caption, str)]
        if without:
            first = ", ".join(without[:3])
            raise ConfigError(f"condition=caption, but {len(without)} of {n} samples have none.", f"first: {first}")


def _add_rows(total: Tensor, values: Tensor, start: int) -> None:
    """Add rows to `total`, whose rows come round once a draw; draw by draw, so that sums repeat on every device."""
    n_grid, done = len(total), 0
    while done < len(values):
        first = (start + done) % n_grid
        take = min(n_grid - first, len(values) - done)
        total[first : first + take] += values[done : done + take]
        done += take


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}, but torch sees no CUDA device.", fix="backbone.device=cpu, or auto")
    return device


@contextmanager
def _exact(device: torch.device, dtype: str) -> Iterator[None]:
    """Run in the precision asked for: no autocast of a surrounding step, no TF32 under the name of float32."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda" and dtype == "float32":
            stack.enter_context(torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False))
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, precision)
        yield
