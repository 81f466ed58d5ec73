"""Train a LLaVA on captions, and measure on held-out captions what its visual tokens are worth."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn import functional

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.core.rng import derive_seed
from diffprobe.generative.lr_schedule import adamw_with_cosine, require_finite_loss
from diffprobe.generative.run_settings import GenerativeModule, HeldOutLosses
from diffprobe.generative.visual_tower.assembly import PROJECTORS, assemble, load_projectors, make_language_model
from diffprobe.generative.visual_tower.data import TowerBatch, TowerData
from diffprobe.generative.visual_tower.projector import interleave
from diffprobe.generative.visual_tower.sequences import IGNORED, CaptionSequences, TokenBatch
from diffprobe.generative.visual_tower.settings import VisualTowerSettings

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the channels with which CLIP's images are normalised (2103.00020)."""
BOTH, CLIP, DIFFUSION = "image_tokens", "clip_tokens", "diffusion_tokens"
NO_TOKENS, ALONE = "no_image_tokens", "language_model_alone"
"""Controls: the trained model with a prompt without image tokens; a language model that was trained without any."""


class VisualTowerModule(GenerativeModule):
    """Trains the projectors, and with `train: all` the language model, by the cross-entropy of captions.

    CLIP is frozen, and frozen parameters are left out of checkpoints. After training, `held_out` has the losses of
    validation captions with tokens ablated.

    Args:
        config: configuration of the run.
        data: its images; the vocabulary of a tiny language model is learnt from the training captions.
    Raises: ConfigError, SampleError for captions that are too long, and the errors of loading the parts.
    """

    result_kind = "train_visual_tower"

    def __init__(self, config: VisualTowerSettings, data: TowerData) -> None:
        super().__init__()
        self.config, self.accumulation = config, config.accumulation
        self._data = (data,)
        tap = config.plan.taps[0]
        seed = derive_seed("weights", config.seed)
        language, self.tokenizer = make_language_model(
            config.language_model, config.tiny, data.captions[config.data.train_split].values(), seed=seed
        )
        self.alone = copy.deepcopy(language).requires_grad_(True) if config.language_model_alone else None
        self.llava = assemble(
            language, self.tokenizer, clip=config.clip, tiny=config.tiny, channels=tap.channels, size=tap.size,
            width=config.diffusion_width, seed=derive_seed("projectors", config.seed),
        )  # fmt: skip
        if config.init_from is not None:
            load_projectors(self.llava, Path(config.init_from).expanduser())
        for name in PROJECTORS:
            getattr(self.llava.model, name).requires_grad_(True)
        if config.train == "all":
            self.llava.model.language_model.requires_grad_(True)
            self.llava.lm_head.requires_grad_(True)
        self.llava.train()
        if config.gradient_checkpointing:
            self.llava.model.language_model.gradient_checkpointing_enable()
        self.sequences = CaptionSequences(
            self.tokenizer, image_token_id=self.llava.config.image_token_id,
            n_visual=self.llava.config.image_seq_length, prompt=config.prompt, max_length=config.max_length,
        )  # fmt: skip
        for captions in data.captions.values():
            self.sequences.require_fitting(captions)
        self._tokens: list[tuple[Tensor, Tensor]] = []
        self._keys: list[str] = []
        self._captions: list[str] = []

    def pixels(self, images: Float[Tensor, "batch 3 side side"]) -> Float[Tensor, "batch 3 clip_side clip_side"]:
        """Return images in [0, 1] at CLIP's resolution, normalised as CLIP's processor does."""
        vision: Any = self.llava.config.vision_config
        side = vision.image_size
        if images.shape[-1] != side:
            images = functional.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(x, device=images.device).view(1, 3, 1, 1) for x in (_MEAN, _STD))
        return (images - mean) / std

    def training_step(self, batch: TowerBatch, batch_idx: int) -> Tensor:
        """Return the mean loss of the captions' tokens, with that of the language model alone if there is one."""
        tokens = self.sequences(batch.captions).to(self.device)
        loss: Tensor = self.llava(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, labels=tokens.labels,
            pixel_values=self.pixels(batch.images), diffusion_features=batch.maps, use_cache=False,
        ).loss  # fmt: skip
        require_finite_loss(loss.detach(), self.global_step)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        if self.alone is None:
            return loss
        text = self.sequences(batch.captions, image=False).to(self.device)
        alone: Tensor = self.alone(
            input_ids=text.input_ids, attention_mask=text.attention_mask, labels=text.labels, use_cache=False
        ).loss
        self.log("train/loss_alone", alone.detach(), batch_size=len(batch))
        return loss + alone  # of separate parameters: neither changes the other's gradients

    def on_train_batch_start(self, batch: TowerBatch, batch_idx: int) -> None:
        """Keep the frozen CLIP in evaluation mode."""
        self.llava.model.vision_tower.eval()

    def validation_step(self, batch: TowerBatch, batch_idx: int) -> None:
        """Log the mean loss per caption; in the validation after training, keep the tokens for the ablations."""
        clip = self.llava.model.clip_tokens(self.pixels(batch.images))
        diffusion = self.llava.model.diffusion_tokens(batch.maps)
        losses = self.caption_losses(batch.captions, interleave(clip, diffusion))
        self.log("val/loss", losses.mean(), prog_bar=True, batch_size=len(batch))
        n = self.config.held_out - len(self._keys)
        if self.trainer.state.fn == TrainerFn.VALIDATING and n > 0:
            self._tokens.append((clip[:n].cpu(), diffusion[:n].cpu()))
            self._keys += batch.keys[:n]
            self._captions += batch.captions[:n]

    def on_validation_epoch_end(self) -> None:
        """Ablate tokens, after training only."""
        if self._tokens:
            with self.trainer.precision_plugin.forward_context():  # Lightning sets it within steps alone
                self.held_out = self._ablate()
            self._tokens, self._keys, self._captions = [], [], []

    def caption_losses(
        self, captions: list[str], visual: Float[Tensor, "batch token hidden"] | None
    ) -> Float[Tensor, " batch"]:
        """Return the mean cross-entropy of each caption's tokens, its end included, in nats.

        Args:
            captions: one per image.
            visual: interleaved tokens; None for a prompt without image tokens.
        """
        tokens = self.sequences(captions, image=visual is not None).to(self.device)
        embeddings = self.llava.model.embed(tokens.input_ids, visual)
        logits = self.llava(inputs_embeds=embeddings, attention_mask=tokens.attention_mask, use_cache=False).logits
        return _per_caption(logits, tokens)

    def _ablate(self) -> HeldOutLosses:
        """Return the losses of the kept captions, whole and with tokens replaced.

        Tokens are replaced by their mean over the images, position by position, or by those of an image of another
        group.
        """
        clip, diffusion = (torch.cat(parts) for parts in zip(*self._tokens, strict=True))
        groups = [self._data[0].groups[key] for key in self._keys]
        other = rows_of_other_groups(groups, seed=self.config.seed)
        mean_clip, mean_diffusion = (x.mean(0, keepdim=True).expand_as(x) for x in (clip, diffusion))
        forms = {
            BOTH: (clip, diffusion),
            f"{DIFFUSION}_mean": (clip, mean_diffusion),
            f"{DIFFUSION}_shuffled": (clip, diffusion[other]),
            f"{CLIP}_mean": (mean_clip, diffusion),
            f"{CLIP}_shuffled": (clip[other], diffusion),
            f"{BOTH}_mean": (mean_clip, mean_diffusion),
            f"{BOTH}_shuffled": (clip[other], diffusion[other]),
        }
        losses: dict[str, list[Tensor]] = {name: [] for name in (*forms, NO_TOKENS, ALONE)}
        for rows in torch.arange(len(self._keys)).split(self.config.data.batch_size):
            captions = [self._captions[row] for row in rows.tolist()]
            for name, (one, two) in forms.items():
                visual = interleave(one[rows].to(self.device), two[rows].to(self.device))
                losses[name].append(self.caption_losses(captions, visual).cpu())
            losses[NO_TOKENS].append(self.caption_losses(captions, None).cpu())
            if self.alone is not None:
                text = self.sequences(captions, image=False).to(self.device)
                logits = self.alone(input_ids=text.input_ids, attention_mask=text.attention_mask).logits
                losses[ALONE].append(_per_caption(logits, text).cpu())
        found = {name: torch.cat(parts).double().tolist() for name, parts in losses.items() if parts}
        return HeldOutLosses(whole=found.pop(BOTH), changed=found, controls=(NO_TOKENS, ALONE), groups=groups)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay over the parameters that are trained."""
        trainer, n = self.config.trainer, len(self._data[0].train_dataloader())
        total = trainer.max_epochs * math.ceil(n / self.accumulation)
        total = min(total, trainer.max_steps) if trainer.max_steps > 0 else total
        return adamw_with_cosine(
            [parameter for parameter in self.parameters() if parameter.requires_grad],
            trainer,
            rate=trainer.learning_rate or 2e-5,
            beta2=0.999,
            warmup=math.ceil(self.config.warmup_ratio * total),
            total=total,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave frozen weights out: a resumed run reads them from where the first one did."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {name: x for name, x in checkpoint["state_dict"].items() if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Complete the weights by the frozen ones, which are in the module already."""
        saved: Mapping[str, Tensor] = checkpoint["state_dict"]
        checkpoint["state_dict"] = {**self.state_dict(), **saved}

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in transformers' format, the weights as safetensors."""
        llava: Any = self.llava
        with quiet_libraries():
            llava.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True, kw_only=True)
class VisualTowerTraining(VisualTowerSettings):
    """A training run of a LLaVA with diffusion tokens (experiment files of kind `train_visual_tower`)."""

    def make(self) -> tuple[VisualTowerModule, TowerData]:
        """Build the module and its images. Raises: the errors of reading weights, images and captions."""
        data = TowerData(self)
        return VisualTowerModule(self, data), data


def _per_caption(logits: Float[Tensor, "row position entry"], tokens: TokenBatch) -> Float[Tensor, " row"]:
    """Return the mean cross-entropy of the labelled tokens of each row, in nats."""
    labels = tokens.labels[:, 1:]
    losses = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none"
    )
    return losses.sum(1) / (labels != IGNORED).sum(1)


def rows_of_other_groups(groups: list[str], *, seed: int) -> Tensor:
    """Return, per sample, the row of a sample of another group; each row is taken once.

    A seeded order in which groups are contiguous is shifted by the size of the largest group, so that no sample meets
    its own group unless that has more than half of the samples; then some do.
    """
    generator = torch.Generator().manual_seed(derive_seed("shuffled images", seed))
    mixed = torch.randperm(len(groups), generator=generator).tolist()
    first = {group: place for place, group in reversed(list(enumerate(groups[row] for row in mixed)))}
    order = sorted(mixed, key=lambda row: first[groups[row]])
    largest = max(groups.count(group) for group in set(groups))
    found = torch.empty(len(groups), dtype=torch.long)
    found[torch.tensor(order)] = torch.tensor(order).roll(largest)
    return found
