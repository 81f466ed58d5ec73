"""One part of a checkpoint alone, with the interface of a model: its VAE, or its text encoders.

These are controls of what the denoiser adds to its inputs. Each has one tap and one timestep, 0, without noise:

- `vae`: `latents`, the clean latents that the denoiser would be given noised, reduced by area to at most 16 x 16
  places; all channels and places side by side, so every pooling gives the same numbers.
- `text_encoder`: `text`, the last states of each text encoder (CLIP or T5) averaged over the tokens of the sample's
  text, start and padding left out; several encoders side by side. The image is not read.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffprobe.backbones.base import (
    Backbone,
    BackboneSpec,
    Checkpoint,
    Condition,
    ConditionInput,
    Family,
    LoadOptions,
    Prediction,
)
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.noise import clean_schedule
from diffprobe.backbones.part_config import CONFIG, has_part, part_names, positive, read_part_config
from diffprobe.backbones.text_encoders import (
    T5_LENGTH,
    TEXT_CONDITIONS,
    ClipTextEncoder,
    PromptCache,
    T5TextEncoder,
    load_clip_text,
    load_t5_text,
    t5_tokenizer,
)
from diffprobe.backbones.tokenizer_files import TOKENIZER_FILES
from diffprobe.backbones.vae import VaeEncoder, load_movq_encoder, load_vae_encoder
from diffprobe.backbones.weight_files import require_files
from diffprobe.backbones.weights import digest_files, digest_part
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.core.shapes import FeatureMap, Images

LATENTS, TEXT = "latents", "text"
"""The one tap of `vae` and of `text_encoder`."""
SIDE = 16
"""Largest side of reduced latents."""
_VAES: dict[str, Callable[..., VaeEncoder]] = {"vae": load_vae_encoder, "movq": load_movq_encoder}
"""Names of the image encoder in a pipeline, and how each is loaded."""
_WIDTHS = {"clip_text_model": ("hidden_size", 512), "t5": ("d_model", 512), "umt5": ("d_model", 512)}
"""Type of a text encoder -> the key of its width, and transformers' default."""


def why_without(part: str, checkpoint: Checkpoint) -> str | None:
    """Return why a checkpoint cannot be read by a part alone; None if it can.

    Args:
        part: `vae` or `text_encoder`.
    Raises: WeightsMissing, WeightsMismatch for a text encoder whose configuration cannot be read.
    """
    if part == "vae":
        return None if _vae(checkpoint) else f"backbone '{checkpoint.name}' has no VAE: its input is the pixels"
    encoders = _encoders(checkpoint)
    if not encoders:
        return f"backbone '{checkpoint.name}' has no text encoder"
    kinds = {name: _kind(checkpoint, name) for name in encoders}
    foreign = [f"{name} is a {kind}" for name, kind in kinds.items() if kind not in _WIDTHS]
    if foreign:
        return f"only CLIP and T5 encoders are read alone; of backbone '{checkpoint.name}', {', '.join(foreign)}"
    return None


def _kind(checkpoint: Checkpoint, encoder: str) -> str:
    return str(read_part_config(checkpoint.part(encoder) / CONFIG).get("model_type"))


def part_of(part: str, checkpoint: Checkpoint, family: Family, spec: BackboneSpec) -> tuple[Family, BackboneSpec]:
    """Return one part of a checkpoint as a family of its own, and its description.

    Args:
        part: `vae` or `text_encoder`.
        family, spec: of the whole checkpoint.
    Raises: ConfigError if the checkpoint has no such part.
    """
    reason = why_without(part, checkpoint)
    if reason is not None:
        raise ConfigError(f"backbone.part={part}: {reason}.", fix="backbone.part=denoiser")
    if part == "vae":
        channels, height, width = spec.latent_shape
        tap: nn.Module = _Reduce()
        shape: tuple[int, int, int] = (channels, height, width)
    else:
        tap, shape = nn.Identity(), (_text_width(checkpoint), 1, 1)
    name = {"vae": LATENTS, "text_encoder": TEXT}[part]
    described = replace(
        spec,
        denoiser=_OneTap(name, tap),
        run=lambda network: network(torch.empty(1, *shape, device="meta")),
        signature=digest_json([part, *shape]),
        latent_shape=shape if part == "vae" else (1, 1, 1),
        layout=OutputLayout(size=shape[1:]),
        schedule=clean_schedule(),
        prediction="sample",
        conditions=("empty",) if part == "vae" else TEXT_CONDITIONS,
        aliases={},
        blocks=(name,),
        conditioning={},
    )
    return PartFamily(part, family), described


def _vae(checkpoint: Checkpoint) -> str | None:
    return next((name for name in _VAES if has_part(checkpoint.index, name)), None)


def _encoders(checkpoint: Checkpoint) -> list[str]:
    return sorted(name for name in part_names(checkpoint.index) if name.startswith("text_encoder"))


def _text_width(checkpoint: Checkpoint) -> int:
    widths = []
    for name in _encoders(checkpoint):
        path, (key, default) = checkpoint.part(name) / CONFIG, _WIDTHS[_kind(checkpoint, name)]
        widths.append(positive(read_part_config(path), key, default, where=path))
    return sum(widths)


def _tokenizer(encoder: str) -> str:
    return encoder.replace("text_encoder", "tokenizer")


def reduced_latents(x: FeatureMap) -> Float[Tensor, "batch values 1 1"]:
    """Reduce latents by area to at most 16 x 16 places and put all values on the channel axis: [batch, n, 1, 1]."""
    small = interpolate(x, size=(SIDE, SIDE), mode="area") if max(x.shape[2:]) > SIDE else x
    return small.reshape(x.shape[0], -1, 1, 1)


class _Reduce(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return reduced_latents(x)


class _OneTap(nn.Module):
    def __init__(self, name: str, tap: nn.Module) -> None:
        super().__init__()
        self._name = name
        self.add_module(name, tap)

    def forward(self, x: Tensor) -> Any:
        return self.get_submodule(self._name)(x)


@dataclass(frozen=True)
class PartFamily:
    """A family of which one part is read.

    Attributes:
        part: `vae` or `text_encoder`.
        whole: the family of the checkpoint.
    """

    part: str
    whole: Family

    def matches(self, index: dict[str, Any]) -> bool:
        """Return whether a checkpoint is of the family."""
        return self.whole.matches(index)

    def spec(self, checkpoint: Checkpoint, resolution: int | None) -> BackboneSpec:
        """Describe the part. Raises: ConfigError if there is none, and what the family raises."""
        return part_of(self.part, checkpoint, self.whole, self.whole.spec(checkpoint, resolution))[1]

    def load(
        self, checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions
    ) -> Backbone:
        """Load the part alone. Raises: WeightsMissing, WeightsMismatch."""
        if self.part == "vae":
            name = _vae(checkpoint) or ""
            require_files(checkpoint.part(name))
            vae = _VAES[name](checkpoint.part(name), dtype=options.dtype, images=options.images)
            return CleanLatents(spec.denoiser, vae)
        encoders = _encoders(checkpoint)
        folder = checkpoint.part(encoders[0]).parent
        texts: dict[str, ClipTextEncoder | T5TextEncoder] = {}
        for name in encoders:
            words, dtype = _tokenizer(name), options.dtype
            if _kind(checkpoint, name) in ("t5", "umt5"):
                kind = t5_tokenizer(checkpoint.index, words)
                texts[name] = load_t5_text(
                    folder, dtype=dtype, length=T5_LENGTH, encoder=name, tokenizer=words, words=kind
                )
            else:
                texts[name] = load_clip_text(folder, dtype=dtype, encoder=name, tokenizer=words)
        return TextAlone(spec.denoiser, texts)

    def digests(self, checkpoint: Checkpoint, trained: bool) -> dict[str, str]:
        """Digest the part alone, whatever the weights of the denoiser are. Raises: WeightsMissing."""
        names = _encoders(checkpoint) if self.part == "text_encoder" else [_vae(checkpoint) or ""]
        require_files(*(checkpoint.part(name) for name in names))
        found = {name: digest_part(checkpoint.part(name)) for name in names}
        if self.part == "text_encoder":
            for name in map(_tokenizer, names):
                found[name] = digest_files([checkpoint.part(name) / file for file in TOKENIZER_FILES])
        return found

    def tiny(self, path: Path | str) -> Path:
        """Write a tiny checkpoint of the family."""
        return self.whole.tiny(path)


class CleanLatents(Backbone):
    """The clean latents of a VAE.

    Args:
        network: the module with the tap.
        vae: encodes images.
    """

    def __init__(self, network: nn.Module, vae: VaeEncoder) -> None:
        self.denoiser, self.prediction, self._vae = network, "sample", vae

    def encode_images(self, images: Images) -> FeatureMap:
        """See `VaeEncoder`."""
        return self._vae(images)

    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """Return no condition."""
        return {}

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Read the latents. The prediction of the clean latents are they themselves, which have no noise."""
        self.denoiser(x_t)
        return Prediction(x_t, self.prediction)

    def components(self) -> dict[str, nn.Module]:
        """Name the VAE, and the (parameterless) network with the tap."""
        return {"denoiser": self.denoiser, "vae": self._vae.vae}


class TextAlone(Backbone):
    """The states of text encoders, averaged over the tokens of a text.

    Args:
        network: the module with the tap.
        texts: the encoders by the names of their parts.
    """

    def __init__(self, network: nn.Module, texts: Mapping[str, ClipTextEncoder | T5TextEncoder]) -> None:
        self.denoiser, self.prediction, self.texts = network, "sample", texts
        self._prompts = PromptCache(self._encode)

    def _encode(self, prompts: list[str]) -> Condition:
        return {TEXT: torch.cat([text.mean_states(prompts).float() for text in self.texts.values()], dim=1)}

    def encode_images(self, images: Images) -> FeatureMap:
        """Return zeros in place of the images, which are not read."""
        return torch.zeros(len(images), 1, 1, 1, device=images.device)

    def encode_conditions(self, values: Sequence[ConditionInput]) -> Condition:
        """Encode texts, one row each, each text once; None is the empty text."""
        return self._prompts(["" if value is None else str(value) for value in values])

    def denoise(self, x_t: FeatureMap, timesteps: Int[Tensor, " rows"], condition: Condition) -> Prediction:
        """Read the texts."""
        self.denoiser(condition[TEXT][:, :, None, None])
        return Prediction(x_t, self.prediction)

    def components(self) -> dict[str, nn.Module]:
        """Name the encoders, and the (parameterless) network with the tap."""
        return {"denoiser": self.denoiser, **{name: text.encoder for name, text in self.texts.items()}}

    def release_text(self) -> None:
        """Free the text encoders."""
        self.texts = {}
        self._prompts.seal()

    def to(self, device: torch.device) -> None:
        """Move the encoders, and the cached texts."""
        super().to(device)
        self._prompts.to(device)
