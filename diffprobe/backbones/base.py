"""The interface of a family of backbones, and of a loaded backbone.

A family is one module under `families/` with five names:

- `matches(index) -> bool`: does this `model_index.json` belong to the family?
- `spec(checkpoint, resolution) -> BackboneSpec`: everything that follows from the config, the denoiser on the meta
  device.
- `load(checkpoint, spec, needed, options) -> Backbone`: the trained parts, of the denoiser only the modules in
  `needed`.
- `digests(checkpoint, trained) -> dict`: a digest of each part that features depend on, from the files alone.
- `tiny(path) -> Path`: write a tiny checkpoint with random weights in the real format, for tests.

It decides nothing about noise, hooks, pruning or pooling: those are the same for all families.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.lora import Lora
from diffprobe.backbones.noise import NoiseSchedule, PredictionKind
from diffprobe.backbones.offload import move
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.shapes import Images

ConditionInput = str | int | None
"""Conditioning input of one sample: a text, a class, or None (the null class)."""

Condition = dict[str, Tensor]
"""Encoded conditioning inputs by name, one row per sample; empty for an unconditional backbone."""


def take_rows(condition: Condition, rows: Int[Tensor, "..."]) -> Condition:
    """Return the rows of an encoded condition at given indices; the shape of `rows` replaces the first axis."""
    return {name: values[rows.to(values.device)] for name, values in condition.items()}


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precisions of the forward pass, by the name that configs use."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model on this machine, before anything of it is loaded."""

    name: str
    """Name given by the user: a folder, a hub id, a shipped model, `pixels`."""
    folder: Path | None
    """Folder of its parts; None for a backbone without weights."""
    index: dict[str, Any]
    """Its `model_index.json`."""
    denoiser_weights: Path | None = None
    """Safetensors file or folder that replaces the denoiser's own weights."""
    lora: Lora | None = None
    """LoRA that is added to the weights when they are loaded."""

    def part(self, name: str) -> Path:
        """Return the folder of one part (`unet`, `vae`, ...). Raises: WeightsMismatch without a folder."""
        if self.folder is None:
            raise WeightsMismatch(f"backbone '{self.name}' has no folder, so it has no part '{name}'.")
        return self.folder / name


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """A backbone as its config describes it. Costs no memory: the denoiser is on the meta device."""

    family: str
    """Name of the family file."""
    name: str
    """Name of the checkpoint, for messages."""
    denoiser: nn.Module
    """The network that has the taps, without weights."""
    run: Callable[[nn.Module], object]
    """Runs one forward pass of one image on the meta device."""
    signature: str
    """Digest of what fixes the denoiser's shapes: its config and its input. Equal signatures have equal traces."""
    resolution: int
    """Image side in pixels: the requested one, or the checkpoint's own."""
    latent_shape: tuple[int, int, int]
    """Channels, height, width of what is noised."""
    layout: OutputLayout
    """How the outputs of the denoiser's modules hold the image."""
    schedule: NoiseSchedule
    """The forward process of the checkpoint."""
    prediction: PredictionKind
    """What the denoiser predicts."""
    conditions: tuple[str, ...]
    """Conditions that this backbone supports, a part of `cell.CONDITIONS`."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Name used in papers -> tap."""
    blocks: tuple[str, ...] = ()
    """Taps that are listed first: the whole blocks, in the order in which they run."""
    conditioning: dict[str, Any] = field(default_factory=dict)
    """Fixed conditioning besides the condition (sizes, guidance), as JSON; part of a store's manifest."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How weights are read."""

    dtype: torch.dtype = torch.float32
    """Precision of the forward pass."""
    random_seed: int | None = None
    """Seed of random weights of the denoiser; None reads the trained ones."""
    images: bool = True
    """Whether images will be encoded; without it the VAE may stay on disk (its latents are given)."""
    offload_blocks: bool = False
    """Whether the denoiser's blocks stay in files and are read one by one in each pass (`offload.py`)."""
    quantize: str = "none"
    """Format of the weights of the linear layers in the denoiser's blocks: `none`, `int8` or `fp8` (`quantized.py`)."""


@dataclass(frozen=True)
class Prediction:
    """The output of a denoiser, in the units and shape of its input."""

    value: Float[Tensor, "rows channels height width"]
    """What was predicted, in the precision of the pass."""
    kind: PredictionKind
    """What it is a prediction of."""


class Backbone(ABC):
    """A loaded family member: frozen, in evaluation mode, its denoiser pruned after the deepest tap."""

    denoiser: nn.Module
    """The network that has the taps."""
    prediction: PredictionKind
    """What the denoiser predicts."""

    @abstractmethod
    def encode_images(self, images: Images) -> Float[Tensor, "batch channels height width"]:
        """Turn images in [0, 1] into what is noised (scaled VAE latents, or the pixels themselves), float32."""

    @abstractmethod
    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """Encode conditioning inputs for the denoiser, one row per value.

        Raises: ConfigError for a class that the backbone does not have.
        """

    @abstractmethod
    def denoise(
        self,
        x_t: Float[Tensor, "rows channels height width"],
        timesteps: Int[Tensor, " rows"],
        condition: Condition,
    ) -> Prediction:
        """Run the denoiser once and return what it predicts.

        Taps are read by hooks meanwhile. A hook may end the pass early by `StopForward`, which passes through here:
        then nothing is returned.
        """

    def predicted(self, output: Float[Tensor, "rows outputs height width"], x_t: Tensor) -> Prediction:
        """Make the prediction of a denoiser's output, without the channels of a learned variance, which come last."""
        return Prediction(output[:, : x_t.shape[1]], self.prediction)

    def embed_guidance(self, scale: float) -> None:
        """Give a network with distilled guidance another guidance scale, as of diffusers.

        Raises: ConfigError for a network that takes none.
        """
        raise ConfigError("this network does not take the guidance scale as input.", fix="combine two predictions")

    @abstractmethod
    def components(self) -> dict[str, nn.Module]:
        """Name the loaded networks."""

    def release_text(self) -> None:
        """Free the text encoders; called when all conditioning inputs are encoded and cached."""
        return  # a backbone without them has nothing to free

    def to(self, device: torch.device) -> None:
        """Move all loaded networks."""
        for module in self.components().values():
            move(module, device)


@runtime_checkable
class Family(Protocol):
    """Interface of a family module, for type checkers."""

    def matches(self, index: dict[str, Any]) -> bool:
        """Return whether a checkpoint is of this family, by its `model_index.json`."""

    def spec(self, checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
        """Describe a checkpoint from its configs. Raises: WeightsMissing, WeightsMismatch, ConfigError."""

    def load(
        self, checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions
    ) -> Backbone:
        """Load what is needed; the spec stays as it is. Raises: WeightsMissing, WeightsMismatch."""

    def digests(self, checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
        """Digest the parts; without `trained` the denoiser's weights do not count. Raises: WeightsMissing."""

    def tiny(self, path: Path | str) -> Path:
        """Write a tiny checkpoint with random weights in the real format."""
