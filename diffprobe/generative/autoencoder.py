"""Training of the autoencoder (AutoencoderKL) of a latent diffusion model: losses and export.

`denoiser.py` trains in its latent space.
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
from diffprobe.generative.image_table import ImageTable, ImageTableData
from diffprobe.generative.lr_schedule import adamw_with_cosine, require_finite_loss, total_steps
from diffprobe.generative.run_settings import GenerativeModule, validate_settings


@dataclass(frozen=True, kw_only=True)
class AutoencoderShape:
    """Shape of diffusers' AutoencoderKL."""

    resolution: int = 64
    """Side length of the images in pixels."""
    channels: tuple[int, ...] = (24, 48, 96, 96)
    """Channels per level; each level but the last halves the side length."""
    layers_per_block: int = 1
    """Residual blocks per level."""
    latent_channels: int = 16
    """Channels of a vae_latent."""
    norm_groups: int = 8
    """Groups of each GroupNorm."""


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
    """Length, precision, learning rate."""
    logger: LoggerConfig
    """Where training curves are logged."""
    seed: int = 0
    """Seed of weights, order, augmentation and sampling."""
    output: str = "runs"
    """Folder of runs."""
    warmup_steps: int = 200
    """Steps of the linear warm-up of the learning rate; cosine decay to 0 follows."""
    mse_weight: float = 1.0
    """Weight of the squared error, images in [-1, 1]."""
    l1_weight: float = 1.0
    """Weight of the absolute error."""
    edge_weight: float = 1.0
    """Weight of `edge_loss`, which keeps edges sharp."""
    kl_weight: float = 2e-6
    """Weight of the KL divergence of the posterior, summed over each vae_latent: keeps latents bounded."""
    ema_decay: float = 0.999
    """Decay per step of the exponential moving average of the weights, which is what is saved."""

    def __post_init__(self) -> None:
        validate_settings(self, not_negative=("mse_weight", "l1_weight", "edge_weight", "kl_weight"))

    def require_weights(self) -> None:
        """Do nothing: an autoencoder starts from random weights."""

    def input_digests(self) -> dict[str, str]:
        """Return no digests: an autoencoder opens no trained network."""
        return {}

    def make(self) -> "tuple[AutoencoderModule, ImageTableData]":
        """Build the module and its images. Raises: the errors of reading the shards."""
        return AutoencoderModule(self), ImageTableData(self.data, resolution=self.model.resolution, seed=self.seed)


def edge_loss(output: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Return the mean absolute error of differences between neighbouring pixels, horizontal plus vertical."""
    return functional.l1_loss(output.diff(dim=-1), target.diff(dim=-1)) + functional.l1_loss(
        output.diff(dim=-2), target.diff(dim=-2)
    )


class AutoencoderModule(GenerativeModule):
    """Trains an AutoencoderKL by squared error, L1, edge loss and KL divergence.

    Randomness is a function of (seed, step), so a resumed run equals an uninterrupted one.
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
        """Return the loss of a batch of row indices."""
        images = self._augment(self._table("train").to_float(rows.cpu()).to(self.device))
        target = images * 2 - 1
        posterior = self.vae.encode(target).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=self._generator("sample")).to(posterior.mean)
        output = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        losses = {
            "mse": functional.mse_loss(output, target),
            "l1": functional.l1_loss(output, target),
            "edge": edge_loss(output, target),
            "kl": posterior.kl().float().mean(),  # summed over the latent of each image
        }
        weights = {name: getattr(self.config, f"{name}_weight") for name in losses}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        require_finite_loss(loss.detach(), self.global_step)
        self.log_dict({f"train/{name}": value.detach() for name, value in losses.items()})
        return loss

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the mean peak signal-to-noise ratio of the validation images, in dB."""
        images = self._table("val").to_float(rows.cpu()).to(self.device)
        output = reconstruct(self.vae, images)
        self.log("val/psnr_db", psnr_db(output, images).mean(), batch_size=len(rows), prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay."""
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
        """Write the autoencoder in diffusers' format; its scaling factor gives latents unit standard deviation."""
        table = self._table("train")
        with torch.no_grad():
            batches = torch.arange(len(table)).split(64)
            modes = [self.vae.encode(table.to_float(rows) * 2 - 1).latent_dist.mode() for rows in batches]
        self.vae.register_to_config(scaling_factor=round(1 / float(torch.cat(modes).std()), 5))
        self.vae.save_pretrained(folder)

    def _table(self, split: str) -> ImageTable:
        source = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(source, ImageTableData)
        return source.train if split == "train" else source.val

    def _generator(self, use: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(use, self.config.seed, self.global_step))

    def _augment(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Mirror half of the images and permute the colour channels of half: held-out images have other colours."""
        generator = self._generator("augment")
        mirrored, swapped = (torch.rand(len(images), 2, generator=generator) < 0.5).unbind(1)
        order = torch.randperm(3, generator=generator)
        images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
        return torch.where(swapped.to(images.device)[:, None, None, None], images[:, order], images)


def reconstruct(vae: Any, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Encode images in [0, 1] to the posterior mode and decode them; the output is clipped to [0, 1]."""
    with torch.no_grad():
        output = vae.decode(vae.encode(images * 2 - 1).latent_dist.mode()).sample.float()
    return ((output + 1) / 2).clamp(0, 1)


def psnr_db(output: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio of each image in dB: -10 log10 of the mean squared error."""
    return -10 * (output - target).square().flatten(1).mean(1).clamp_min(1e-10).log10()
