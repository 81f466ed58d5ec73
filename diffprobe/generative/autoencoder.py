"""Training of the autoencoder that a latent diffusion model works in. Owns its losses and its export.

Next in the flow: `training.denoiser`, which learns in the latent space that is saved here.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.rng import derive_seed
from diffprobe.generative.image_table import ImagesInMemory, ImageTable
from diffprobe.generative.lr_schedule import adamw_with_cosine, require_finite_loss, total_steps
from diffprobe.generative.run_settings import GenerativeModule, require_settings


@dataclass(frozen=True, kw_only=True)
class AutoencoderShape:
    """Shape of diffusers' AutoencoderKL."""

    resolution: int = 64
    """Side of the images in pixels."""
    channels: tuple[int, ...] = (24, 48, 96, 96)
    """Channels a level; each level but the last halves the side."""
    layers_per_block: int = 1
    """Residual blocks a level."""
    latent_channels: int = 16
    """Channels of a vae_latent."""
    norm_groups: int = 8
    """Groups of GroupNorm."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """A training run of an autoencoder (experiment files of kind `train_autoencoder`)."""

    experiment: str
    """Name of the experiment."""
    data: DataConfig
    """Images."""
    model: AutoencoderShape = field(default_factory=AutoencoderShape)
    """Shape of the network."""
    trainer: TrainerConfig
    """Length, precision, step size."""
    logger: LoggerConfig
    """Where curves go."""
    seed: int = 0
    """Seed of weights, order, augmentation and sampling."""
    output: str = "runs"
    """Folder of runs."""
    warmup_steps: int = 200
    """Steps over which the step size rises; a cosine to 0 follows."""
    mse_weight: float = 1.0
    """Weight of the squared error, images in [-1, 1]."""
    l1_weight: float = 1.0
    """Weight of the absolute error."""
    edge_weight: float = 1.0
    """Weight of the absolute error of horizontal and vertical differences: keeps edges sharp."""
    kl_weight: float = 2e-6
    """Weight of the KL term a vae_latent number: keeps the latents bounded, no more."""
    ema_decay: float = 0.999
    """Decay a step of the averaged weights, which are the ones that are saved."""

    def __post_init__(self) -> None:
        require_settings(self, not_negative=("mse_weight", "l1_weight", "edge_weight", "kl_weight"))

    def require_weights(self) -> None:
        """Nothing is built on: an autoencoder starts from random weights."""

    def inputs(self) -> dict[str, str]:
        """No trained network is opened."""
        return {}

    def make(self) -> "tuple[AutoencoderModule, ImagesInMemory]":
        """Build the module and its images. Raises: what reading the shards raises."""
        return AutoencoderModule(self), ImagesInMemory(self.data, resolution=self.model.resolution, seed=self.seed)


def edge_loss(output: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Mean absolute error of the differences between neighbouring pixels, horizontal plus vertical."""
    return functional.l1_loss(output.diff(dim=-1), target.diff(dim=-1)) + functional.l1_loss(
        output.diff(dim=-2), target.diff(dim=-2)
    )


class AutoencoderModule(GenerativeModule):
    """Trains an AutoencoderKL by L1, squared error, edges and a little KL.

    Randomness is a function of (seed, step), so an interrupted run goes on as it would have.
    """

    def __init__(self, config: AutoencoderTraining) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        self.config, shape = config, config.model
        n = len(shape.channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("weights", config.seed))
            self.vae: Any = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * n,
                up_block_types=("UpDecoderBlock2D",) * n,
                block_out_channels=shape.channels,
                layers_per_block=shape.layers_per_block,
                latent_channels=shape.latent_channels,
                norm_num_groups=shape.norm_groups,
                sample_size=shape.resolution,
                mid_block_add_attention=False,
            )

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch of row numbers."""
        images = self._augment(self._table("train").floats(rows.cpu()).to(self.device))
        target = images * 2 - 1
        posterior = self.vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=self._generator("sample")).to(posterior.mean)
        output = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        losses = {
            "mse": functional.mse_loss(output, target),
            "l1": functional.l1_loss(output, target),
            "edge": edge_loss(output, target),
            "kl": posterior.kl().float().mean(),  # a sum over the latent of each image
        }
        weights = {name: getattr(self.config, f"{name}_weight") for name in losses}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        require_finite_loss(loss.detach(), self.global_step)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return loss

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the peak signal-to-noise ratio of the validation images, in dB, from the mean over images."""
        images = self._table("val").floats(rows.cpu()).to(self.device)
        output = reconstruct(self.vae, images)
        self.log("val/psnr_db", psnr_db(output, images).mean(), batch_size=len(rows), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine."""
        config = self.config
        return adamw_with_cosine(
            self.parameters(),
            config.trainer,
            rate=config.trainer.learning_rate or 2e-3,
            beta2=0.99,
            warmup=config.warmup_steps,
            total=total_steps(config.trainer, config.data, len(self._table("train"))),
        )

    def save(self, folder: Path) -> None:
        """Write the autoencoder in diffusers' format, with the scaling factor that gives latents unit spread."""
        table = self._table("train")
        with torch.no_grad():
            batches = torch.arange(len(table)).split(64)
            modes = [self.vae.encode(table.floats(rows) * 2 - 1).latent_dist.mode() for rows in batches]
        self.vae.register_to_config(scaling_factor=round(1 / float(torch.cat(modes).std()), 5))
        self.vae.save_pretrained(folder)

    def _table(self, split: str) -> ImageTable:
        source = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(source, ImagesInMemory)
        return source.train if split == "train" else source.val

    def _generator(self, use: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(use, self.config.seed, self.global_step))

    def _augment(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Mirror half of the images and swap the colour channels of half: held-out drawings have other colours."""
        generator = self._generator("augment")
        mirrored, swapped = (torch.rand(len(images), 2, generator=generator) < 0.5).unbind(1)
        order = torch.randperm(3, generator=generator)
        images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
        return torch.where(swapped.to(images.device)[:, None, None, None], images[:, order], images)


def reconstruct(vae: Any, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Encode to the mode and decode; images in [0, 1] in and out (clipped, as a picture is)."""
    with torch.no_grad():
        output = vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample.float()
    return ((output + 1) / 2).clamp(0, 1)


def psnr_db(output: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Peak signal-to-noise ratio of each image in dB: -10 log10 of the mean squared error, images in [0, 1]."""
    return -10 * (output - target).square().flatten(1).mean(1).clamp_min(1e-10).log10()
