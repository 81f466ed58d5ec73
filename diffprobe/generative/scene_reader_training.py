"""Training of the attribute reader on rendered scenes, degraded as generated images are."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional

from diffprobe.config.schema import LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.core.shapes import Images
from diffprobe.generative.lr_schedule import require_finite_loss, warmup_cosine
from diffprobe.generative.rendered_scenes import RenderedScenes, RenderedScenesConfig, uniform_scenes
from diffprobe.generative.run_settings import GenerativeModule, validate_ema_decay
from diffprobe.generative.scene_reader import SceneReader, SceneReaderShape, to_tensor
from diffprobe.shards.scenes.factors import Ints, Scenes, counterfactual_scenes
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import CANVAS, FACTORS, PLAIN, STRIPED


@dataclass(frozen=True, kw_only=True)
class DegradationConfig:
    """How far training images are degraded; 0 turns one off. Strengths are drawn for each image."""

    blur: float = 0.8
    """Largest standard deviation of a Gaussian blur, in pixels of a 64 x 64 image."""
    noise: float = 0.06
    """Largest standard deviation of independent noise; images are in [0, 1]."""
    brightness: float = 0.08
    """Largest shift of each channel, up or down."""
    contrast: float = 0.15
    """Largest change of contrast around the mean, as a fraction of it."""
    smoothing: float = 0.5
    """Largest share of an image of half the resolution that is mixed in, as an autoencoder smooths."""
    blended: float = 0.3
    """Share of images whose stripes have a random share of their contrast; from half of it on, they are striped."""

    def __post_init__(self) -> None:
        for name in ("blur", "noise", "brightness", "contrast", "smoothing", "blended"):
            value = getattr(self, name)
            if not 0 <= value <= (4 if name == "blur" else 1):
                raise ConfigError(f"degradation.{name}={value} is out of range: 0 to {4 if name == 'blur' else 1}.")

    def apply(self, images: Images, generator: torch.Generator) -> Images:
        """Return degraded images, clipped to [0, 1]."""
        n = len(images)
        blur, noise, contrast, smoothing = torch.rand(4, n, generator=generator)[:, :, None, None, None] * 1.0
        images = _blurred(images, blur.flatten() * self.blur * images.shape[-1] / CANVAS)
        small = functional.avg_pool2d(images, 2)
        smooth = functional.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
        images = torch.lerp(images, smooth, smoothing * self.smoothing)
        mean = images.mean((1, 2, 3), keepdim=True)
        images = mean + (images - mean) * (1 + (contrast * 2 - 1) * self.contrast)
        shift = (torch.rand(n, 3, 1, 1, generator=generator) * 2 - 1) * self.brightness
        grain = torch.randn(images.shape, generator=generator) * noise * self.noise
        return (images + shift + grain).clamp(0, 1)


def _blurred(images: Images, sigma: Float[Tensor, " batch"]) -> Images:
    """Blur each image by a Gaussian of its own width, in pixels; the border is repeated."""
    reach = 3
    places = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-(places[None] ** 2) / (2 * sigma.clamp_min(1e-3)[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]
    n, _, height, width = images.shape
    flat = images.reshape(1, n * 3, height, width)
    rows = functional.conv2d(functional.pad(flat, (0, 0, reach, reach), "replicate"), kernel[..., None], groups=n * 3)
    found = functional.conv2d(functional.pad(rows, (reach, reach, 0, 0), "replicate"), kernel[:, :, None], groups=n * 3)
    return found.reshape(images.shape)


@dataclass(frozen=True, kw_only=True)
class ReaderTraining:
    """A training run of the attribute reader (experiment files of kind `train_reader`)."""

    experiment: str
    """Name of the experiment."""
    data: RenderedScenesConfig = field(default_factory=RenderedScenesConfig)
    """Which scenes are drawn."""
    model: SceneReaderShape = field(default_factory=SceneReaderShape)
    """Shape of the network."""
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    """How training images are degraded."""
    trainer: TrainerConfig
    """Length, precision, learning rate."""
    logger: LoggerConfig
    """Where training curves are logged."""
    seed: int = 0
    """Seed of weights, order and degradations."""
    output: str = "runs"
    """Folder of runs."""
    warmup_steps: int = 50
    """Steps of the linear warm-up of the learning rate; cosine decay to 0 follows."""
    ema_decay: float = 0.99
    """Decay per step of the exponential moving average of the weights, which is what is saved."""

    def __post_init__(self) -> None:
        validate_ema_decay(self.ema_decay)
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps={self.warmup_steps} is out of range: at least 0.")

    def require_weights(self) -> None:
        """Read the file of the world; a reader starts from random weights. Raises: ConfigError."""
        self.data.spec()

    def input_digests(self) -> dict[str, str]:
        """Return the digest of the file of the world."""
        return {"world": self.data.spec().digest}

    def make(self) -> "tuple[ReaderModule, RenderedScenes]":
        """Build the module and the indices of its scenes."""
        return ReaderModule(self), RenderedScenes(self.data, seed=self.seed)


class ReaderModule(GenerativeModule):
    """Trains a `SceneReader` by the cross-entropy of all its heads.

    Randomness is a function of (seed, step), so a resumed run equals an uninterrupted one.
    """

    def __init__(self, config: ReaderTraining) -> None:
        super().__init__()
        self.config, self.spec = config, config.data.spec()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("weights", config.seed))
            self.reader = SceneReader(self.spec, resolution=config.data.resolution, shape=config.model)
        hats, tools = list(self.spec.hats), list(self.spec.tools)
        self._parts = {
            "hat": np.array([hats.index(role.hat) for role in self.spec.roles]),
            "tool": np.array([tools.index(role.tool) for role in self.spec.roles]),
        }

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch of rows."""
        generator = torch.Generator().manual_seed(derive_seed("degrade", self.config.seed, self.global_step))
        images, targets = self._batch(self._indices("train"), rows, generator)
        logs = self.reader(images.to(self.device))
        losses = {name: functional.nll_loss(logs[name], targets[name].to(self.device)) for name in self.reader.sizes}
        loss = torch.stack(list(losses.values())).sum()
        require_finite_loss(loss.detach(), self.global_step)
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the accuracy of each factor on rendered validation scenes, and on the same scenes degraded."""
        for degraded in (False, True):
            generator = torch.Generator().manual_seed(derive_seed("degrade val", self.config.seed, batch_idx))
            images, targets = self._batch(self._indices("val"), rows, generator if degraded else None)
            logs = self.reader(images.to(self.device))
            for name in FACTORS:
                right = (logs[name].argmax(1).cpu() == targets[name]).float().mean()
                key = f"val/accuracy_{name}" + ("_degraded" if degraded else "")
                self.log(key, right, batch_size=len(rows))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay."""
        config, trainer = self.config, self.config.trainer
        total = trainer.max_epochs * (config.data.n_train // config.data.batch_size)
        total = min(total, trainer.max_steps) if trainer.max_steps > 0 else total
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=trainer.learning_rate or 2e-3, weight_decay=trainer.weight_decay, betas=(0.9, 0.99)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, config.warmup_steps, total)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def save(self, folder: Path) -> None:
        """Write the reader, its weights as float16."""
        self.reader.save(folder, half=True)

    def _indices(self, split: str) -> Ints:
        source = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(source, RenderedScenes)
        return source.train if split == "train" else source.val

    def _batch(
        self, indices: Ints, rows: Tensor, generator: torch.Generator | None
    ) -> tuple[Images, dict[str, Tensor]]:
        """Draw the scenes of some rows, degraded if there is a generator; targets by factor, hat and tool."""
        data, degradation = self.config.data, self.config.degradation
        scenes = uniform_scenes(self.spec, data.seed, indices[rows.cpu().numpy()])
        images = to_tensor(render(self.spec, scenes, resolution=data.resolution).images)
        codes = dict(scenes.factors)
        if generator is not None:
            images, codes["texture"] = self._blend(scenes, images, generator)
            images = degradation.apply(images, generator)
        for part, of_role in self._parts.items():
            codes[part] = of_role[codes["role"]]
        return images, {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in codes.items()}

    def _blend(self, scenes: Scenes, images: Images, generator: torch.Generator) -> tuple[Images, Ints]:
        """Give some images a random share of the stripes' contrast, and return the textures after it."""
        n = len(scenes)
        chosen = (torch.rand(n, generator=generator) < self.config.degradation.blended).numpy()
        shares = torch.rand(n, generator=generator)
        textures = scenes.factors["texture"].copy()
        rows = np.flatnonzero(chosen)
        if len(rows) == 0:
            return images, textures
        some = scenes.select(rows)
        pair = [
            to_tensor(
                render(
                    self.spec, counterfactual_scenes(some, "texture", code), resolution=self.config.data.resolution
                ).images
            )
            for code in (PLAIN, STRIPED)
        ]
        images = images.clone()
        images[rows] = torch.lerp(pair[0], pair[1], shares[rows][:, None, None, None])
        textures[rows] = np.where(shares[rows].numpy() >= 0.5, STRIPED, PLAIN)
        return images, textures
