"""Training of a small latent text-to-image diffusion model: U-Net and text encoder together. Owns loss and export.

The result is a StableDiffusionPipeline folder like any other, and every later step opens it as such.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.weights import digest_files, digest_part, require_files
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.rng import derive_seed, noise_for
from diffprobe.generative.architectures import (
    BetaSchedule,
    DenoiserShape,
    make_text_encoder,
    make_unet,
    open_text_encoder,
    open_unet,
    require_autoencoder,
    require_schedule,
    require_text_encoder,
    weights_folder,
)  # fmt: skip
from diffprobe.generative.augmentation import Views
from diffprobe.generative.embedding_noise import blur
from diffprobe.generative.export import save_pipeline
from diffprobe.generative.image_table import ImagesInMemory, ImageTable, load_table
from diffprobe.generative.lr_schedule import adamw_with_cosine, require_finite_loss, total_steps
from diffprobe.generative.run_settings import GenerativeModule, require_settings
from diffprobe.generative.tokenizer import CaptionRule, Words, choose_captions, train_tokenizer


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining:
    """A training run of a denoiser (experiment files of kind `train_denoiser`)."""

    experiment: str
    """Name of the experiment."""
    autoencoder: str
    """Folder of the trained AutoencoderKL in diffusers' format, or "emoji-sd" for the shipped one."""
    data: DataConfig
    """Captioned images."""
    model: DenoiserShape = field(default_factory=DenoiserShape)
    """Shape of the networks."""
    noise: BetaSchedule = field(default_factory=BetaSchedule)
    """The forward process."""
    trainer: TrainerConfig
    """Length, precision, step size."""
    logger: LoggerConfig
    """Where curves go."""
    seed: int = 0
    """Seed of weights, order, captions, timesteps and noise."""
    output: str = "runs"
    """Folder of runs."""
    warmup_steps: int = 300
    """Steps over which the step size rises; a cosine to 0 follows."""
    captions: CaptionRule = field(default_factory=CaptionRule)
    """Which of its captions a sample sees."""
    drop_captions: float = 0.1
    """Share of samples that see the empty caption, for classifier-free guidance."""
    drop_captions_clean: float = 0.1
    """The same share at timestep 0, falling in a straight line to `drop_captions` at half of the schedule. A model that
    sees most of an image and is told its name learns it by heart."""
    balance_attribute: str | None = None
    """Draw samples by how rare their value of this attribute is; None takes each once an epoch."""
    balance_power: float = 0.5
    """0 draws all samples alike, 1 all values."""
    text_encoder: str | None = None
    """Folder with a text encoder and its words, trained before (emoji/train_text_encoder), or "emoji-sd" for the
    shipped ones; None learns both here."""
    text_learning_rate: float = 1.0
    """Step size of the text encoder, as a share of the U-Net's; 0 leaves it as it is."""
    text_noise: float = 0.0
    """Noise on the text encoder's states in training, see `blur`."""
    init_from: str | None = None
    """Folder of a trained pipeline that is trained on, with its text encoder and words unless `text_encoder` brings
    others; None starts from random weights."""
    views: Views = field(default_factory=Views)
    """Shifted and scaled copies of the training images."""
    min_snr_gamma: float = 5.0
    """Loss weight min(SNR, gamma) / SNR (Hang et al., 2303.09556, eq. 6 for epsilon prediction)."""
    ema_decay: float = 0.9995
    """Decay a step of the averaged weights, which are the ones that are saved."""

    def __post_init__(self) -> None:
        shares = ("drop_captions", "drop_captions_clean")
        require_settings(self, shares=shares, not_negative=("text_learning_rate", "text_noise"))
        if not self.min_snr_gamma > 0:
            raise ConfigError(f"min_snr_gamma={self.min_snr_gamma} is out of range: more than 0.")

    def require_weights(self) -> None:
        """Check the folders of the autoencoder, the text encoder and the pipeline to start from.

        Raises: WeightsMissing.
        """
        require_autoencoder(self.autoencoder)
        if self.text_encoder or self.init_from:
            require_text_encoder(weights_folder(self.text_encoder or self.init_from or ""))
        if self.init_from:
            require_files(weights_folder(self.init_from) / "unet")

    def inputs(self) -> dict[str, str]:
        """Return the digests of autoencoder, text encoder and start. Raises: WeightsMissing."""
        found = {"autoencoder": digest_part(require_autoencoder(self.autoencoder))}
        text_encoder = self.text_encoder or self.init_from
        if text_encoder:
            folder = weights_folder(text_encoder)
            words = digest_files(sorted((folder / "tokenizer").iterdir()))
            found["text_encoder"] = digest_json({"network": digest_part(folder / "text_encoder"), "words": words})
        if self.init_from:
            found["init_from"] = digest_part(weights_folder(self.init_from) / "unet")
        return found

    def make(self) -> "tuple[DenoiserModule, ImagesInMemory]":
        """Build the module and its captioned images. Raises: what reading weights and shards raises."""
        module = DenoiserModule(self)
        images = ImagesInMemory(
            self.data, resolution=module.resolution, seed=self.seed, captioned=True, balance=module.balance
        )
        return module, images


class DenoiserModule(GenerativeModule):
    """Learns to predict the noise in a vae_latent under its caption.

    Latents are the modes of the frozen autoencoder, encoded once. Randomness is a function of (seed, step).
    """

    signal: Tensor
    sigma: Tensor

    def __init__(self, config: DenoiserTraining) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        folder = require_autoencoder(config.autoencoder)
        with quiet_libraries():
            vae = AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        # In a tuple, so that neither checkpoints nor the averaged weights hold what is not trained.
        self._frozen = (vae.float().eval().requires_grad_(False),)
        self.config = config
        self.scheduler = config.noise.scheduler()
        alphas = self.scheduler.alphas_cumprod.float()
        self.register_buffer("signal", alphas.sqrt(), persistent=False)
        self.register_buffer("sigma", (1 - alphas).sqrt(), persistent=False)
        self._latents: dict[str, Tensor] = {}
        self._build()

    @property
    def balance(self) -> tuple[str, float] | None:
        """How training samples are drawn, for `ImagesInMemory`."""
        name = self.config.balance_attribute
        return None if name is None else (name, self.config.balance_power)

    @property
    def vae(self) -> Any:
        """The frozen autoencoder."""
        return self._frozen[0]

    @property
    def resolution(self) -> int:
        """Side of the images in pixels."""
        return int(self.vae.config.sample_size)

    def _build(self) -> None:
        """Make or open tokenizer, text encoder and U-Net; a vocabulary comes from the training captions alone."""
        shape, config, seed = self.config.model, self.config, derive_seed("weights", self.config.seed)
        folder = config.text_encoder or config.init_from
        if folder is not None:
            self.tokenizer, self.text_encoder = open_text_encoder(weights_folder(folder), shape)
        else:
            table = load_table(config.data, config.data.train_split, resolution=self.resolution, captioned=True)
            texts = [text for captions in table.captions for text in captions]
            self.tokenizer = train_tokenizer(texts, vocab_size=shape.vocab_size, max_tokens=shape.max_tokens)
            self.text_encoder = make_text_encoder(shape, tokenizer=self.tokenizer, seed=derive_seed("text", seed))
        if config.init_from is not None:
            require_schedule(weights_folder(config.init_from), config.noise)
            self.unet = open_unet(weights_folder(config.init_from), shape)
        else:
            side = self.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
            channels = self.vae.config.latent_channels
            self.unet = make_unet(shape, latent_channels=channels, latent_side=side, seed=seed)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which vocabulary the embeddings belong to."""
        checkpoint["vocabulary"] = digest_json(self.tokenizer.get_vocab())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the embeddings of another vocabulary. Raises: WeightsMismatch."""
        if checkpoint.get("vocabulary") != digest_json(self.tokenizer.get_vocab()):
            raise WeightsMismatch(
                "the interrupted run had another vocabulary, so its word embeddings are not this one's.",
                "captions, vocabulary or tokenizer library have changed since",
                fix="trainer.resume=false",
            )

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the weighted denoising loss of a batch of row numbers."""
        table, rows = self._table("train"), rows.cpu()
        generator = torch.Generator().manual_seed(derive_seed("step", self.config.seed, self.global_step))
        timesteps = torch.randint(len(self.signal), (len(rows),), generator=generator)
        captions = choose_captions(
            [table.captions[row] for row in rows.tolist()],
            self.config.captions,
            empty=self.empty_share(timesteps),
            generator=generator,
            words=self.words,
        )
        views = self.config.views.draw(len(rows), generator)
        clean = self._encoded("train", self.config.views)[rows, views].to(self.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        timesteps = timesteps.to(self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed("dropout", self.config.seed, self.global_step))  # it has no other generator
            errors = self.errors(clean, captions, timesteps, noise, generator)
        snr = (self.signal / self.sigma).square()[timesteps]
        loss = (errors * snr.clamp(max=self.config.min_snr_gamma) / snr).mean()
        require_finite_loss(loss.detach(), self.global_step)
        self.log_dict({"train/loss": loss.detach(), "train/mse": errors.detach().mean()}, prog_bar=True)
        return loss

    @cached_property
    def words(self) -> Words:
        """The words of the training captions, counted by the values of `balance_attribute`."""
        table = self._table("train")
        return Words(table.captions, table.groups(self.config.balance_attribute))

    def empty_share(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the probability of the empty caption at each timestep."""
        least, most = self.config.drop_captions, self.config.drop_captions_clean
        clean = (1 - 2 * timesteps / len(self.signal)).clamp(min=0)
        return least + (most - least) * clean

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the plain denoising error of the validation images: one fixed timestep and noise each."""
        table, keys = self._table("val"), [self._table("val").keys[row] for row in rows.tolist()]
        clean = self._encoded("val", Views(n=1))[rows.cpu(), 0].to(self.device)
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in keys]).to(clean)
        timesteps = torch.tensor([derive_seed("timestep", key) % len(self.signal) for key in keys]).to(self.device)
        errors = self.errors(clean, [table.captions[row][0] for row in rows.tolist()], timesteps, noise)
        self.log("val/mse", errors.mean(), batch_size=len(rows), prog_bar=True, sync_dist=True)

    def errors(
        self,
        clean: Float[Tensor, "batch c h w"],
        captions: list[str],
        timesteps: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch c h w"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        """Mean squared error of the predicted noise of each sample.

        Args:
            clean: scaled vae_latents.
            captions: one a sample.
            timesteps: on the training grid.
            noise: standard normal.
            generator: source of noise on the text; None adds none.
        """
        signal, sigma = (values[timesteps, None, None, None] for values in (self.signal, self.sigma))
        size = self.config.model.max_tokens
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, max_length=size, return_tensors="pt")
        text = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
        if generator is not None:
            text = blur(text, captions, share=self.config.text_noise, generator=generator)
        predicted = self.unet(signal * clean + sigma * noise, timesteps, text).sample
        return (predicted.float() - noise).square().flatten(1).mean(1)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with warm-up and cosine."""
        config = self.config
        rate = config.trainer.learning_rate or 1e-3
        groups = [
            {"params": list(self.unet.parameters()), "lr": rate},
            {"params": list(self.text_encoder.parameters()), "lr": rate * config.text_learning_rate},
        ]
        total = total_steps(config.trainer, config.data, len(self._table("train")))
        return adamw_with_cosine(groups, config.trainer, rate=rate, beta2=0.99, warmup=config.warmup_steps, total=total)

    def save(self, folder: Path) -> None:
        """Write the pipeline in diffusers' format, weights as fp16 safetensors."""
        save_pipeline(
            folder,
            vae=self.vae,
            unet=self.unet,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            scheduler=self.scheduler,
        )

    def _table(self, split: str) -> ImageTable:
        source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(source, ImagesInMemory)
        return source.train if split == "train" else source.val

    def _encoded(self, split: str, views: Views) -> Float[Tensor, "sample view c h w"]:
        """Return the scaled latents of a split, encoded when first asked for."""
        if split not in self._latents:
            table, factor = self._table(split), self.vae.config.scaling_factor
            parts = []
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                for rows in torch.arange(len(table)).split(64):
                    images, keys = table.floats(rows), [table.keys[row] for row in rows.tolist()]
                    seen = [views.make(images, view, keys, self.config.seed) for view in range(views.n)]
                    parts.append(
                        torch.stack([self.vae.encode(view * 2 - 1).latent_dist.mode() for view in seen], dim=1)
                    )
            self._latents[split] = torch.cat(parts) * factor
        return self._latents[split]
