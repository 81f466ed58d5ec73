"""VPD: segmentation, referring segmentation and depth through a diffusion model (Zhao et al., 2303.02153).

The image's latent passes the denoiser once. A pyramid of its up blocks, with cross-attention maps of the text appended
(not for depth), goes through a small head; the gradient reaches a text adapter through the denoiser, or the denoiser
too. Heads of the controls are trained in the same pass on the same batches, each with its own parameters, so that a
comparison is paired. Text: one embedding per class for segmentation, all states of the text for referring, the
embedding of the sample's class for depth. The embedding of a text is its state at the end token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from diffprobe.backbones.base import Backbone, BackboneSpec, LoadOptions
from diffprobe.backbones.device import exact
from diffprobe.backbones.differentiable import DifferentiableBackbone, cross_attentions, readable
from diffprobe.backbones.families import describe
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.text_encoders import ClipTextEncoder
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.rng import derive_seed, noise_for
from diffprobe.generative.dense_table import DenseTable, DenseTableData, load_dense
from diffprobe.generative.lr_schedule import require_finite_loss, total_steps
from diffprobe.generative.run_settings import DenseCounts, GenerativeModule
from diffprobe.generative.vpd_settings import Switch, VpdSettings
from diffprobe.metrics.dense import depth_sums, image_confusion
from diffprobe.probes.dense.vpd import (
    DepthHead,
    SemanticFpn,
    TextAdapter,
    join_pyramid,
    pyramid_channels,
    pyramid_taps,
    silog_loss,
)
from diffprobe.shards.class_maps import IGNORED

OWN = "own"
"""The branch that is trained as the switch says; the others are controls."""
REFERRING_WEIGHTS = (0.9, 1.1)
"""Weights of the classes of referring segmentation in the released code: other pixels, and those that are meant."""
_STATES = "encoder_hidden_states"


class Branch(nn.Module):
    """A head with its denoiser, and its text adapter if it has one.

    Args:
        reader: reads the denoiser; its weights are in no checkpoint unless they are trained.
        adapter: of the text states, None for none.
        head: takes the levels of the pyramid.
        switch: what is trained.
    """

    def __init__(self, reader: DifferentiableBackbone, adapter: TextAdapter | None, head: nn.Module, switch: Switch):
        super().__init__()
        self.adapter, self.head, self.switch = adapter, head, switch
        self._reader = (reader,)
        self.denoiser = reader.backbone.denoiser if switch == "finetune" else None

    @property
    def reader(self) -> DifferentiableBackbone:
        """What reads the denoiser."""
        return self._reader[0]

    def forward(
        self, x: Float[Tensor, "batch c h w"], timesteps: Int[Tensor, " batch"], states: Float[Tensor, "batch n d"]
    ) -> Float[Tensor, "batch outputs height width"]:
        """Return what the head makes of the pyramid."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.switch != "frozen"):
            adapted = states if self.adapter is None else self.adapter(states)
            reading = self.reader(x, timesteps, {_STATES: adapted})
        maps = list(reading.maps.values())[::-1]  # the last one is the finest
        return self.head(join_pyramid(maps, reading.attention))  # type: ignore[no-any-return]


class VpdModule(GenerativeModule):
    """Trains the head of each branch, and what the switch names. VAE and text encoder are in no checkpoint.

    Randomness is a function of (seed, step), so a resumed run equals an uninterrupted one.

    Raises: WeightsMissing, WeightsMismatch, UnknownTap, BadTimestep; ConfigError for a backbone without a text encoder,
        without cross-attention, or without up blocks.
    """

    result_kind = "train_vpd"

    def __init__(self, config: VpdSettings) -> None:
        super().__init__()
        self.config = config
        checkpoint = config.checkpoint()
        family, self.spec = describe(checkpoint, None)
        spec: BackboneSpec = self.spec
        spec.schedule.check([config.timestep], checkpoint.name)
        if "caption" not in spec.conditions:
            raise ConfigError(
                f"backbone '{checkpoint.name}' (family {spec.family}) has no text encoder: VPD adapts its states.",
                "needed: a U-Net with cross-attention to a text (Stable Diffusion)",
            )
        every = cross_attentions(spec)
        self.taps = config.taps or pyramid_taps(list(readable(spec)))
        finest = readable(spec)[self.taps[0]].size if not config.taps else None
        sizes = {path: readable(spec)[f"{path}/probs"].size for path in every}
        attention = [path for path in every if config.attention_maps and sizes[path] != finest]
        switches: dict[str, tuple[Switch, int | None]] = {OWN: (config.switch, None)}
        if "frozen" in config.controls:
            switches["frozen"] = ("frozen", None)
        if "random_weights" in config.controls:
            switches["random_weights"] = (config.switch, config.seed)
        self.branches = nn.ModuleDict()
        shared: Backbone | None = None
        for name, (switch, random_seed) in switches.items():
            if switch == "finetune" or random_seed is not None or shared is None:
                with quiet_libraries():
                    backbone = load_whole(checkpoint, family, spec, LoadOptions(random_seed=random_seed))
            else:
                backbone = shared  # two branches whose denoiser is frozen need one
            if switch != "finetune" and random_seed is None:
                shared = backbone
            reader = DifferentiableBackbone(
                backbone, spec, taps=self.taps, attention=attention, trainable=switch == "finetune",
                checkpointing=config.checkpointing,  # without gradients nothing is computed again
            )  # fmt: skip
            self.branches[name] = self._branch(reader, switch)
        text = getattr(self._own.reader.backbone, "texts", {}).get("text_encoder")
        if not isinstance(text, ClipTextEncoder) or len(self._own.reader.backbone.texts) != 1:  # type: ignore[attr-defined]
            raise ConfigError(f"backbone '{checkpoint.name}': VPD needs one CLIP text encoder.")
        # In a tuple, so that checkpoints do not contain it.
        self._text = (text,)
        self.digests = {name: branch.reader.digest() for name, branch in self._all() if branch.switch != "finetune"}
        self._embedded: dict[str, Tensor] = {}

    def _branch(self, reader: DifferentiableBackbone, switch: Switch) -> Branch:
        """Make a branch; all heads start from the same weights where their shapes are equal."""
        config = self.config
        levels = [(reader.infos[path].channels, reader.infos[path].size) for path in reader.paths[::-1]]
        sizes = [readable(self.spec)[f"{path}/probs"].size for path in reader.attention]
        channels = pyramid_channels(levels, sizes, self.n_tokens)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("head", config.seed))
            head: nn.Module
            if config.task == "depth":
                head = DepthHead(channels, max_depth=config.max_depth, width=config.head_width)
            else:
                n_outputs = 2 if config.task == "referring" else len(config.classes)
                head = SemanticFpn(channels, n_outputs, width=config.head_width)
            network: Any = reader.backbone.denoiser
            width = int(network.config.cross_attention_dim)
            adapter = TextAdapter(width, gamma=config.gamma) if switch != "frozen" else None
        return Branch(reader, adapter, head, switch)

    @property
    def n_tokens(self) -> int:
        """Number of text tokens that the denoiser attends to."""
        if self.config.task == "segmentation":
            return len(self.config.classes)
        if self.config.task == "depth":
            return 1
        infos = readable(self.spec)
        return next(info.channels for path, info in infos.items() if path.endswith("/probs"))

    @property
    def _own(self) -> Branch:
        found = self.branches[OWN]
        assert isinstance(found, Branch)
        return found

    def _all(self) -> list[tuple[str, Branch]]:
        return [(name, branch) for name, branch in self.branches.items() if isinstance(branch, Branch)]

    def on_fit_start(self) -> None:
        """Move the frozen networks to the device of the run."""
        for _, branch in self._all():
            branch.reader.backbone.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Keep a trained denoiser in evaluation mode: dropout would be noise on the features."""
        for _, branch in self._all():
            branch.reader.backbone.denoiser.eval()

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the sum of the losses of all branches on a batch of row indices."""
        table = self._data.train
        inputs = self._inputs(table, rows)
        truth = table.truth[rows.cpu()].to(self.device)
        losses = {name: self.loss(branch(*inputs), truth) for name, branch in self._all()}
        for name, loss in losses.items():
            require_finite_loss(loss.detach(), self.global_step)
            self.log(f"train/{'loss' if name == OWN else f'loss_{name}'}", loss.detach(), prog_bar=name == OWN)
        return torch.stack(list(losses.values())).sum()

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the losses of a batch of validation rows."""
        table = self._data.val
        inputs = self._inputs(table, rows)
        truth = table.truth[rows.cpu()].to(self.device)
        for name, branch in self._all():
            loss = self.loss(branch(*inputs), truth)
            self.log(f"val/{'loss' if name == OWN else f'loss_{name}'}", loss, batch_size=len(rows), sync_dist=True)

    def loss(
        self, output: Float[Tensor, "batch outputs _ _"], truth: Shaped[Tensor, "batch height width"]
    ) -> Float[Tensor, ""]:
        """Return the loss of a batch at the size of the truth: cross-entropy, or SILog of depth."""
        resized = _to_size(output, truth)
        if self.config.task == "depth":
            return silog_loss(resized[:, 0], truth.float())
        weight = torch.tensor(REFERRING_WEIGHTS, device=resized.device) if self.config.task == "referring" else None
        return cross_entropy(resized, truth.long(), weight=weight, ignore_index=IGNORED)

    def _inputs(self, table: DenseTable, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return latents, timesteps and text states of some rows."""
        config, chosen = self.config, rows.cpu()
        with torch.no_grad(), exact(self.device, "float32"):
            backbone = self._own.reader.backbone
            clean = backbone.encode_images(table.to_float(chosen).to(self.device))
            timesteps = torch.full((len(chosen),), config.timestep, device=self.device)
            x = clean
            if config.add_noise:
                keys = [table.keys[row] for row in chosen.tolist()]
                noise = torch.stack([noise_for(config.seed, key, 0, tuple(clean.shape[1:])) for key in keys])
                x = self.spec.schedule.add(clean, noise.to(clean), timesteps)
            if not config.scale_latents:
                x = unscaled(backbone, x)
            states = self._states([table.texts[row] for row in chosen.tolist()])
        return x, timesteps, states

    def _states(self, texts: Sequence[str]) -> Float[Tensor, "batch tokens width"]:
        """Return the text states of samples."""
        config = self.config
        if config.task == "segmentation":
            classes = torch.stack([self._class_embedding(name) for name in config.classes])
            return classes.expand(len(texts), -1, -1)
        if config.task == "depth":
            return torch.stack([self._class_embedding(name)[None] for name in texts])
        return self._own.reader.backbone.encode_conditions(list(texts))[_STATES]

    def _class_embedding(self, name: str) -> Float[Tensor, " width"]:
        """Return the mean embedding of the texts of a class, each at its end token."""
        if name not in self._embedded:
            filled = [pattern.format(name.replace("_", " ")) for pattern in self.config.prompts]
            self._embedded[name] = end_states(self._text[0], filled).mean(0)
        return self._embedded[name].to(self.device)

    def configure_gradient_clipping(self, optimizer: Any, *rest: Any, **limits: Any) -> None:
        """Clip the gradient of each branch by itself, so that a branch does not depend on the others."""
        limit = self.config.trainer.gradient_clip
        if limit:
            for _, branch in self._all():
                nn.utils.clip_grad_norm_([p for p in branch.parameters() if p.requires_grad], limit)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and linear decay; the denoiser has a smaller step size."""
        config = self.config
        rate = config.trainer.learning_rate or 8e-5
        denoisers = [p for _, one in self._all() if one.denoiser is not None for p in one.denoiser.parameters()]
        slower = {id(p) for p in denoisers}
        groups: list[dict[str, Any]] = [{"params": [p for p in self.parameters() if id(p) not in slower], "lr": rate}]
        if denoisers:
            groups.append({"params": denoisers, "lr": rate * config.denoiser_rate})
        optimizer = torch.optim.AdamW(groups, weight_decay=config.trainer.weight_decay)
        total, warmup = total_steps(config.trainer, config.data, len(self._data.train)), config.warmup_steps

        def factor(step: int) -> float:
            return (step + 1) / warmup if step < warmup else max(0.0, (total - step) / max(1, total - warmup))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def save(self, folder: Path) -> None:
        """Write the trained parts as safetensors, and score the test images.

        Raises: RunFailed if frozen weights have changed.
        """
        from safetensors.torch import save_file

        for name, branch in self._all():
            if name in self.digests and branch.reader.digest() != self.digests[name]:
                raise RunFailed(f"the frozen weights of branch '{name}' have changed.", "this is a bug in diffprobe")
        folder.mkdir(parents=True, exist_ok=True)
        for name, branch in self._all():
            tensors = {key: value.detach().cpu().contiguous() for key, value in branch.state_dict().items()}
            save_file(tensors, folder / f"{name}.safetensors")
        self.dense_counts = self.score(self._data.test)

    @torch.no_grad()
    def score(self, table: DenseTable) -> DenseCounts:
        """Return the counts of each image of a table, of each branch."""
        config = self.config
        counts: dict[str, list[NDArray[np.float64]]] = {name: [] for name, _ in self._all()}
        for chosen in torch.arange(len(table)).split(config.data.batch_size):
            inputs, truth = self._inputs(table, chosen), table.truth[chosen]
            for name, branch in self._all():
                output = _to_size(branch(*inputs), truth).cpu()
                for one, true in zip(output, truth, strict=True):
                    if config.task == "depth":
                        counts[name].append(depth_sums(one[0], true.float()))
                    else:
                        known = true != IGNORED
                        predicted, right = one.argmax(0)[known], true[known].long()
                        found = image_confusion(predicted[None], right[None], one.shape[0])
                        counts[name].append(found.astype(np.float64))
        names = {"segmentation": tuple(config.classes), "referring": ("other", "referred"), "depth": ()}
        return DenseCounts(
            task=config.task, probe=config.name, groups=table.groups, classes=names[config.task],
            own=np.stack(counts.pop(OWN)), controls={name: np.stack(own) for name, own in counts.items()},
        )  # fmt: skip

    @property
    def _data(self) -> DenseTableData:
        source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(source, DenseTableData)
        return source


def unscaled(backbone: Backbone, latents: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    """Return latents in the unit of the VAE, without the factor that the denoiser was trained with.

    Raises: ConfigError for a backbone without a VAE.
    """
    vae: Any = backbone.components().get("vae")
    if vae is None:
        raise ConfigError("scale_latents=false: this backbone has no VAE whose factor could be left out.")
    return latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)


@torch.no_grad()
def end_states(text: ClipTextEncoder, texts: Sequence[str]) -> Float[Tensor, "text width"]:
    """Return the last state of each text at its end token, the last one that is not padding."""
    tokens = text.tokens(list(texts))
    last = tokens.attention_mask.sum(1) - 1
    states: Tensor = text(list(texts)).last_hidden_state
    return states[torch.arange(len(last)), last].float()


def _to_size(output: Tensor, truth: Tensor) -> Tensor:
    return interpolate(output, size=tuple(truth.shape[1:]), mode="bilinear", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class VpdTraining(VpdSettings):
    """A dense head, trained through a diffusion model (experiment files of kind `train_vpd`)."""

    def make(self) -> tuple[VpdModule, DenseTableData]:
        """Build the module and its images. Raises: what reading weights and shards raises."""
        module = VpdModule(self)
        names = {"train": self.data.train_split, "val": self.data.val_split, "test": self.data.test_split}
        sizes = {"train": self.n_train, "val": self.n_val, "test": self.n_test}
        tables = {
            name: load_dense(
                self.data, split, task=self.task, resolution=module.spec.resolution, n=sizes[name],
                classes=self.classes, expressions=self.expressions, seed=self.seed, ignore=self.ignore,
            )
            for name, split in names.items()
        }  # fmt: skip
        return module, DenseTableData(tables, self.data, seed=self.seed)
