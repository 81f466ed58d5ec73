"""Check a checkpoint without loading it: can it be read, what is missing, whose is it, how large is it.

Networks are built on the meta device and compared with the headers of the weight files, by the code that loads them
too. All faults are collected; a checkpoint without one loads, unless its tensors are damaged.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from diffprobe.backbones.base import DTYPES, BackboneSpec, Checkpoint
from diffprobe.backbones.chat_models import is_chat_model, match_chat_model
from diffprobe.backbones.denoiser_runner import rows_per_pass
from diffprobe.backbones.families import describe
from diffprobe.backbones.hub import UNUSED
from diffprobe.backbones.loading import make_network
from diffprobe.backbones.locate import locate
from diffprobe.backbones.lora import find_lora, require_fit
from diffprobe.backbones.lora_names import DENOISER
from diffprobe.backbones.memory_estimate import held_weights, peak_activations
from diffprobe.backbones.network_size import network_bytes
from diffprobe.backbones.part_config import part_names
from diffprobe.backbones.quantized import linear_layers
from diffprobe.backbones.text_encoders import clip_class, require_t5_vocabulary, t5_class, t5_tokenizer
from diffprobe.backbones.tokenizer_files import load_tokenizer, require_vocabulary
from diffprobe.backbones.transformers_model import match_transformer
from diffprobe.backbones.vae import PIXELS, VIDEO_VAES, match_encoder
from diffprobe.backbones.weight_files import weight_files
from diffprobe.backbones.weights import DENOISERS, config_file, denoiser_source, match_whole, read_config
from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import ConfigError, DiffprobeError, WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming

_AUTOENCODERS = ("vae", "movq")
_CARD_BYTES = 2**20
"""Bytes of a model card that are looked at."""
Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """One part of a checkpoint."""

    name: str
    """Name in its pipeline: `unet`, `vae`, ..."""
    kind: str
    """Class in diffusers or transformers."""
    n_parameters: int | None = None
    """Parameters that are read (an autoencoder without its decoder); None for parts without any."""
    n_bytes: int = 0
    """Bytes of its weight files."""


@dataclass(frozen=True, kw_only=True)
class MemoryReport:
    """An estimate of the memory that features need, in bytes."""

    weights: int
    """Weights of the whole denoiser, the encoder of images, and the text encoders, as they are held in a pass."""
    loading: int
    """What is held besides while they are read: with `quantize` a block in full precision."""
    encoding: int
    """Activations while the images of a batch are encoded."""
    denoising: int
    """Activations of the denoiser in a pass of one row per image."""
    full_pass: int
    """Activations of the denoiser in the largest pass, where a batch has several timesteps, draws or conditions."""
    rows: int
    """Rows of the pass of `denoising`."""
    most_rows: int
    """Rows of the largest pass."""

    @property
    def batch(self) -> int:
        """Weights, and the largest one of both activations and what loading needs."""
        return self.weights + max(self.encoding, self.denoising, self.loading)

    @property
    def largest(self) -> int:
        """The same with the largest pass."""
        return self.weights + max(self.encoding, self.full_pass, self.loading)


@dataclass(kw_only=True)
class CheckReport:
    """What `check_backbone` found."""

    name: str
    """As given by the user."""
    folder: Path | None = None
    """Where it is."""
    pipeline: str | None = None
    """Class of its pipeline."""
    family: str | None = None
    """Family that reads it."""
    licence: str | None = None
    """Licence by its model card; None if not stated."""
    resolution: int | None = None
    """Image side in pixels."""
    parts: list[PartReport] = field(default_factory=list)
    """Parts without faults, in the order of the pipeline."""
    faults: list[DiffprobeError] = field(default_factory=list)
    """Everything that keeps it from being read."""
    memory: MemoryReport | None = None
    """Estimate; None where a fault prevents one."""


def check_backbone(
    path: str,
    *,
    resolution: int | None = None,
    revision: str | None = None,
    single_file_config: str | None = None,
    lora: str | None = None,
    batch_size: int = 64,
    dtype: str = "float32",
    offload: Literal["none", "blocks"] = "none",
    quantize: Literal["none", "int8", "fp8"] = "none",
) -> CheckReport:
    """Check a checkpoint on this machine; nothing is downloaded, and no weights are read.

    Args:
        path: folder, hub id in the cache, the name of a shipped model, or `pixels`.
        resolution: image side in pixels; None takes the checkpoint's own.
        revision: for hub ids.
        single_file_config: folder or hub id with the configurations of a single file, which is converted for the check.
        lora: FILE or FILE@WEIGHT that would be added to the weights.
        batch_size: images per batch, for the estimate of the memory.
        dtype: precision of the forward pass, for the same.
        offload: `backbone.offload` of the run, for the same.
        quantize: `backbone.quantize` of the run, for the same.
    Raises: ConfigError for a resolution or revision that it cannot have, and for settings that clash or have no effect.
        What is wrong with the checkpoint itself is in `faults`.
    """
    BackboneConfig(path=path, lora=lora, offload=offload, quantize=quantize)
    report = CheckReport(name=path)
    checkpoint = _collect(
        report, lambda: locate(path, revision=revision, single_file_config=single_file_config, cached_only=True)
    )
    if checkpoint is None:
        return report
    report.folder, report.pipeline = checkpoint.folder, str(checkpoint.index["_class_name"])
    report.licence = None if checkpoint.folder is None else stated_licence(checkpoint.folder)
    networks: dict[str, nn.Module] = {}
    for name in part_names(checkpoint.index):
        if name in UNUSED:
            continue
        kind = checkpoint.index[name][1]
        before = len(report.faults)
        network = _collect(report, lambda: _check_part(checkpoint, name, kind))  # noqa: B023  # called at once
        if len(report.faults) == before:
            networks |= {} if network is None else {name: network}
            report.parts.append(_part(checkpoint, name, kind, network))
    described = _collect(report, lambda: describe(checkpoint, resolution))
    if described is not None:
        spec = described[1]
        _require_effect(spec, offload, quantize)
        report.family, report.resolution = spec.family, spec.resolution
        if lora is not None:
            _collect(report, lambda: _check_lora(lora, spec, networks))
        if not report.faults:
            report.memory = _collect(
                report, lambda: _estimate(spec, networks, batch_size, DTYPES[dtype], offload, quantize)
            )
    return report


def _collect(report: CheckReport, step: Callable[[], Value]) -> Value | None:
    """Run a step of the check; a fault of the checkpoint is kept, each once."""
    try:
        return step()
    except (WeightsMissing, WeightsMismatch) as fault:
        if str(fault) not in map(str, report.faults):
            report.faults.append(fault)
        return None


def _check_part(checkpoint: Checkpoint, name: str, kind: str) -> nn.Module | None:
    """Check one part and return its network on the meta device; None for a part without one."""
    folder = checkpoint.part(name)
    if "Scheduler" in kind:
        return None  # read by the description of the family
    if "Tokenizer" in kind or name.startswith("tokenizer"):  # that of FLUX.2 is a processor
        _check_tokenizer(folder, kind)
        return None
    if name in DENOISERS:
        config, source = read_config(checkpoint, name), denoiser_source(checkpoint, name)[1]
        network: Any = make_network(kind, config, torch.device("meta"), where=config_file(checkpoint, name))
        match_whole(network, source)
        return network  # type: ignore[no-any-return]
    if name in _AUTOENCODERS:
        return match_encoder(folder)  # type: ignore[no-any-return]
    if "T5" in kind:
        return match_transformer(t5_class(folder), folder)  # type: ignore[no-any-return]
    if kind == "Gemma2Model":
        from transformers import Gemma2Model

        return match_transformer(Gemma2Model, folder)  # type: ignore[no-any-return]
    if kind == "BertModel":
        from transformers import BertModel

        return match_transformer(BertModel, folder)  # type: ignore[no-any-return]
    if name.startswith("text_encoder") and is_chat_model(folder):
        return match_chat_model(folder)  # type: ignore[no-any-return]
    if "CLIP" in kind:
        return match_transformer(clip_class(folder), folder)  # type: ignore[no-any-return]
    return None  # the description of the family refuses it, or does not read it


def _check_lora(setting: str, spec: BackboneSpec, networks: dict[str, nn.Module]) -> None:
    if not any(True for _ in spec.denoiser.parameters()):
        raise WeightsMissing(f"backbone '{spec.name}' has no weights that a LoRA could change.", fix="leave lora out")
    texts = {name: network for name, network in networks.items() if name.startswith("text_encoder")}
    require_fit(find_lora(setting), {DENOISER: spec.denoiser, **texts}, name=spec.name)


_TOKENIZERS = {
    "CLIP": "CLIPTokenizer",
    "Gemma": "GemmaTokenizerFast",
    "Bert": "BertTokenizer",
    **dict.fromkeys(("Qwen2", "Pixtral", "PreTrainedTokenizer", "TokenizersBackend"), "AutoTokenizer"),
}
"""Start of the class of a tokenizer -> the class that loads it; those of all others are of a T5."""


def _check_tokenizer(folder: Path, kind: str) -> None:
    import transformers

    words = next((name for start, name in _TOKENIZERS.items() if kind.startswith(start)), None)
    if words is None:
        require_t5_vocabulary(folder.parent, folder.name)
        words = t5_tokenizer({"tokenizer": ["transformers", kind]}, "tokenizer")
    else:
        require_vocabulary(folder.parent, folder.name)
    load_tokenizer(getattr(transformers, words), folder)


def _part(checkpoint: Checkpoint, name: str, kind: str, network: nn.Module | None) -> PartReport:
    if network is None:
        return PartReport(name=name, kind=kind)
    source = denoiser_source(checkpoint, name)[1] if name in DENOISERS else checkpoint.part(name)
    return PartReport(
        name=name,
        kind=kind,
        n_parameters=sum(x.numel() for x in network.parameters()),
        n_bytes=sum(path.stat().st_size for path in weight_files(source)),
    )


def stated_licence(folder: Path) -> str | None:
    """Return the licence in the front matter of a folder's model card (README.md); None if none is stated."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with open(card, encoding="utf-8", errors="replace") as file:
        text = file.read(_CARD_BYTES)
    front = re.match(r"\s*---[ \t]*\n(.*?)\n---", text, re.DOTALL)
    lines = [] if front is None else re.findall(r"^(license|license_name|license_link):[ \t]*(.+)$", front[1], re.M)
    values = {key: value.strip().strip("'\"") for key, value in lines}
    name = values.get("license")
    if name in (None, "other"):
        name = values.get("license_name", name)
    link = values.get("license_link")
    return name if name is None or link is None else f"{name} ({link})"


def _require_effect(spec: BackboneSpec, offload: str, quantize: str) -> None:
    """Refuse settings of the blocks that a backbone has nothing for. Raises: ConfigError."""
    idle = {
        "offload": offload != "none" and not any(map(network_bytes, map(spec.denoiser.get_submodule, spec.blocks))),
        "quantize": quantize != "none" and not linear_layers(spec.denoiser, spec.blocks),
    }
    for name, found in idle.items():
        if found:
            what = "weights" if name == "offload" else "linear layers"
            raise ConfigError(f"{name} has no effect on '{spec.name}': no block has {what}.", fix="remove it")


def _estimate(
    spec: BackboneSpec,
    networks: dict[str, nn.Module],
    batch_size: int,
    dtype: torch.dtype,
    offload: str,
    quantize: str,
) -> MemoryReport:
    """Estimate the memory of a batch. Everything is measured in float32 and scaled to the precision of the pass."""
    scale, side = dtype.itemsize / 4, spec.resolution
    most = rows_per_pass(spec.latent_shape)
    with naming(spec.name, "a checkpoint whose denoiser runs as its configurations describe it"):
        one = peak_activations(spec.denoiser, lambda: spec.run(spec.denoiser)) * scale
    encoding, weights, loading = 0.0, 0.0, 0
    for name, network in networks.items():
        own = scale
        if name in _AUTOENCODERS:
            vae: Any = network
            own = 1.0 if dtype == torch.float16 and getattr(vae.config, "force_upcast", True) else scale
            frames = (1,) if type(vae).__name__ in VIDEO_VAES else ()
            image = torch.empty(1, 3, *frames, side, side, device="meta")
            rows = min(batch_size, max(1, PIXELS // side**2))
            encoding = rows * own * peak_activations(vae, lambda: vae.encode(image))  # noqa: B023  # called at once
        if name in DENOISERS:
            held, loading = held_weights(network, spec.blocks, dtype, offload=offload == "blocks", quantize=quantize)
            weights += held
            continue
        weights += own * 4 * sum(x.numel() for x in network.parameters())
    rows = min(batch_size, most)
    return MemoryReport(
        weights=int(weights),
        loading=loading,
        encoding=int(encoding),
        denoising=int(rows * one),
        full_pass=int(most * one),
        rows=rows,
        most_rows=most,
    )
