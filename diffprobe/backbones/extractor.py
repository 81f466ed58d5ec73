"""`DiffusionFeatures`: images in, features of a frozen diffusion model out. The public door of this package.

Owns the order of work: an image is encoded once for all timesteps and draws, a prompt once for all images; timesteps x draws x
images run through the denoiser in chunks of bounded size, which ends at the deepest tap. What a feature is depends on (seed, key,
draw, timestep) alone, never on how images were batched.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from diffprobe.backbones.base import DTYPES, LoadOptions
from diffprobe.backbones.capture import Capture
from diffprobe.backbones.cell import POOLS, Cell, check_choice
from diffprobe.backbones.families import family_of
from diffprobe.backbones.images import as_batch
from diffprobe.backbones.pool import make_pool
from diffprobe.backbones.taps import resolve, tap_infos, trace_outline
from diffprobe.backbones.weights import locate
from diffprobe.config.schema import BackboneConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import noise_for

_PLACES = 2**16
"""Latent places (rows x height x width) a pass of the denoiser: bounds its memory at any batch, timestep and draw count."""
_ROWS = 256
"""Rows a pass at most."""
_RULES = 1
"""Raised when the way from an image to a feature changes in a way that changes numbers; part of the fingerprint."""


class DiffusionFeatures:
    """A frozen diffusion model that turns images into features.

    On purpose no `nn.Module`: no probe, DDP wrapper, optimiser or checkpoint may ever register it. Make one with
    `from_pretrained` or `from_config`.

    Attributes:
        name: the checkpoint as it was asked for.
        cells: what is read, taps in the order in which the backbone reaches them, then timesteps ascending.
        widths: cell name -> d_in (channels, if the map is kept).
        resolution: image side in pixels.
        device: where the backbone is.
    """

    def __init__(self) -> None:
        raise ConfigError(
            "DiffusionFeatures is not made directly.",
            fix="DiffusionFeatures.from_pretrained(PATH, taps=..., timesteps=...)",
        )

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
            rows: images a pass of the denoiser; None bounds it by memory. Has no influence on the features.
            channels_last: memory layout of the convolutions. Has no influence on the features.
        Raises: UnknownTap, BadTimestep, WeightsMissing, WeightsMismatch, ConfigError.
        """
        _check(taps, timesteps, condition, prompt, pool, draws, dtype)
        checkpoint = locate(str(id_or_path), revision=revision)
        family = family_of(checkpoint)
        outline = family.outline(checkpoint, resolution)
        outline.schedule.check(timesteps, checkpoint.name)
        check_choice(f"condition of backbone '{checkpoint.name}':", condition, outline.conditions)
        traced = trace_outline(outline)
        infos = {tap.path: tap for tap in tap_infos(outline, traced)}

        self = object.__new__(cls)
        self.name = checkpoint.name
        self._taps = resolve(taps, list(infos.values()), outline)
        self._timesteps = tuple(sorted(set(timesteps)))
        self._condition, self._prompt, self._draws, self._seed = condition, prompt, draws, seed
        self._pool, self._dtype = pool, dtype
        self._random_seed = random_seed if random_weights else None
        self._family, self._schedule = outline.family, outline.schedule
        self.resolution, self._latent_shape = outline.resolution, outline.latent_shape
        self.cells = tuple(Cell(tap, t, condition, pool) for tap in self._taps for t in self._timesteps)
        self.widths = {cell.name: infos[cell.tap].channels for cell in self.cells}
        self._rows = rows or max(1, min(_ROWS, _PLACES // (outline.latent_shape[1] * outline.latent_shape[2])))
        options = LoadOptions(dtype=DTYPES[dtype], random_seed=self._random_seed)
        self._backbone = family.load(checkpoint, outline, traced.needed(self._taps), options)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._backbone.denoiser.to(memory_format=self._layout)
        self._capture = Capture(
            self._backbone.denoiser, self._taps, latent_size=outline.latent_shape[1:], read=make_pool(pool)
        )
        self._weights: dict[str, str] | None = None
        return self.to(_device(device))

    @classmethod
    def from_config(cls, backbone: BackboneConfig, features: FeaturesConfig) -> Self:
        """Load the backbone of a run. Raises: see `from_pretrained`."""
        return cls.from_pretrained(
            backbone.path,
            taps=features.taps,
            timesteps=features.timesteps,
            condition=features.condition,
            prompt=features.prompt,
            pool=features.pool,
            draws=features.draws,
            seed=features.seed,
            resolution=features.resolution,
            dtype=backbone.dtype,
            device=backbone.device,
            random_weights=backbone.random_weights,
            random_seed=backbone.random_seed,
            revision=backbone.revision,
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Say in JSON everything on the backbone's side that fixes the features. Hashes the weights at the first call.

        Where the weights lie, the device, and how rows are batched are left out: they have no influence.
        """
        if self._weights is None:
            self._weights = self._backbone.weights()
        return {
            "rules": _RULES,
            "family": self._family,
            "weights": dict(self._weights),
            "random_weights": self._random_seed is not None,
            "random_seed": self._random_seed,
            "taps": list(self._taps),
            "timesteps": list(self._timesteps),
            "condition": self._condition,
            "prompt": self._prompt,
            "pool": self._pool,
            "draws": self._draws,
            "seed": self._seed,
            "resolution": self.resolution,
            "dtype": self._dtype,
            "schedule": self._schedule.digest,
        }

    def to(self, device: torch.device | str) -> Self:
        """Move the backbone."""
        self.device = torch.device(device)
        self._backbone.to(self.device)
        return self

    def __repr__(self) -> str:
        return f"DiffusionFeatures({self.name!r}, cells={[cell.name for cell in self.cells]}, resolution={self.resolution}, device={str(self.device)!r})"

    @torch.no_grad()
    def __call__(
        self, images: Tensor | Sequence[Image.Image], *, keys: Sequence[str], captions: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Return the features of a batch, draws averaged.

        Args:
            images: PIL images, or a float tensor [batch, 3, resolution, resolution] in [0, 1].
            keys: the samples' keys; with seed and draw they fix the noise.
            captions: the samples' captions, for condition=caption.
        Returns: cell name -> float32 on the backbone's device, [batch, d_in], or [batch, channels, height, width] for pool=none.
        Raises: ConfigError if the images are not as promised, or keys or captions do not go with them.
        """
        batch = as_batch(images, self.resolution).to(self.device) if len(images) else torch.empty(0)
        self._check_batch(len(batch), keys, captions)
        if not len(batch):
            raise ConfigError("a batch without images has no features.")
        with _exact(self.device, self._dtype):
            clean = self._backbone.encode_images(batch)
            told, row_of = self._tell(captions, len(batch))
            sums = self._run(clean, self._noise(keys), told, row_of)
        return {
            f"{Cell(tap, t, self._condition, self._pool)}": sums[tap][i] / self._draws
            for tap in self._taps
            for i, t in enumerate(self._timesteps)
        }

    def _tell(self, captions: Sequence[str] | None, n: int) -> tuple[Tensor | None, Tensor]:
        """Encode each distinct prompt of the batch; return the rows and which row each image takes."""
        prompts = list(captions or ()) if self._condition == "caption" else [self._prompt or ""] * n
        distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        rows = torch.tensor([distinct[prompt] for prompt in prompts], device=self.device)
        return self._backbone.encode_prompts(list(distinct)), rows

    def _noise(self, keys: Sequence[str]) -> Tensor:
        """Make the noise of all draws, [draws, batch, channels, height, width]."""
        rows = [noise_for(self._seed, key, draw, self._latent_shape) for draw in range(self._draws) for key in keys]
        return torch.stack(rows).reshape(self._draws, len(keys), *self._latent_shape).to(self.device)

    def _run(self, clean: Tensor, noise: Tensor, told: Tensor | None, row_of: Tensor) -> dict[str, Tensor]:
        """Sum the taps over draws, [timesteps, batch, ...] a tap. Rows are ordered by draw, then timestep, then image."""
        n, n_grid = len(clean), len(clean) * len(self._timesteps)
        grid = torch.tensor(self._timesteps, device=self.device)
        sums: dict[str, Tensor] = {}
        for start in range(0, n_grid * self._draws, self._rows):
            rows = torch.arange(start, min(start + self._rows, n_grid * self._draws), device=self.device)
            image, t, draw = rows % n, grid[rows // n % len(grid)], rows // n_grid
            x_t = self._schedule.add(clean[image], noise[draw, image], t)
            x_t = x_t.to(DTYPES[self._dtype]).contiguous(memory_format=self._layout)
            condition = None if told is None else told[row_of[image]]
            found = self._capture(lambda x=x_t, t=t, c=condition: self._backbone.denoise(x, t, c))
            for tap, values in found.items():
                if tap not in sums:
                    sums[tap] = torch.zeros(n_grid, *values.shape[1:], device=self.device)
                _add_rows(sums[tap], values, start)
        return {tap: total.unflatten(0, (len(grid), n)) for tap, total in sums.items()}

    def _check_batch(self, n: int, keys: Sequence[str], captions: Sequence[str] | None) -> None:
        if isinstance(keys, str) or len(keys) != n:
            raise ConfigError(f"{n} images need {n} keys; got {1 if isinstance(keys, str) else len(keys)}.")
        if self._condition != "caption":
            return
        if captions is None or isinstance(captions, str) or len(captions) != n:
            given = "none" if captions is None else "one text" if isinstance(captions, str) else str(len(captions))
            raise ConfigError(f"condition=caption needs a caption for each of {n} images; got {given}.")
        without = [key for key, caption in zip(keys, captions, strict=True) if not isinstance(caption, str)]
        if without:
            raise ConfigError(
                f"condition=caption, but {len(without)} of {n} samples have none.", f"first: {', '.join(without[:3])}"
            )


def _add_rows(total: Tensor, values: Tensor, start: int) -> None:
    """Add rows to `total`, whose rows repeat once a draw; in order of draws, so that the sum is the same on every device."""
    n_grid, done = len(total), 0
    while done < len(values):
        first = (start + done) % n_grid
        take = min(n_grid - first, len(values) - done)
        total[first : first + take] += values[done : done + take]
        done += take


def _check(
    taps: Sequence[str], timesteps: Sequence[int], condition: str, prompt: str | None, pool: str, draws: int, dtype: str
) -> None:
    for name, values in (("taps", taps), ("timesteps", timesteps)):
        if isinstance(values, (str, int)) or not len(values):
            raise ConfigError(f"{name} must be a list with at least one entry; got {values!r}.")
    if (prompt is not None) != (condition == "prompt"):
        raise ConfigError(
            f"condition={condition} with prompt={prompt!r}: a prompt is given for condition=prompt, and only there."
        )
    if draws < 1:
        raise ConfigError(f"draws={draws}: at least one noise sample is needed.")
    check_choice("pool", pool, POOLS)
    check_choice("dtype", dtype, tuple(DTYPES))


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}, but torch sees no CUDA device.", fix="backbone.device=cpu, or auto")
    return device


@contextmanager
def _exact(device: torch.device, dtype: str) -> Iterator[None]:
    """Run in the precision that was asked for: no autocast of a surrounding training step, no TF32 under the name of float32."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda" and dtype == "float32":
            stack.enter_context(
                torch.backends.cudnn.flags(enabled=None, benchmark=None, deterministic=None, allow_tf32=False)
            )
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, precision)
        yield
