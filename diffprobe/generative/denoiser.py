"""Training of a small latent text-to-image diffusion model: U-Net and text encoder together.

The target and the weight of the loss come from an objective (`objectives/`). The result is an ordinary
StableDiffusionPipeline folder. With `transformer` the network is that of Stable Diffusion 3 (`flow_denoiser.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.backbones.device import exact
from diffprobe.backbones.loading import load_network
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.rng import derive_seed
from diffprobe.generative.architectures import (
    BetaSchedule,
    make_text_encoder,
    make_unet,
    open_text_encoder,
    open_unet,
    require_autoencoder,
    require_schedule,
    weights_folder,
)  # fmt: skip
from diffprobe.generative.augmentation import AugmentationConfig
from diffprobe.generative.caption_dropout import CaptionVocabulary, choose_captions
from diffprobe.generative.denoiser_settings import DenoiserSettings
from diffprobe.generative.embedding_noise import add_embedding_noise
from diffprobe.generative.export import save_pipeline
from diffprobe.generative.held_out_noise import held_out_noise
from diffprobe.generative.image_table import ImageTable, ImageTableData, load_table
from diffprobe.generative.long_tail import class_counts, class_numbers, shots, training_classes
from diffprobe.generative.low_rank_reserve import merged
from diffprobe.generative.lr_schedule import adamw_with_cosine, require_finite_loss, total_steps
from diffprobe.generative.objectives.base import (
    ForwardProcess,
    Objective,
    compute_loss,
    declared_process,
    make_objective,
    mean_squared_error,
)
from diffprobe.generative.probed_training import TrainingProbes
from diffprobe.generative.regularizers.base import (
    ClassBatch,
    Regularizer,
    TrainingClasses,
    make_regularizer,
)
from diffprobe.generative.run_settings import GenerativeModule
from diffprobe.generative.snapshots import Snapshots
from diffprobe.generative.tokenizer import train_tokenizer


def _process_of(config: DenoiserSettings) -> tuple[ForwardProcess, Objective, Any]:
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

    def __init__(self, config: DenoiserSettings) -> None:
        super().__init__()
        vae = load_network("AutoencoderKL", require_autoencoder(config.autoencoder))
        # In a tuple, so that neither checkpoints nor the averaged weights contain the frozen network.
        self._frozen = (vae.requires_grad_(False),)
        self.config = config
        self.process, self.objective, self.scheduler = _process_of(config)
        self._latents: dict[str, Tensor] = {}
        self.classes: TrainingClasses | None = None
        self.regularizer: Regularizer | None = None
        self.regularizer_head: nn.Module | None = None
        self._decoded: ImageTable | None = None
        self._build()

    def image_data(self) -> ImageTableData:
        """Return the captioned images of the run; a split that the vocabulary was learnt from is not read again.

        Raises: what reading shards raises.
        """
        config, decoded, self._decoded = self.config, self._decoded, None
        return ImageTableData(
            config.data, resolution=self.resolution, seed=config.seed, captioned=True, balance=self.balance,
            classes=config.classes, train=decoded,
        )  # fmt: skip

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
            channels, seed = int(self.unet.config.block_out_channels[-1]), derive_seed("head", config.seed)
            self.regularizer_head = self.regularizer.make_head(channels, seed)
            self.regularizer.change_network(self.unet, derive_seed("reserve", config.seed))
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
        self._decoded = table
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
        with self._read_mid_block() as outputs:
            prediction = self.predict(noised, timesteps, captions, generator)
        embedding = None if self.regularizer_head is None else self.regularizer_head(outputs[-1])
        origins = regularizer.retarget(clean, noise, timesteps, numbers, generator)

        def under(latents: Tensor, steps: Tensor, of: Tensor) -> Tensor:
            return self.predict(latents, steps, [rule.caption(classes.names[k]) for k in of.tolist()], generator)

        term = regularizer.term(ClassBatch(noised, timesteps, numbers, prediction, embedding), under, generator)
        return mean_squared_error(prediction, self.objective.target(*origins, timesteps)), term

    @contextmanager
    def _read_mid_block(self) -> Iterator[list[Tensor]]:
        """Collect the outputs of the U-Net's mid block, if the regularizer has a head."""
        outputs: list[Tensor] = []
        if self.regularizer_head is None:
            yield outputs
            return
        handle = self.unet.mid_block.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            yield outputs
        finally:
            handle.remove()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay; text encoders have a learning rate of their own."""
        config = self.config
        rate = config.trainer.learning_rate or 1e-3
        denoiser, texts = self.trained_parts()
        groups = [{"params": list(denoiser.parameters()), "lr": rate}]
        if config.text_learning_rate > 0:
            parameters = [parameter for text in texts for parameter in text.parameters()]
            groups.append({"params": parameters, "lr": rate * config.text_learning_rate})
        groups += [{"params": list(head.parameters()), "lr": rate} for head in self.trained_heads()]
        total = total_steps(config.trainer, config.data, len(self._table("train")))
        return adamw_with_cosine(groups, config.trainer, rate=rate, beta2=0.99, warmup=config.warmup_steps, total=total)

    def configure_callbacks(self) -> list[Callback]:
        """Return what measures and saves the module during training; the same objects at each call."""
        return self._measuring

    @cached_property
    def _measuring(self) -> list[Callback]:
        probes, every = self.config.probes, self.config.snapshot_every_steps
        measured = [] if probes is None else [TrainingProbes(probes, random_start=self.config.init_from is None)]
        return [*measured, *([] if every is None else [Snapshots(every)])]

    def trained_parts(self) -> tuple[Any, list[Any]]:
        """Return the denoiser and the text encoders."""
        return self.unet, [self.text_encoder]

    def trained_heads(self) -> list[nn.Module]:
        """Return networks that are trained with the denoiser and not saved with it."""
        return [] if self.regularizer_head is None else [self.regularizer_head]

    def save(self, folder: Path) -> None:
        """Write the pipeline in diffusers' format, with the weights as fp16 safetensors."""
        save_pipeline(
            folder,
            vae=self.vae,
            unet=merged(self.unet),
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
