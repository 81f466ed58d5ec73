"""Load the part of a denoiser that a plan needs, with trained or with random weights; the same for all families."""

import copy
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Family, LoadOptions
from diffprobe.backbones.drawn_blocks import drawn_blocks
from diffprobe.backbones.edm2_network import Edm2UNet
from diffprobe.backbones.edm_network import EdmUNet
from diffprobe.backbones.hooks import prune_after
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.lora import fuse
from diffprobe.backbones.network_size import bounded, network_bytes, require_memory
from diffprobe.backbones.offload import BlockOffload, Read, empty, like
from diffprobe.backbones.part_config import CONFIG, network_settings, read_part_config
from diffprobe.backbones.quantized import planned_bytes, quantize
from diffprobe.backbones.sit_network import SiT
from diffprobe.backbones.weight_files import require_files
from diffprobe.backbones.weights import (
    config_file,
    denoiser_source,
    load_tensors,
    precision_of,
    read_config,
    read_places,
    tensor_names,
)
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.foreign import naming
from diffprobe.core.rng import derive_seed

_OWN: dict[str, Any] = {"SiT": SiT, "EdmUNet": EdmUNet, "Edm2UNet": Edm2UNet}
"""Networks of research code, which diffusers does not have."""
_DEPTHS = ("num_layers", "num_text_blocks", "num_visual_blocks")
"""Settings with the number of a network's blocks."""
_DIFFUSERS = {"AutoencoderKLEdm2": "AutoencoderKL"}
"""Classes of ours that are a network of diffusers, used in another way."""


def make_network(kind: str, config: Mapping[str, Any], device: torch.device, *, where: Path | str) -> Any:
    """Build a network of diffusers' class `kind`, or of one in `_OWN`, from its config, in evaluation mode.

    Args:
        config: as `read_part_config` returns it.
        where: the file of the config, for messages.
    Raises: WeightsMismatch if it is not a config of that class, or describes more than `network_size` allows.
    """
    import diffusers

    settings = network_settings(config)
    with naming(where, f"a configuration of {kind}"), bounded(settings, where), device, quiet_libraries():
        return (_OWN.get(kind) or getattr(diffusers, _DIFFUSERS.get(kind, kind))).from_config(settings).eval()


def load_network(kind: str, folder: Path, *, dtype: torch.dtype = torch.float32, **changes: object) -> Any:
    """Load a whole network of diffusers' class `kind` from the folder of a part, in evaluation mode.

    Args:
        changes: settings that replace those of the config, for example dropout.
    Raises: WeightsMissing, WeightsMismatch, RunFailed.
    """
    config = read_part_config(folder / CONFIG)
    network = make_network(kind, {**config, **changes}, torch.device("meta"), where=folder / CONFIG)
    load_tensors(network, folder, dtype=dtype, expected=frozenset(network.state_dict()))
    _require_complete(network, folder)
    return network


def require_parts(checkpoint: Checkpoint, denoiser: str, parts: Sequence[str], *, trained: bool) -> None:
    """Check that the parts of a pipeline have their weights, the denoiser's too if it is `trained`.

    Args:
        denoiser: name of the denoiser's part, `unet` or `transformer`.
        parts: names of the other parts.
    Raises: WeightsMissing, naming all that lack them.
    """
    own = [denoiser_source(checkpoint, denoiser)[1]] if trained else []
    require_files(*own, *(checkpoint.part(name) for name in parts))


def load_denoiser(
    checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions, *, part: str
) -> nn.Module:
    """Load the modules in `needed` of the denoiser, frozen and in evaluation mode; the spec stays as it is.

    Args:
        part: name of the denoiser's part, `unet` or `transformer`.
    With `offload_blocks` the blocks stay in files; random ones are put into a temporary folder, as large as they are.
    With `quantize` each block is quantised when it has been read or drawn, before the next one is.

    Raises: WeightsMissing, WeightsMismatch; ConfigError if quantised weights lack their library.
    """
    kind, config, where = type(spec.denoiser).__name__, read_config(checkpoint, part), config_file(checkpoint, part)
    blocks = tuple(path for path in spec.blocks if path in needed)
    network: nn.Module
    if options.random_seed is None:
        network = copy.deepcopy(spec.denoiser)
        expected, source = tensor_names(network), denoiser_source(checkpoint, part)[1]
        prune_after(network, needed)
        # blocks to be quantised are read one by one, so that one of them is held in full precision at a time
        left = blocks if options.offload_blocks or options.quantize != "none" else ()
        kept = _kept(network)
        places = load_tensors(network, source, dtype=options.dtype, expected=expected, leave=left, kept=kept)
        read = _from_files(network, places, options.dtype)
    else:
        # Drawn in the order of the whole network, so that the weights do not depend on the taps; under a derived seed,
        # so that they differ from those that a training run with the same seed started from.
        drawn = _Drawn(needed, options, _kept(spec.denoiser))
        require_memory(_drawn_bytes(spec, blocks, options), where)
        with torch.random.fork_rng(devices=[]), drawn_blocks(spec.denoiser, spec.blocks, drawn.keep):
            torch.manual_seed(derive_seed("random_weights", options.random_seed))
            network = make_network(kind, config, torch.device("cpu"), where=where)
        prune_after(network, needed)
        read = drawn.read
    packed = options.random_seed is not None and options.quantize != "none"
    _set_precision(network, options.dtype, _kept(network), apart=blocks if packed else ())
    depths = [name for name in _DEPTHS if name in config]
    if depths:
        _fill_tables(network, kind, {**config, **dict.fromkeys(depths, 0)}, where)
    if options.offload_blocks:
        BlockOffload(network, blocks, read)
    elif options.quantize != "none" and options.random_seed is None:
        for path in blocks:
            block = network.get_submodule(path)
            block.load_state_dict(read(path), assign=True)
            quantize(block, options.quantize)
    _require_complete(network, where.parent, outside=blocks if options.offload_blocks else ())
    return network.eval().requires_grad_(False)


def _kept(network: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules and parameters that a network of diffusers needs in float32."""
    return tuple(getattr(network, "_keep_in_fp32_modules", None) or ())


def _set_precision(
    network: nn.Module, dtype: torch.dtype, kept: Collection[str], prefix: str = "", *, apart: Collection[str] = ()
) -> None:
    """Convert a network, or a block at `prefix`, in place: all but the tensors in `kept` and the modules `apart`."""
    if not apart and (not kept or dtype == torch.float32):
        nn.Module.to(network, dtype)  # diffusers' own `to` warns about a list of modules that is empty
        return
    for path, module in network.named_modules(prefix=prefix):
        if any(path == one or path.startswith(f"{one}.") for one in apart):
            continue
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and value.is_floating_point():
                    held[name] = like(value, value.to(precision_of(f"{path}.{name}", dtype, kept)))


def _drawn_bytes(spec: BackboneSpec, blocks: Sequence[str], options: LoadOptions) -> int:
    """Return the most bytes that are held while a network is drawn: all in float32 but the blocks that are kept."""
    each = [network_bytes(spec.denoiser.get_submodule(path)) for path in spec.blocks]
    kept = 0 if options.offload_blocks else sum(
        planned_bytes(spec.denoiser.get_submodule(path), options.dtype, options.quantize) for path in blocks
    )  # fmt: skip
    return network_bytes(spec.denoiser) - sum(each) + kept + max(each, default=0)


def _from_files(network: nn.Module, places: Mapping[str, tuple[Path, str]], dtype: torch.dtype) -> Read:
    """Return what reads a block of a network from the checkpoint's files."""

    def read(path: str) -> dict[str, Tensor]:
        wanted = {f"{path}.{name}": value for name, value in network.get_submodule(path).state_dict().items()}
        found = read_places({name: places[name] for name in wanted}, wanted, dtype=dtype, kept=_kept(network))
        return {name.removeprefix(f"{path}."): value for name, value in found.items()}

    return read


class _Drawn:
    """Random blocks: those that no tap needs are freed as they are made; the others are quantised or put into files.

    Args:
        needed: modules that run.
        options: how weights are read.
        kept: names of what stays in float32.
    """

    def __init__(self, needed: Collection[str], options: LoadOptions, kept: Collection[str]) -> None:
        self._needed, self._options, self._kept = needed, options, kept
        self._folder = TemporaryDirectory(prefix="diffprobe-blocks-") if options.offload_blocks else None

    def keep(self, path: str, block: nn.Module) -> None:
        """Take a block that has been made."""
        if path in self._needed:
            _set_precision(block, self._options.dtype, self._kept, path)
        if path in self._needed and self._folder is None:
            if self._options.quantize != "none":
                quantize(block, self._options.quantize)
            return
        if path in self._needed:
            save_file({name: x.contiguous() for name, x in block.state_dict().items()}, self._file(path))
        empty(block)

    def read(self, path: str) -> dict[str, Tensor]:
        """Read a block that was put into a file."""
        return load_file(self._file(path))

    def _file(self, path: str) -> Path:
        assert self._folder is not None
        return Path(self._folder.name) / f"{path}.safetensors"


def _require_complete(network: nn.Module, folder: Path, *, outside: Sequence[str] = ()) -> None:
    named = chain(network.named_parameters(), network.named_buffers())
    apart = tuple(f"{path}." for path in outside)
    left = [name for name, value in named if value.is_meta and not name.startswith(apart)]
    if left:
        raise WeightsMismatch(
            f"the network in '{folder}' has tensors that no file holds: {', '.join(left[:3])}.",
            "blocks with fixed filters of their own are not supported",
        )


def load_backbone(
    checkpoint: Checkpoint, family: Family, spec: BackboneSpec, needed: Collection[str], options: LoadOptions
) -> Backbone:
    """Load what is needed of a backbone, with its LoRA added. Raises: WeightsMissing, WeightsMismatch, ConfigError."""
    backbone = family.load(checkpoint, spec, needed, options)
    if checkpoint.lora is not None:
        fuse(checkpoint.lora, backbone.components(), spec.denoiser, name=checkpoint.name)
    return backbone


def load_whole(checkpoint: Checkpoint, family: Family, spec: BackboneSpec, options: LoadOptions) -> Backbone:
    """Load a backbone with its whole denoiser, for passes whose prediction is used.

    Raises: WeightsMissing, WeightsMismatch.
    """
    everything = frozenset(path for path, _ in spec.denoiser.named_modules())
    with naming(checkpoint.folder or checkpoint.name, "a checkpoint that can be loaded"):
        return load_backbone(checkpoint, family, spec, everything, options)


def _fill_tables(network: nn.Module, kind: str, config: Mapping[str, Any], where: Path) -> None:
    """Compute the position tables of a transformer, buffers that no checkpoint stores: always in float32.

    Args:
        config: that of the transformer, without blocks.
    """
    stored = network.state_dict()
    absent = [name for name, _ in network.named_buffers() if name not in stored]
    if not absent:
        return
    require_memory(4 * network_bytes(make_network(kind, config, torch.device("meta"), where=where)), where)
    with torch.random.fork_rng(devices=[]):
        bare = dict(make_network(kind, config, torch.device("cpu"), where=where).named_buffers())
    for name in absent:
        if name not in bare:
            raise WeightsMismatch(f"the table '{name}' of {kind} is not one that this family can compute.")
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, bare[name])
