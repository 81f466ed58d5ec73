"""DifFeed (Mukhopadhyay et al., 2311.17921): classify a second pass of a frozen denoiser with fed-back features.

The feedback layers (`backbones/feedback.py`) and the attention head of the paper are trained through the denoiser,
which is frozen. Controls are trained in the same pass on the same batches: the same head on the first pass, which is
what no feedback gives, and DifFeed on a denoiser of random weights. The noise of an image is one draw, a function of
its key, in training too. Test images are all scored, in evaluation mode.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from diffprobe.backbones.base import Backbone, Checkpoint, LoadOptions
from diffprobe.backbones.device import exact
from diffprobe.backbones.differentiable import DifferentiableBackbone, readable
from diffprobe.backbones.families import describe
from diffprobe.backbones.feedback import FeedbackLayers, TwoPasses, feedback_pairs
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.loading import load_whole
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, EmptyClass, RunFailed, SplitLeak
from diffprobe.core.rng import derive_seed, noise_for
from diffprobe.generative.image_table import ImageTable, RowIndexDataset, RowIndexLoader, epoch_getter, load_table
from diffprobe.generative.lr_schedule import adamw_with_cosine, require_finite_loss, total_steps
from diffprobe.generative.pipeline_input import pipeline_checkpoint, pipeline_digest
from diffprobe.generative.run_settings import DenseCounts, GenerativeData, GenerativeModule, validate_settings
from diffprobe.probes.classifier.attention import AttentionConfig, PooledMaps
from diffprobe.shards.holdout import open_view

OWN, FIRST, RANDOM = "own", "first_pass", "random_weights"
"""The branches: DifFeed, its head on the first pass, and DifFeed on a denoiser of random weights."""


@dataclass(frozen=True, kw_only=True)
class DiffFeedTraining:
    """A classifier on fed-back features (experiment files of kind `train_difffeed`)."""

    experiment: str
    """Name of the experiment."""
    model: str
    """Pipeline folder in diffusers' format, hub id, or the name of a shipped model; a U-Net."""
    data: DataConfig
    """Images."""
    trainer: TrainerConfig
    """Length, precision, step size; without one it is 1e-4."""
    logger: LoggerConfig
    """Where curves go."""
    target: str = "label"
    """The class of the samples, or an attribute."""
    timestep: int = 150
    """Timestep to which images are noised; that of the paper."""
    read: str = ""
    """Tap of the second pass that is classified; empty for the last layer but one of the second up block (block 24 of
    the paper's network)."""
    controls: tuple[Literal["first_pass", "random_weights"], ...] = ("first_pass", "random_weights")
    """Heads that are trained beside it: on the first pass, and on a denoiser of random weights."""
    width: int = 1024
    """Width of the attention head."""
    heads: int = 8
    """Its attention heads."""
    blocks: int = 2
    """Its transformer blocks."""
    n_train: int = 4000
    """Training images, the first ones of the split."""
    n_val: int = 200
    """Validation images, the first ones."""
    n_test: int = 400
    """Test images, the first ones."""
    warmup_steps: int = 20
    """Steps over which the step size rises; a cosine to 0 follows."""
    seed: int = 0
    """Seed of heads, order, noise, and the random denoiser."""
    output: str = "runs"
    """Folder of runs."""
    ema_decay: float = 0.0
    """Not available: the weights of the last step are scored."""

    def __post_init__(self) -> None:
        validate_settings(self)
        at_least(2, n_train=self.n_train, n_val=self.n_val, n_test=self.n_test)
        at_least(0, timestep=self.timestep)
        if self.ema_decay:
            raise ConfigError("ema_decay has no effect: the weights of the last step are scored.", fix="ema_decay=0")
        if self.data.limit is not None:
            raise ConfigError("data.limit has no effect.", fix="n_train, n_val and n_test")
        if len(set(self.controls)) != len(self.controls):
            raise ConfigError(f"controls={list(self.controls)}: each once.")
        if self.read and "/" in self.read:
            raise ConfigError(f"read={self.read}: a feature map is classified, not a readout behind a slash.")
        _ = self.head  # refuses a width that its heads do not divide

    @property
    def head(self) -> AttentionConfig:
        """Sizes of the attention head."""
        return AttentionConfig(width=self.width, heads=self.heads, blocks=self.blocks)

    def checkpoint(self) -> Checkpoint:
        """Locate the model. Raises: WeightsMissing; WeightsMismatch for anything but a pipeline."""
        return pipeline_checkpoint(self.model, key="model")

    def require_weights(self) -> None:
        """Check the files of the model. Raises: WeightsMissing, WeightsMismatch."""
        self.input_digests()

    def input_digests(self) -> dict[str, str]:
        """Return the digest of the model. Raises: WeightsMissing, WeightsMismatch."""
        return {"model": pipeline_digest(self.checkpoint())}

    def make(self) -> "tuple[DiffFeedModule, LabelledData]":
        """Build the module and its images. Raises: what reading weights and shards raises."""
        _, spec = describe(self.checkpoint(), None)
        data = LabelledData(self, spec.resolution)
        return DiffFeedModule(self, data.classes), data


class LabelledData(GenerativeData):
    """Tables of train, val and test with the class of each sample; batches are row indices.

    Raises: EmptyClass for fewer than two classes; ConfigError for a sample without a value, with one that no training
        sample has, or fewer training samples than a batch; SplitLeak for a group in two splits.
    """

    def __init__(self, config: DiffFeedTraining, resolution: int) -> None:
        super().__init__()
        data = config.data
        names = {"train": data.train_split, "val": data.val_split, "test": data.test_split}
        sizes = {"train": config.n_train, "val": config.n_val, "test": config.n_test}
        self.tables = {
            name: load_table(replace(data, limit=sizes[name]), split, resolution=resolution)
            for name, split in names.items()
        }
        self.data, self.seed, group = data, config.seed, open_view(data).group
        self.groups = {name: table.groups(group) for name, table in self.tables.items()}
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = set(self.groups[one]) & set(self.groups[other])
            if shared:
                raise SplitLeak(f"group '{min(shared)}' has images in the {one} split and in the {other} split.")
        self.classes = tuple(sorted({value for value in _values(self.tables["train"], config.target) if value}))
        if len(self.classes) < 2:
            raise EmptyClass(f"target '{config.target}' has {len(self.classes)} classes in the training images.")
        place = {name: number for number, name in enumerate(self.classes)}
        self.labels: dict[str, Tensor] = {}
        for name, table in self.tables.items():
            found = _values(table, config.target)
            for key, value in zip(table.keys, found, strict=True):
                if value not in place:
                    raise ConfigError(
                        f"sample '{key}' of the {name} split has '{value}' as {config.target}, which "
                        "no training image has.",
                        fix="a larger n_train, or a target that every sample has",
                    )
            self.labels[name] = torch.tensor([place[value] for value in found])
        if len(self.tables["train"]) < data.batch_size:
            raise ConfigError(f"data.batch_size={data.batch_size} is more than the training samples.")
        self.val = self.tables["val"].keys

    def train_dataloader(self) -> RowIndexLoader:
        """Return shuffled batches of row indices; an incomplete last batch is dropped."""
        n = len(self.tables["train"])
        return RowIndexLoader(n, self.data.batch_size, seed=self.seed, epoch=epoch_getter(self))

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return all validation rows in order."""
        return DataLoader(RowIndexDataset(len(self.val)), batch_size=self.data.batch_size)


def _values(table: ImageTable, target: str) -> list[str]:
    if target == "label":
        return table.class_names
    return [sample.get(target, "") for sample in table.attributes]


class DiffFeedModule(GenerativeModule):
    """Trains feedback layers and heads; the denoisers are in no checkpoint.

    Raises: WeightsMissing, WeightsMismatch, UnknownTap, BadTimestep; ConfigError for a denoiser that is not a U-Net.
    """

    result_kind = "train_difffeed"

    def __init__(self, config: DiffFeedTraining, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.config, self.classes = config, classes
        checkpoint = config.checkpoint()
        family, self.spec = describe(checkpoint, None)
        self.spec.schedule.check([config.timestep], checkpoint.name)
        pairs = feedback_pairs(list(readable(self.spec)))
        wanted = config.read or list(pairs)[min(1, len(pairs) - 1)]
        passes: dict[str, TwoPasses] = {}
        seeds: dict[str, int | None] = {OWN: None}
        if "random_weights" in config.controls:
            seeds[RANDOM] = config.seed
        for name, random_seed in seeds.items():
            with quiet_libraries():
                backbone = load_whole(checkpoint, family, self.spec, LoadOptions(random_seed=random_seed))
            alone = DifferentiableBackbone(backbone, self.spec, taps=[wanted], checkpointing=False).paths
            if len(alone) != 1:
                raise ConfigError(f"read={wanted} names {len(alone)} taps; one is classified.")
            reader = DifferentiableBackbone(backbone, self.spec, taps=[*pairs, wanted], checkpointing=False)
            passes[name] = TwoPasses(reader, pairs, alone[0])
        # In a tuple, so that checkpoints do not contain the denoisers.
        self._passes = (passes,)
        self.digests = {name: one.reader.digest() for name, one in passes.items()}
        info = passes[OWN].reader.infos[passes[OWN].read]
        shape = (info.channels, *info.size)
        self.heads, self.feedback = nn.ModuleDict(), nn.ModuleDict()
        for name in (OWN, *config.controls):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive_seed("head", config.seed))
                self.heads[name] = PooledMaps([{"": ""}], {"": shape}, len(classes), config.head)
                if name in passes:
                    self.feedback[name] = FeedbackLayers(passes[name].widths)

    @property
    def passes(self) -> dict[str, TwoPasses]:
        """The two passes of each denoiser."""
        return self._passes[0]

    def on_fit_start(self) -> None:
        """Move the frozen networks to the device of the run."""
        for one in self.passes.values():
            one.reader.backbone.to(self.device)

    def logits(self, split: str, rows: Tensor) -> dict[str, Float[Tensor, "batch n_classes"]]:
        """Return the logits of some rows, by branch."""
        found = {}
        for name, one in self.passes.items():
            given = self._inputs(one.reader.backbone, split, rows)
            first = one.first(*given)
            layers: Any = self.feedback[name]
            found[name] = self.heads[name]({"": one.second(layers, first, *given)})
            if name == OWN and FIRST in self.config.controls:
                found[FIRST] = self.heads[FIRST]({"": first[one.read]})
        return found

    def _inputs(self, backbone: Backbone, split: str, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return noised latents, timesteps and the empty condition."""
        config, table, chosen = self.config, self._data.tables[split], rows.cpu()
        with torch.no_grad(), exact(self.device, "float32"):
            clean = backbone.encode_images(table.to_float(chosen).to(self.device))
            keys = [table.keys[row] for row in chosen.tolist()]
            noise = torch.stack([noise_for(config.seed, key, 0, tuple(clean.shape[1:])) for key in keys])
            timesteps = torch.full((len(keys),), config.timestep, device=self.device)
            condition = backbone.encode_conditions([None] * len(keys))
            return self.spec.schedule.add(clean, noise.to(clean), timesteps), timesteps, condition

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the sum of the losses of all branches on a batch of row indices."""
        label = self._data.labels["train"][rows.cpu()].to(self.device)
        losses = {name: cross_entropy(found, label) for name, found in self.logits("train", rows).items()}
        for name, loss in losses.items():
            require_finite_loss(loss.detach(), self.global_step)
            self.log(f"train/{'loss' if name == OWN else f'loss_{name}'}", loss.detach(), prog_bar=name == OWN)
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the losses of a batch of validation rows."""
        label = self._data.labels["val"][rows.cpu()].to(self.device)
        for name, found in self.logits("val", rows).items():
            key = f"val/{'loss' if name == OWN else f'loss_{name}'}"
            self.log(key, cross_entropy(found, label), batch_size=len(rows), sync_dist=True)

    def configure_gradient_clipping(self, optimizer: Any, *rest: Any, **limits: Any) -> None:
        """Clip the gradient of each branch by itself, so that a branch does not depend on the others."""
        limit = self.config.trainer.gradient_clip
        for name, head in self.heads.items() if limit else ():
            layers = [self.feedback[name]] if name in self.feedback else []
            own = [p for part in (head, *layers) for p in part.parameters()]
            nn.utils.clip_grad_norm_(own, float(limit or 0))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay; the paper's code has SGD with 0.01 on four GPUs."""
        config = self.config
        total = total_steps(config.trainer, config.data, len(self._data.tables["train"]))
        rate = config.trainer.learning_rate or 1e-4
        return adamw_with_cosine(
            self.parameters(), config.trainer, rate=rate, beta2=0.999, warmup=config.warmup_steps, total=total
        )

    def save(self, folder: Path) -> None:
        """Write heads and feedback layers as safetensors, and score the test images.

        Raises: RunFailed if frozen weights have changed.
        """
        from safetensors.torch import save_file

        for name, one in self.passes.items():
            if one.reader.digest() != self.digests[name]:
                raise RunFailed(f"the frozen weights of branch '{name}' have changed.", "this is a bug in diffprobe")
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in self.state_dict().items()}
        save_file(tensors, folder / "difffeed.safetensors")
        self.dense_counts = self.score()

    @torch.no_grad()
    def score(self) -> DenseCounts:
        """Return 1 or 0 of each test image, of each branch, in evaluation mode."""
        training = self.training
        self.eval()
        right: dict[str, list[Tensor]] = {}
        labels = self._data.labels["test"]
        for rows in torch.arange(len(labels)).split(self.config.data.batch_size):
            for name, found in self.logits("test", rows).items():
                right.setdefault(name, []).append((found.argmax(1).cpu() == labels[rows]).double())
        self.train(training)
        counts = {name: np.asarray(torch.cat(parts).numpy()) for name, parts in right.items()}
        return DenseCounts(
            task="classification", probe="difffeed", groups=self._data.groups["test"], classes=self.classes,
            own=counts.pop(OWN), controls=counts,
        )  # fmt: skip

    @property
    def _data(self) -> LabelledData:
        source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(source, LabelledData)
        return source
