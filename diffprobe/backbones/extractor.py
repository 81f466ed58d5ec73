"""`DiffusionFeatures`: images in, features of a frozen diffusion model out. The public class of this package.

An image is encoded once for all timesteps and draws, a prompt once for all images. Then timesteps x draws x images run
through the denoiser, in passes of bounded size that end at the deepest tap. The noise depends on (seed, key, draw)
alone, never on batching.
"""

from collections.abc import Mapping, Sequence, Sized
from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from diffprobe.backbones.base import DTYPES, Backbone, Condition, ConditionInput, LoadOptions
from diffprobe.backbones.cell import Cell
from diffprobe.backbones.cpu_kernels import KernelChoice, choose_kernels
from diffprobe.backbones.denoiser_runner import DenoiserRunner, explain_oom
from diffprobe.backbones.device import choose_device, exact, warn_slow_bfloat16
from diffprobe.backbones.loading import load_backbone
from diffprobe.backbones.massive import MassiveChannels
from diffprobe.backbones.network_size import MAX_MODULES, module_limit
from diffprobe.backbones.plan import ReadPlan, make_configs, make_plan
from diffprobe.backbones.preprocess import as_batch, check_images
from diffprobe.backbones.prompts import SampleMetadata, condition_inputs
from diffprobe.backbones.taps import TapInfo
from diffprobe.config.schema import BackboneConfig, FeaturesConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.foreign import naming
from diffprobe.core.shapes import FeatureMap, Images


class DiffusionFeatures:
    """A frozen diffusion model that turns images into features. Made with `from_pretrained` or `from_config`.

    Deliberately not an `nn.Module`, so that no probe, DDP wrapper, optimiser or checkpoint registers it.

    Attributes:
        plan: what is read from which backbone.
        cells: taps in the order in which the backbone reaches them, then timesteps ascending.
        widths: cell name -> d_in (the channels, if the map is kept).
        resolution: image side in pixels.
        device: device of the backbone.
    """

    def __init__(
        self, plan: ReadPlan, backbone: Backbone, *, compile_backend: str = "inductor", kernels: str = "mkl"
    ) -> None:
        self.plan, self.cells, self.widths, self.resolution = plan, plan.cells, plan.widths, plan.resolution
        self.device = torch.device("cpu")
        self._backbone, self._shape, self._released = backbone, plan.spec.latent_shape, False
        self._run = DenoiserRunner(plan, backbone, compile_backend=compile_backend, kernels=kernels)
        self._treated = False

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str,
        *,
        taps: Sequence[str],
        timesteps: Sequence[int] = (),
        snr: Sequence[float] = (),
        condition: str = "empty",
        prompt: str | None = None,
        unconditional: bool = False,
        negative_prompt: str | None = None,
        missing: str = "refuse",
        pool: str = "mean",
        draws: int = 1,
        keep_draws: bool = False,
        seed: int = 0,
        resolution: int | None = None,
        dtype: str = "float32",
        device: str | torch.device = "auto",
        random_weights: bool = False,
        random_seed: int = 0,
        revision: str | None = None,
        denoiser_weights: str | None = None,
        single_file_config: str | None = None,
        lora: str | None = None,
        part: str = "denoiser",
        clean_input: bool = False,
        max_rows_per_pass: int | None = None,
        max_modules: int = MAX_MODULES,
        channels_last: bool = True,
        compile: bool | str = False,
        cpu_kernels: str = "mkl",
        offload: str = "none",
        quantize: str = "none",
    ) -> Self:
        """Load a checkpoint, pruned after the deepest tap. All settings are checked before any weights are read.

        Args:
            id_or_path: folder in diffusers format, hub id, a shipped model (`emoji-sd`) or `pixels` (the raw-pixel
                control).
            taps: module paths, globs or aliases: `mid_block`, `up_blocks.*`, `up_ft1`; with a readout behind a slash:
                `/probs` and `/logits` of a cross-attention, `/text` of a joint block.
            timesteps: positions on the training grid, larger is noisier.
            snr: further timesteps, each by its signal-to-noise ratio (of variances); the nearest on the grid is taken.
            condition: `empty`, `caption` (the sample's own), `prompt`, `template`, or `label` (the sample's class).
            prompt: the prompt of condition=prompt, or the pattern of condition=template: "a photo of a {class_name}".
            unconditional: read every cell under the empty condition too, as guidance does.
            negative_prompt: prompt of the unconditional branch, in place of the empty one.
            missing: what samples without the caption, label or column of their condition get: `refuse` or `empty`.
            pool: `mean`, `max`, `none`, `gridK` (K x K means side by side) or `tokensN` (N seeded places).
            draws: noise samples per image, averaged.
            keep_draws: keep the draws on a second axis instead of averaging them.
            seed: seed of the noise.
            resolution: image side in pixels; None takes the checkpoint's own.
            dtype: precision of the forward pass; features are float32 in any case.
            device: torch device; `auto` takes the accelerator if there is one.
            random_weights: use random weights for the denoiser (the control); VAE and text encoder stay trained.
            random_seed: seed of those weights.
            revision: commit, tag or branch of a hub id.
            denoiser_weights: safetensors file or folder (or OWNER/NAME:FILE on the hub, OWNER/NAME@REVISION:FILE) to
                take the denoiser's weights from, for example CleanDIFT's.
            single_file_config: folder or hub id with the configurations of a single safetensors file.
            lora: LoRA that is added to the weights, FILE or FILE@WEIGHT.
            part: what is read of the checkpoint: `denoiser`; or alone `vae` (tap `latents`) or `text_encoder` (tap
                `text`), at timestep 0 (`backbones.parts`).
            clean_input: give the denoiser the image without noise; the timestep only conditions it.
            max_rows_per_pass: rows per pass of the denoiser; None bounds them by memory. Changes features by rounding
                only.
            max_modules: largest number of modules that a checkpoint's configs may describe; a config can describe a
                network that takes hours to build.
            channels_last: memory layout of the convolutions. Changes features by rounding only.
            compile: compile the blocks with torch.compile at their first pass; a name chooses another backend than
                inductor. Changes features by rounding only.
            cpu_kernels: library of float32 linear layers on a CPU: `mkl`, `onednn`, or `auto` to measure which is
                faster (`backbones.cpu_kernels`). Changes features by rounding only.
            offload: `blocks` leaves the denoiser's blocks in files; each pass reads them one by one, two at a time.
            quantize: `int8` or `fp8` holds the weights of the linear layers in the blocks in 8 bits (weight-only).
        Raises: UnknownTap, BadTimestep, WeightsMissing, WeightsMismatch, ConfigError.
        """
        options = {name: value for name, value in locals().items() if name not in ("cls", "id_or_path")}
        options |= {"device": str(device), "compile": bool(compile)}
        backend = compile if isinstance(compile, str) else "inductor"
        if compile and backend not in (known := torch.compiler.list_backends(exclude_tags=())):
            raise ConfigError(f"compile='{backend}' is not a backend of torch.compile.", f"allowed: {', '.join(known)}")
        return cls.from_plan(make_plan(*make_configs(str(id_or_path), options)), compile_backend=backend)

    @classmethod
    def from_config(cls, backbone: BackboneConfig, features: FeaturesConfig) -> Self:
        """Load the backbone of a run. Raises: see `from_pretrained`."""
        return cls.from_plan(make_plan(backbone, features))

    @classmethod
    def from_plan(
        cls,
        plan: ReadPlan,
        *,
        images: bool = True,
        compile_backend: str = "inductor",
        kernels: KernelChoice | None = None,
    ) -> Self:
        """Load what a plan needs, on the device that its config names.

        Args:
            images: whether images will be encoded; without it no VAE is loaded, and only `from_latents` works.
            compile_backend: backend of torch.compile, where the plan compiles.
            kernels: library of linear layers; None takes what the plan's `cpu_kernels` gives.
        Raises: WeightsMissing, WeightsMismatch, ConfigError.
        """
        kernels = choose_kernels(plan) if kernels is None else kernels
        device = choose_device(plan.backbone.device)
        if device.type == "cpu" and plan.dtype == "bfloat16":
            warn_slow_bfloat16("backbone.dtype=bfloat16", "backbone.dtype=float32")
        options = LoadOptions(
            dtype=DTYPES[plan.dtype],
            random_seed=plan.random_seed,
            images=images,
            offload_blocks=plan.backbone.offload == "blocks",
            quantize=plan.backbone.quantize,
        )
        where = plan.checkpoint.folder or plan.checkpoint.name
        short = explain_oom("while the weights were loaded", fix="backbone.dtype=bfloat16, or ask for more memory")
        with module_limit(plan.backbone.max_modules), naming(where, "a checkpoint that can be loaded"), short:
            backbone = load_backbone(plan.checkpoint, plan.family, plan.spec, plan.needed, options)
        return cls(plan, backbone, compile_backend=compile_backend, kernels=kernels.used).to(device)

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Everything on the backbone's side that fixes the features, as JSON. See `ReadPlan.fingerprint`."""
        return self.plan.fingerprint

    def to(self, device: torch.device | str) -> Self:
        """Move the backbone. Raises: RunFailed if it does not fit there."""
        self.device = torch.device(device)
        with explain_oom(f"while the weights were moved to {self.device}", fix="backbone.dtype=bfloat16"):
            self._backbone.to(self.device)
        return self

    def __repr__(self) -> str:
        taps = ", ".join(tap.path for tap in self.plan.taps)
        return f"DiffusionFeatures({self.plan.checkpoint.name}: {taps}; t={list(self.plan.timesteps)}, {self.device})"

    @torch.no_grad()
    def __call__(
        self,
        images: Tensor | Sequence[Image.Image],
        *,
        keys: Sequence[str],
        captions: Sequence[str | None] | None = None,
        labels: Sequence[int] | None = None,
        columns: Mapping[str, Sequence[str | None]] | None = None,
    ) -> dict[str, Tensor]:
        """Return the features of a batch.

        Args:
            images: PIL images, or a float tensor [batch, 3, resolution, resolution] in [0, 1].
            keys: the samples' keys; with seed and draw they fix the noise.
            captions: the samples' captions, for condition=caption; None for none.
            labels: the samples' classes, for condition=label; -1 for none.
            columns: the samples' texts by name, for condition=template; None where a sample has none.
        Returns: cell name -> float32 on the backbone's device, draws averaged: [batch, d_in]; for pool=none [batch,
        channels, height, width], for tokensN [batch, N, channels]. With keep_draws the draws are the second axis.
        Raises: ConfigError for images of another size, range or type, and for missing texts, labels or columns.
        """
        self._require_treated()
        n = len(images if isinstance(images, Tensor) else check_images(images))
        texts = SampleMetadata(keys=keys, captions=captions, labels=labels, columns=_columns(columns))
        conditioning = self._condition_inputs(n, texts)
        return self._features(self.encode(images), keys, conditioning)

    @torch.no_grad()
    def magnitudes(
        self,
        images: Images,
        *,
        keys: Sequence[str],
        captions: Sequence[str | None] | None = None,
        labels: Sequence[int] | None = None,
        columns: Mapping[str, Sequence[str | None]] | None = None,
    ) -> dict[str, Tensor]:
        """Return cell name -> mean magnitude of each channel over places and draws, before pooling: [batch, channels].

        Massive channels are found on it; they are not changed in it. Arguments and errors are those of `__call__`.
        """
        texts = SampleMetadata(keys=keys, captions=captions, labels=labels, columns=_columns(columns))
        conditioning = self._condition_inputs(len(images), texts)
        with self._run.reading_magnitudes():
            found = self._features(self.encode(images), keys, conditioning)
        return {cell: values.mean(1) if self.plan.keep_draws else values for cell, values in found.items()}

    def treat(self, found: Mapping[str, MassiveChannels]) -> None:
        """Set the massive channels of each cell to 0 or clip them, as `features.massive` states, from now on.

        Args:
            found: cell name -> its massive channels, for all cells.
        """
        plan, how = self.plan, self.plan.features.massive.treatment

        def bounds(tap: TapInfo) -> Tensor:
            cells = [[Cell(tap.path, t, one.condition, plan.pool) for one in plan.branches] for t in plan.timesteps]
            return torch.stack([torch.stack([found[c.name].bound(tap.channels, how) for c in row]) for row in cells])

        self._run.bound({tap.path: bounds(tap) for tap in plan.taps})
        self._treated = True

    def _require_treated(self) -> None:
        """Refuse features whose massive channels have not been found. Raises: ConfigError."""
        massive = self.plan.features.massive
        if massive.active and not self._treated:
            raise ConfigError(
                f"features.massive.treatment={massive.treatment}: no massive channels were given.",
                "they are found on training images, by `diffprobe extract` and by probes",
                fix="call treat(found) first, or remove features.massive",
            )

    @torch.no_grad()
    def encode(self, images: Images | Sequence[Image.Image]) -> FeatureMap:
        """Encode images to the latents that are noised: the scaled modes of the VAE, or pixels; float32.

        Raises: ConfigError for images of another size, range or type; WeightsMissing if it was loaded without a VAE.
        """
        batch = as_batch(images, self.resolution)
        n = len(batch)
        smaller = f"data.batch_size={n // 2}" if n > 1 else "a smaller features.resolution"
        with exact(self.device, self.plan.dtype), explain_oom(f"while {n} images were encoded", fix=smaller):
            return self._backbone.encode_images(batch.to(self.device))

    @torch.no_grad()
    def from_latents(
        self,
        latents: Float[Tensor, "batch channels height width"],
        *,
        keys: Sequence[str],
        captions: Sequence[str | None] | None = None,
        labels: Sequence[int] | None = None,
        columns: Mapping[str, Sequence[str | None]] | None = None,
    ) -> dict[str, Tensor]:
        """Return the features of latents that `encode` returned, bit for bit those of the images. See `__call__`.

        Raises: ConfigError for latents of another shape or number format.
        """
        self._require_treated()
        is_tensor = isinstance(latents, Tensor)
        if not is_tensor or tuple(latents.shape[1:]) != self._shape or latents.dtype != torch.float32:
            given = f"{latents.dtype} {list(latents.shape)}" if is_tensor else type(latents).__name__
            shape = ", ".join(map(str, self._shape))
            raise ConfigError(f"latents must be a float32 tensor, [batch, {shape}]; got {given}.")
        texts = SampleMetadata(keys=keys, captions=captions, labels=labels, columns=_columns(columns))
        return self._features(latents.to(self.device), keys, self._condition_inputs(len(latents), texts))

    def _features(
        self, clean: FeatureMap, keys: Sequence[str], conditioning: list[list[ConditionInput]]
    ) -> dict[str, Tensor]:
        with exact(self.device, self.plan.dtype):
            return self._read(clean, keys, conditioning)

    def _condition_inputs(self, n: int, texts: SampleMetadata) -> list[list[ConditionInput]]:
        """Return the conditioning inputs of the samples, one list per branch."""
        if n == 0:
            raise ConfigError("a batch without images has no features.")
        listed = isinstance(texts.keys, Sized) and not isinstance(texts.keys, (str, Mapping))
        if not listed or len(texts.keys) != n:
            kind = "one text" if isinstance(texts.keys, str) else f"a {type(texts.keys).__name__}"
            given = len(texts.keys) if listed else kind
            raise ConfigError(f"{n} images need {n} keys; got {given}.", fix="keys=[one text per image]")
        return [condition_inputs(branch, texts) for branch in self.plan.branches]

    def _read(self, clean: Tensor, keys: Sequence[str], conditioning: list[list[ConditionInput]]) -> dict[str, Tensor]:
        """Return the features of clean latents."""
        condition, row_of = self._encode(conditioning)
        plan, found = self.plan, {}
        for tap, total in self._run(clean, condition, row_of, keys).items():
            for i, t in enumerate(plan.timesteps):
                for j, branch in enumerate(plan.branches):
                    values = total[:, i, j].transpose(0, 1) if plan.keep_draws else total[0, i, j] / plan.draws
                    found[Cell(tap, t, branch.condition, plan.pool).name] = values
        return {cell.name: found[cell.name] for cell in self.cells}

    def _encode(self, conditioning: list[list[ConditionInput]]) -> tuple[Condition, Int[Tensor, "branches batch"]]:
        """Encode each distinct value of the batch; return the rows, and the row of each image in each branch."""
        number = {
            value: i for i, value in enumerate(dict.fromkeys(value for branch in conditioning for value in branch))
        }
        rows = torch.tensor([[number[value] for value in branch] for branch in conditioning], device=self.device)
        condition = self._backbone.encode_conditions(list(number))
        if not self._released and all(branch.is_fixed for branch in self.plan.branches):
            self._backbone.release_text()
            self._released = True
        return condition, rows


def _columns(columns: Mapping[str, Sequence[str | None]] | None) -> Mapping[str, Sequence[str | None]]:
    if columns is not None and not isinstance(columns, Mapping):
        raise ConfigError(
            f"columns must map names to lists; got a {type(columns).__name__}.", fix="columns={'name': [one per image]}"
        )
    return columns or {}
