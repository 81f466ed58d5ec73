"""Training of a small latent text-to-image diffusion model: U-Net and text encoder together.

The target and the weight of the loss come from an objective (`objectives/`). The result is an ordinary
StableDiffusionPipeline folder. With `transformer` the network is that of Stable Diffusion 3 (`flow_denoiser.py`).
"""

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from diffprobe.backbones.device import exact
from diffprobe.backbones.loading import load_network
from diffprobe.backbones.weight_files import require_files
from diffprobe.backbones.weights import digest_files, digest_part
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.rng import derive_seed
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
from diffprobe.generative.augmentation import AugmentationConfig
from diffprobe.generative.caption_dropout import CaptionDropoutConfig, CaptionVocabulary, choose_captions
from diffprobe.generative.embedding_noise import add_embedding_noise
from diffprobe.generative.export import save_pipeline
from diffprobe.generative.flow_transformer import TransformerShape
from diffprobe.generative.held_out_noise import held_out_noise
from diffprobe.generative.image_table import ImageTable, ImageTableData, load_table
from diffprobe.generative.long_tail import ClassesConfig, class_counts, class_numbers, shots, training_classes
from diffprobe.generative.lr_schedule import adamw_with_cosine, require_finite_loss, total_steps
from diffprobe.generative.objectives.base import (
    ForwardProcess,
    Objective,
    ObjectiveConfig,
    complete,
    compute_loss,
    declared_process,
    make_objective,
    mean_squared_error,
)
from diffprobe.generative.regularizers.base import (
    ClassBatch,
    Regularizer,
    RegularizerConfig,
    TrainingClasses,
    complete_regularizer,
    make_regularizer,
)
from diffprobe.generative.run_settings import GenerativeModule, validate_settings
from diffprobe.generative.tokenizer import train_tokenizer

TEXT_KEYS = ("text_width", "text_layers", "text_heads", "vocab_size", "max_tokens")
"""Keys of `model` that describe text encoders."""


@dataclass(frozen=True, kw_only=True)
class DenoiserTraining:
    """A training run of a denoiser (experiment files of kind `train_denoiser`)."""

    experiment: str
    """Name of the experiment."""
    autoencoder: str
    """Folder of the trained AutoencoderKL in diffusers' format, or the name of a shipped model."""
    data: DataConfig
    """Captioned images."""
    model: DenoiserShape = field(default_factory=DenoiserShape)
    """Shape of the networks."""
    transformer: TransformerShape | None = None
    """Shape of a transformer in place of the U-Net, as in Stable Diffusion 3; its objective has to be a flow; a flow
    needs it. None trains the U-Net."""
    noise: BetaSchedule | None = None
    """The forward process, `BetaSchedule()` if None; an objective that declares its own takes none."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    """What the denoiser predicts, and how its errors are weighted."""
    classes: ClassesConfig | None = None
    """Condition on the value of an attribute instead of the captions, on long-tailed classes; None trains on the
    captions of all images."""
    regularizer: RegularizerConfig | None = None
    """Class-contrast term that is added to the loss; needs `classes`. None adds none."""
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
    captions: CaptionDropoutConfig = field(default_factory=CaptionDropoutConfig)
    """Which of its captions a sample is trained with, and how many of its words are dropped."""
    drop_captions: float = 0.1
    """Share of samples that are trained with the empty caption, for classifier-free guidance."""
    drop_captions_clean: float = 0.1
    """The same share at timestep 0; it falls linearly to `drop_captions` at half of the schedule. A larger value keeps
    the model from memorising images by their names where little noise hides them."""
    balance_attribute: str | None = None
    """Sample rare values of this attribute more often; None takes each sample once per epoch."""
    balance_power: float = 0.5
    """0 draws all samples with equal probability, 1 all values."""
    text_encoder: str | None = None
    """Folder of a trained text encoder and its tokenizer (emoji/train_text_encoder), or the name of a shipped
    model; None trains both from scratch."""
    text_learning_rate: float = 1.0
    """Learning rate of the text encoder as a multiple of the U-Net's; 0 freezes it, random weights too."""
    text_noise: float = 0.0
    """Noise on the states of the text encoder during training, see `add_embedding_noise`."""
    init_from: str | None = None
    """Folder of a trained pipeline to start from, with its text encoder and tokenizer unless `text_encoder` names
    others; None starts from random weights."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Shifted and scaled copies of the training images."""
    ema_decay: float = 0.9995
    """Decay per step of the exponential moving average of the weights, which is what is saved."""

    def __post_init__(self) -> None:
        shares = ("drop_captions", "drop_captions_clean")
        validate_settings(self, shares=shares, not_negative=("text_learning_rate", "text_noise"))
        object.__setattr__(self, "objective", complete(self.objective))  # so that a record names every setting
        if declared_process(self.objective) is None:
            object.__setattr__(self, "noise", self.noise or BetaSchedule())
            if self.transformer is not None:
                raise ConfigError(
                    f"transformer is set, and objective={self.objective.name} is not a flow.",
                    "the saved StableDiffusion3Pipeline samples flows only",
                    fix="objective=flow_matching, or transformer=null",
                )
        else:
            self._validate_flow()
        if self.regularizer is not None:
            if self.classes is None:
                raise ConfigError(
                    f"regularizer.name={self.regularizer.name} has no effect without classes.",
                    fix="set classes.attribute, or regularizer=null",
                )
            object.__setattr__(self, "regularizer", complete_regularizer(self.regularizer))

    def _validate_flow(self) -> None:
        """Refuse settings that a flow does not have. Raises: ConfigError."""
        name = f"objective={self.objective.name}"
        if self.noise is not None:
            raise ConfigError(
                f"noise has no effect with {name}: it has a forward process of its own, without betas.",
                fix="noise=null",
            )
        if self.transformer is None:
            raise ConfigError(
                f"{name} needs a transformer: a StableDiffusionPipeline, the form in which U-Nets are saved, does not "
                "sample flows.",
                fix="experiment=scenes/train_flow, or set transformer.layers",
            )
        if self.regularizer is not None:
            raise ConfigError(
                f"regularizer.name={self.regularizer.name} is not defined with {name}: class-contrast terms compare "
                "the reverse kernels of a diffusion.",
                fix="regularizer=null",
            )
        unused = [key for key in ("text_encoder", "init_from") if getattr(self, key) is not None]
        unused += ["text_noise"] if self.text_noise else []
        if unused:
            raise ConfigError(
                f"{', '.join(unused)}: not offered with transformer: both text encoders start from random weights.",
                fix=" ".join(f"{key}={'0' if key == 'text_noise' else 'null'}" for key in unused),
            )
        default = DenoiserShape()
        keys = [field.name for field in fields(DenoiserShape) if field.name not in TEXT_KEYS]
        unused = [f"model.{key}" for key in keys if getattr(self.model, key) != getattr(default, key)]
        if unused:
            raise ConfigError(
                f"{', '.join(unused)}: no effect with transformer, which takes the place of the U-Net.",
                fix="transformer.* has the shape of the transformer",
            )

    def require_weights(self) -> None:
        """Check the folders of the autoencoder, the text encoder and the pipeline to start from.

        Raises: WeightsMissing.
        """
        require_autoencoder(self.autoencoder)
        if self.text_encoder or self.init_from:
            require_text_encoder(weights_folder(self.text_encoder or self.init_from or ""))
        if self.init_from:
            require_files(weights_folder(self.init_from) / "unet")

    def input_digests(self) -> dict[str, str]:
        """Return the digests of the autoencoder, the text encoder and the initial weights. Raises: WeightsMissing."""
        found = {"autoencoder": digest_part(require_autoencoder(self.autoencoder))}
        text_encoder = self.text_encoder or self.init_from
        if text_encoder:
            folder = weights_folder(text_encoder)
            tokenizer = digest_files(sorted((folder / "tokenizer").iterdir()))
            found["text_encoder"] = digest_json({"network": digest_part(folder / "text_encoder"), "words": tokenizer})
        if self.init_from:
            found["init_from"] = digest_part(weights_folder(self.init_from) / "unet")
        return found

    def make(self) -> "tuple[DenoiserModule, ImageTableData]":
        """Build the module and its captioned images. Raises: what reading weights and shards raises."""
        from diffprobe.generative.flow_denoiser import FlowDenoiserModule

        module = DenoiserModule(self) if self.transformer is None else FlowDenoiserModule(self)
        images = ImageTableData(
            self.data, resolution=module.resolution, seed=self.seed, captioned=True, balance=module.balance,
            classes=self.classes,
        )  # fmt: skip
        module.set_classes(images.train)
        return module, images


def _process_of(config: DenoiserTraining) -> tuple[ForwardProcess, Objective, Any]:
    """Return the forward process of a run, its objective, and the scheduler that is saved."""
    declared = declared_process(config.objective)
    if declared is not None:
        return declared, make_objective(config.objective, declared), declared.scheduler()
    noise = config.noise or BetaSchedule()
    process = ForwardProcess(noise.scheduler().alphas_cumprod.float())
    objective = make_objective(config.objective, process)
    return process, objective, noise.scheduler(objective.prediction_type)


class DenoiserModule(GenerativeModule):
    """Trains a U-Net and a text encoder to denoise vae_latents under their captions.

    Latents are the modes of the frozen autoencoder, encoded once. Randomness is a function of (seed, step), so a
    resumed run equals an uninterrupted one.
    """

    def __init__(self, config: DenoiserTraining) -> None:
        super().__init__()
        vae = load_network("AutoencoderKL", require_autoencoder(config.autoencoder))
        # In a tuple, so that neither checkpoints nor the averaged weights contain the frozen network.
        self._frozen = (vae.requires_grad_(False),)
        self.config = config
        self.process, self.objective, self.scheduler = _process_of(config)
        self._latents: dict[str, Tensor] = {}
        self.classes: TrainingClasses | None = None
        self.regularizer: Regularizer | None = None
        self._build()

    def set_classes(self, table: ImageTable) -> None:
        """Build the class-contrast term for the training images, and note their classes for the record of the run.

        Raises: ConfigError for a term on one class, EmptyClass for one on a class with one image.
        """
        config = self.config
        if config.classes is None:
            return
        counts = class_counts(table, config.classes.attribute)
        facts: dict[str, Any] = {"class_counts": counts, "shots": shots(counts), "passes_per_sample": 1}
        if config.regularizer is not None:
            self.classes = training_classes(table, config.classes.attribute)
            kind = self.objective.prediction_type
            self.regularizer = make_regularizer(config.regularizer, self.process, kind, self.classes)
            facts["passes_per_sample"] = 1 + self.regularizer.extra_passes
        self.facts = facts

    @property
    def balance(self) -> tuple[str, float] | None:
        """Attribute and power by which training samples are drawn, for `ImageTableData`; None without balancing."""
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
        """Build or open tokenizer, text encoder and U-Net; a new vocabulary is learnt from the training captions."""
        shape, config, seed = self.config.model, self.config, derive_seed("weights", self.config.seed)
        folder = config.text_encoder or config.init_from
        if folder is not None:
            self.tokenizer, self.text_encoder = open_text_encoder(weights_folder(folder), shape)
        else:
            self.tokenizer = self.learn_vocabulary()
            self.text_encoder = make_text_encoder(shape, tokenizer=self.tokenizer, seed=derive_seed("text", seed))
        self.text_encoder.requires_grad_(config.text_learning_rate > 0)
        if config.init_from is not None:
            assert config.noise is not None
            require_schedule(weights_folder(config.init_from), config.noise, self.objective.prediction_type)
            self.unet = open_unet(weights_folder(config.init_from), shape)
        else:
            channels = self.vae.config.latent_channels
            self.unet = make_unet(shape, latent_channels=channels, latent_side=self.latent_side, seed=seed)

    @property
    def latent_side(self) -> int:
        """Height and width of a vae_latent."""
        return int(self.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1))

    def learn_vocabulary(self) -> Any:
        """Train a tokenizer on the training captions."""
        config, shape = self.config, self.config.model
        table = load_table(config.data, config.data.train_split, resolution=self.resolution, captioned=True)
        table = table if config.classes is None else config.classes.captioned(table)
        texts = [text for captions in table.captions for text in captions]
        return train_tokenizer(texts, vocab_size=shape.vocab_size, max_tokens=shape.max_tokens)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record the digest of the vocabulary that the embeddings belong to."""
        checkpoint["vocabulary"] = digest_json(self.tokenizer.get_vocab())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject a checkpoint with another vocabulary. Raises: WeightsMismatch."""
        if checkpoint.get("vocabulary") != digest_json(self.tokenizer.get_vocab()):
            raise WeightsMismatch(
                "the interrupted run has another vocabulary, so its word embeddings do not fit this run.",
                "the captions, model.vocab_size or the version of the tokenizers library have changed",
                fix="trainer.resume=false",
            )

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of the objective on a batch of row indices."""
        table, rows = self._table("train"), rows.cpu()
        generator = torch.Generator().manual_seed(derive_seed("step", self.config.seed, self.global_step))
        timesteps = self.process.draw(len(rows), generator)
        captions = choose_captions(
            [table.captions[row] for row in rows.tolist()],
            self.config.captions,
            p_empty=self.p_empty_caption(timesteps),
            generator=generator,
            vocabulary=self.vocabulary,
        )
        views = self.config.augmentation.choose(len(rows), generator)
        clean = self._encoded("train", self.config.augmentation)[rows, views].to(self.device)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        timesteps = timesteps.to(self.device)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            # dropout draws from the global generator alone
            torch.manual_seed(derive_seed("dropout", self.config.seed, self.global_step))
            if self.regularizer is None or self.classes is None:
                errors, term = self.errors(clean, captions, timesteps, noise, generator), None
            else:
                numbers = class_numbers(table, rows.tolist(), captions, self.classes).to(self.device)
                errors, term = self._regularized(clean, captions, numbers, timesteps, noise, generator)
        loss = compute_loss(self.objective, errors, timesteps)
        if term is not None:
            loss = loss + term
            self.log("train/regularizer", term.detach())
        require_finite_loss(loss.detach(), self.global_step)
        self.log_dict({"train/loss": loss.detach(), "train/mse": errors.detach().mean()}, prog_bar=True)
        return loss

    @cached_property
    def vocabulary(self) -> CaptionVocabulary:
        """The words of the training captions, counted by the values of `balance_attribute`."""
        table = self._table("train")
        return CaptionVocabulary(table.captions, table.groups(self.config.balance_attribute))

    def p_empty_caption(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the probability of the empty caption at each timestep."""
        lowest, highest = self.config.drop_captions, self.config.drop_captions_clean
        cleanness = (1 - 2 * timesteps / self.process.n_timesteps).clamp(min=0)
        return lowest + (highest - lowest) * cleanness

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the unweighted error of the validation images, each at one fixed timestep and noise."""
        table, keys = self._table("val"), [self._table("val").keys[row] for row in rows.tolist()]
        clean = self._encoded("val", AugmentationConfig(n_views=1))[rows.cpu(), 0].to(self.device)
        noise, timesteps = held_out_noise(keys, clean, self.process.n_timesteps)
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
        """Return the mean squared error between prediction and target of each sample.

        Args:
            clean: scaled vae_latents.
            captions: one per sample.
            timesteps: on the training grid.
            noise: standard normal.
            generator: source of the noise on the text states; None adds none.
        """
        prediction = self.predict(self.process.add_noise(clean, noise, timesteps), timesteps, captions, generator)
        return mean_squared_error(prediction, self.objective.target(clean, noise, timesteps))

    def predict(
        self,
        noised: Float[Tensor, "batch c h w"],
        timesteps: Int[Tensor, " batch"],
        captions: list[str],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch c h w"]:
        """Return the network's output for noised latents under captions; arguments as of `errors`."""
        text = self.text_encoder(self.token_ids(captions)).last_hidden_state
        if generator is not None:
            text = add_embedding_noise(text, captions, std=self.config.text_noise, generator=generator)
        prediction: Tensor = self.unet(noised, timesteps, text).sample
        return prediction

    def token_ids(self, captions: list[str]) -> Int[Tensor, "batch token"]:
        """Return the tokens of captions, padded or cut to `model.max_tokens`."""
        size = self.config.model.max_tokens
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, max_length=size, return_tensors="pt")
        ids: Tensor = tokens.input_ids.to(self.device)
        return ids

    def _regularized(
        self,
        clean: Float[Tensor, "batch c h w"],
        captions: list[str],
        numbers: Int[Tensor, " batch"],
        timesteps: Int[Tensor, " batch"],
        noise: Float[Tensor, "batch c h w"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, ""]]:
        """Return the error of each sample and the class-contrast term of the batch."""
        regularizer, classes, rule = self.regularizer, self.classes, self.config.classes
        assert regularizer is not None and classes is not None and rule is not None
        noised = self.process.add_noise(clean, noise, timesteps)
        prediction = self.predict(noised, timesteps, captions, generator)
        origins = regularizer.retarget(clean, noise, timesteps, numbers, generator)

        def under(latents: Tensor, steps: Tensor, of: Tensor) -> Tensor:
            return self.predict(latents, steps, [rule.caption(classes.names[k]) for k in of.tolist()], generator)

        term = regularizer.term(ClassBatch(noised, timesteps, numbers, prediction), under, generator)
        return mean_squared_error(prediction, self.objective.target(*origins, timesteps)), term

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay; text encoders have a learning rate of their own."""
        config = self.config
        rate = config.trainer.learning_rate or 1e-3
        denoiser, texts = self.trained_parts()
        groups = [{"params": list(denoiser.parameters()), "lr": rate}]
        if config.text_learning_rate > 0:
            parameters = [parameter for text in texts for parameter in text.parameters()]
            groups.append({"params": parameters, "lr": rate * config.text_learning_rate})
        total = total_steps(config.trainer, config.data, len(self._table("train")))
        return adamw_with_cosine(groups, config.trainer, rate=rate, beta2=0.99, warmup=config.warmup_steps, total=total)

    def trained_parts(self) -> tuple[Any, list[Any]]:
        """Return the denoiser and the text encoders."""
        return self.unet, [self.text_encoder]

    def save(self, folder: Path) -> None:
        """Write the pipeline in diffusers' format, with the weights as fp16 safetensors."""
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
        assert isinstance(source, ImageTableData)
        return source.train if split == "train" else source.val

    def _encoded(self, split: str, augmentation: AugmentationConfig) -> Float[Tensor, "sample view c h w"]:
        """Return the scaled latents of a split, on the CPU; they are encoded on the first call, where the U-Net is."""
        if split not in self._latents:
            table, factor = self._table(split), self.vae.config.scaling_factor
            parts = []
            self.vae.to(self.device)
            with torch.no_grad(), exact(self.device, "float32"):
                for rows in torch.arange(len(table)).split(64):
                    images, keys = table.to_float(rows), [table.keys[row] for row in rows.tolist()]
                    views = [
                        augmentation.apply(images, view, keys, self.config.seed) for view in range(augmentation.n_views)
                    ]
                    modes = [self.vae.encode(view.to(self.device) * 2 - 1).latent_dist.mode().cpu() for view in views]
                    parts.append(torch.stack(modes, dim=1))
            self._latents[split] = torch.cat(parts) * factor
        return self._latents[split]
