"""CleanDIFT (Stracke et al. 2024, 2412.03439): features of the clean image that stand for those of all noise levels.

A copy of a denoiser, the student, gets the image without noise, at one fixed timestep. A small head per tap,
conditioned on t, maps the student's map to what the frozen denoiser, the teacher, reads there from the image noised
to t; the loss is one minus the cosine at each place (section 3). The heads are residual, start as the identity, and
are not kept. What is saved is a pipeline folder with the student in place of the denoiser: read it with
`backbone.clean_input=true` at that timestep.

The released code learns the timestep of the student, starting from 261; here it is fixed, since its embedding is
trained with the student, and a pipeline has no place for another one.
"""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, LoadOptions
from diffprobe.backbones.device import exact
from diffprobe.backbones.families import describe
from diffprobe.backbones.hooks import Capture
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.loading import load_whole
from diffprobe.backbones.taps import resolve, tap_infos, trace_spec
from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.rng import derive_seed
from diffprobe.core.shapes import FeatureMap
from diffprobe.generative.held_out_noise import held_out_noise
from diffprobe.generative.image_table import ImageTable, ImageTableData
from diffprobe.generative.lr_schedule import adamw_with_cosine, require_finite_loss, total_steps
from diffprobe.generative.pipeline_input import pipeline_checkpoint, pipeline_digest
from diffprobe.generative.run_settings import GenerativeModule, validate_settings

_EMBEDDING = 128
"""Width of the embedding of a timestep in the heads."""


@dataclass(frozen=True, kw_only=True)
class CleanDiftTraining:
    """A fine-tuning of a denoiser to clean images (experiment files of kind `train_cleandift`)."""

    experiment: str
    """Name of the experiment."""
    teacher: str
    """Pipeline folder of the denoiser in diffusers' format, or the name of a shipped model."""
    data: DataConfig
    """Images; captioned ones unless `drop_captions` is 1."""
    trainer: TrainerConfig
    """Length, precision, step size; without one it is 1e-5, that of the released code for Stable Diffusion."""
    logger: LoggerConfig
    """Where curves go."""
    seed: int = 0
    """Seed of heads, order, captions, timesteps and noise."""
    output: str = "runs"
    """Folder of runs."""
    taps: tuple[str, ...] = ("mid_block", "up_blocks.*")
    """Places whose maps are aligned."""
    timestep: int = 0
    """Timestep that the student is given with the clean image."""
    n_strata: int = 3
    """Timesteps of the teacher for each image and step, one in each of equal parts of the schedule."""
    head_width: int = 256
    """Hidden width of the heads."""
    drop_captions: float = 0.1
    """Share of samples with the empty caption; the rest have one of their captions, the same for both networks."""
    warmup_steps: int = 20
    """Steps over which the step size rises; a cosine to 0 follows."""
    ema_decay: float = 0.0
    """Decay per step of the moving average of the weights, which is what is saved; 0: the weights of the last step."""

    def __post_init__(self) -> None:
        validate_settings(self, shares=("drop_captions",))
        at_least(1, n_strata=self.n_strata, head_width=self.head_width)
        at_least(0, timestep=self.timestep)
        if not self.taps:
            raise ConfigError("taps=[]: nothing is aligned.", fix="taps=[mid_block,up_blocks.*]")
        if any("/" in tap for tap in self.taps):
            raise ConfigError(f"taps={list(self.taps)}: feature maps are aligned, not readouts behind a slash.")

    def checkpoint(self) -> Checkpoint:
        """Locate the teacher. Raises: WeightsMissing; WeightsMismatch for anything but a pipeline folder."""
        return pipeline_checkpoint(self.teacher, key="teacher")

    def require_weights(self) -> None:
        """Check the teacher's files. Raises: WeightsMissing, WeightsMismatch."""
        self.input_digests()

    def input_digests(self) -> dict[str, str]:
        """Return the digest of the teacher. Raises: WeightsMissing, WeightsMismatch."""
        return {"teacher": pipeline_digest(self.checkpoint())}

    def make(self) -> "tuple[CleanDiftModule, ImageTableData]":
        """Build the module and its images. Raises: what reading weights and shards raises."""
        module = CleanDiftModule(self)
        captioned = self.drop_captions < 1
        images = ImageTableData(self.data, resolution=module.spec.resolution, seed=self.seed, captioned=captioned)
        return module, images


class TimedHead(nn.Module):
    """A residual feed-forward network of each place, conditioned on the timestep; the identity at first.

    Args:
        channels: of the map.
        width: hidden width.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.enter, self.middle, self.leave = (
            nn.Linear(channels, width),
            nn.Linear(width, width),
            nn.Linear(width, channels),
        )
        self.time = nn.Sequential(nn.Linear(_EMBEDDING, width), nn.SiLU(), nn.Linear(width, 2 * width))
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: FeatureMap, timesteps: Int[Tensor, " batch"]) -> FeatureMap:
        """Return the maps as they would be at the timesteps."""
        from diffusers.models.embeddings import get_timestep_embedding

        scale, shift = self.time(get_timestep_embedding(timesteps, _EMBEDDING))[:, None, None].chunk(2, dim=-1)
        hidden = self.enter(self.norm(x.movedim(1, -1))) * (1 + scale) + shift
        hidden = self.leave(nn.functional.silu(self.middle(nn.functional.silu(hidden))))
        return x + hidden.movedim(-1, 1)


def stratified(n: int, strata: int, n_timesteps: int, generator: torch.Generator) -> Int[Tensor, "strata n"]:
    """Draw timesteps, uniform in each of equal parts of the grid."""
    share = (torch.arange(strata)[:, None] + torch.rand(strata, n, generator=generator)) / strata
    return (share * n_timesteps).long().clamp(max=n_timesteps - 1)


def misalignment(one: FeatureMap, other: FeatureMap) -> Float[Tensor, " batch"]:
    """Return one minus the cosine of two maps, the mean over places, of each sample."""
    return 1 - nn.functional.cosine_similarity(one.float(), other.float(), dim=1).flatten(1).mean(1)


class CleanDiftModule(GenerativeModule):
    """Trains the student and the heads. Neither teacher nor VAE nor text encoder is in a checkpoint, or changed.

    Randomness is a function of (seed, step), so a resumed run equals an uninterrupted one.

    Raises: WeightsMissing, WeightsMismatch, UnknownTap, BadTimestep; ConfigError for captions of a backbone that takes
        none.
    """

    def __init__(self, config: CleanDiftTraining) -> None:
        super().__init__()
        self.config = config
        self.checkpoint = config.checkpoint()
        family, self.spec = describe(self.checkpoint, None)
        spec: BackboneSpec = self.spec
        spec.schedule.check([config.timestep], self.checkpoint.name)
        if config.drop_captions < 1 and "caption" not in spec.conditions:
            raise ConfigError(f"backbone '{self.checkpoint.name}' takes no captions.", fix="drop_captions=1")
        infos = tap_infos(spec, trace_spec(spec, count=False), counted=False)
        self.paths = resolve(config.taps, infos, spec)
        with quiet_libraries():
            teacher, student = (load_whole(self.checkpoint, family, spec, LoadOptions()) for _ in range(2))
        self.student = student.denoiser.requires_grad_(True).train()
        # In a tuple, so that checkpoints do not contain the frozen networks.
        self._frozen = (teacher, student)
        self.teacher_digest = _digest(teacher.denoiser)
        channels = {tap.path: tap.channels for tap in infos}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("heads", config.seed))
            self.heads = nn.ModuleList([TimedHead(channels[path], config.head_width) for path in self.paths])
        self._captures = tuple(
            Capture(one.denoiser, self.paths, layout=spec.layout, read=lambda found, _: found)
            for one in (teacher, student)
        )  # fmt: skip

    @property
    def teacher(self) -> Backbone:
        """The frozen model."""
        return self._frozen[0]

    def on_fit_start(self) -> None:
        """Move the frozen networks to the device of the run."""
        self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Keep the student in evaluation mode: dropout would be noise on the features."""
        self.student.eval()

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        """Return the misalignment of a batch of row indices, the mean over taps, timesteps and places."""
        config, table, chosen = self.config, self._table("train"), rows.tolist()
        generator = torch.Generator().manual_seed(derive_seed("step", config.seed, self.global_step))
        clean = self._encoded(table, rows)
        draws = torch.rand(len(chosen), 2, generator=generator).tolist()
        captions = []
        for row, (empty, which) in zip(chosen, draws, strict=True):
            own = table.captions[row]
            captions.append("" if empty < config.drop_captions else own[int(which * len(own))])
        timesteps = stratified(len(chosen), config.n_strata, self.spec.schedule.n_timesteps, generator)
        noise = torch.randn((config.n_strata, *clean.shape), generator=generator).to(clean)
        loss = self.losses(clean, captions, timesteps.to(self.device), noise).mean()
        require_finite_loss(loss.detach(), self.global_step)
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        """Log the misalignment of validation images, each at one fixed timestep and noise under the empty caption.

        `val/teacher_loss` is that of the teacher at the clean image without heads, which is where the student started.
        """
        table, chosen = self._table("val"), rows.tolist()
        clean = self._encoded(table, rows)
        keys = [table.keys[row] for row in chosen]
        noise, at = held_out_noise(keys, clean, self.spec.schedule.n_timesteps)
        captions = [""] * len(chosen)
        found = self.losses(clean, captions, at[None], noise[None])
        same = self._read(0, clean, torch.full_like(at, self.config.timestep), captions)
        noised = self._read(0, self.spec.schedule.add(clean, noise, at), at, captions)
        start = torch.stack([misalignment(same[path], noised[path]) for path in self.paths])
        for name, values in (("loss", found), ("teacher_loss", start)):
            self.log(f"val/{name}", values.mean(), batch_size=len(chosen), prog_bar=True, sync_dist=True)

    def losses(
        self,
        clean: Float[Tensor, "batch c h w"],
        captions: list[str],
        timesteps: Int[Tensor, "strata batch"],
        noise: Float[Tensor, "strata batch c h w"],
    ) -> Float[Tensor, "tap rows"]:
        """Return the misalignment of each tap, and of each image at each of its timesteps.

        Args:
            clean: latents without noise.
            captions: one per image.
            timesteps: of the teacher, on the training grid.
            noise: standard normal.
        """
        n = len(timesteps)
        at = timesteps.flatten()
        repeated = clean.repeat(n, 1, 1, 1)
        with torch.no_grad():
            goal = self._read(0, self.spec.schedule.add(repeated, noise.flatten(0, 1), at), at, captions * n)
        own = self._read(1, clean, torch.full((len(clean),), self.config.timestep, device=clean.device), captions)
        return torch.stack(
            [
                misalignment(head(own[path].repeat(n, 1, 1, 1), at), goal[path])
                for path, head in zip(self.paths, self.heads, strict=True)
            ]
        )

    def _read(self, which: int, x_t: Tensor, timesteps: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """Return the maps of the teacher (0) or the student (1) at all taps."""
        texts = list(dict.fromkeys(captions))
        with torch.no_grad():
            encoded = self.teacher.encode_conditions(texts)
        rows = torch.tensor([texts.index(one) for one in captions], device=x_t.device)
        condition = {name: values[rows] for name, values in encoded.items()}
        return self._captures[which](lambda: self._frozen[which].denoise(x_t, timesteps, condition))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return AdamW with warm-up and cosine decay."""
        config = self.config
        rate = config.trainer.learning_rate or 1e-5
        total = total_steps(config.trainer, config.data, len(self._table("train")))
        parameters = [*self.student.parameters(), *self.heads.parameters()]
        return adamw_with_cosine(
            parameters, config.trainer, rate=rate, beta2=0.999, warmup=config.warmup_steps, total=total
        )

    def save(self, folder: Path) -> None:
        """Write the pipeline with the student in place of the denoiser, as fp16 safetensors; other parts are copied.

        Raises: RunFailed if the teacher's weights have changed.
        """
        from copy import deepcopy

        if _digest(self.teacher.denoiser) != self.teacher_digest:
            raise RunFailed("the weights of the frozen teacher have changed.", "this is a bug in diffprobe")
        source = self.checkpoint.part("vae").parent
        (part,) = [name for name in ("unet", "transformer") if (source / name).is_dir()]
        parts = [name for name in self.checkpoint.index if (source / name).is_dir() and name != part]
        folder.mkdir(parents=True, exist_ok=True)
        for name in parts:
            shutil.copytree(source / name, folder / name)
        shutil.copyfile(source / "model_index.json", folder / "model_index.json")
        network: Any = deepcopy(self.student).requires_grad_(False).half()
        with quiet_libraries():
            network.save_pretrained(folder / part, safe_serialization=True)
        shutil.copyfile(source / part / "config.json", folder / part / "config.json")

    def _table(self, split: str) -> ImageTable:
        source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(source, ImageTableData)
        return source.train if split == "train" else source.val

    def _encoded(self, table: ImageTable, rows: Tensor) -> Float[Tensor, "batch c h w"]:
        with torch.no_grad(), exact(self.device, "float32"):
            return self.teacher.encode_images(table.to_float(rows.cpu()).to(self.device))


def _digest(network: nn.Module) -> str:
    """Digest the weights of a network by their bytes."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
