"""What the families with a transformer share: describing it, loading it prune_after, holding it with its VAE and its texts.

A family file adds what is its own: the class, what its modules give, what it is told and how. The VAE is `vae.py`'s,
text encoders are `condition.py`'s.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.backbones.base import BackboneSpec, Checkpoint, LoadOptions
from diffprobe.backbones.hooks import prune_after
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.vae import latent_geometry
from diffprobe.backbones.weights import (
    denoiser_source,
    digest_denoiser,
    digest_files,
    digest_part,
    load_tensors,
    read_config,
    require_files,
)
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.rng import derive_seed

_PART = "transformer"
_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
)


@dataclass(frozen=True)
class LatentGrid:
    """What a transformer denoises.

    Attributes:
        resolution: image side in pixels.
        channels: of the VAE.
        side: of the latents.
    """

    resolution: int
    channels: int
    side: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.channels, self.side, self.side

    def empty(self) -> Tensor:
        """Make one on the meta device."""
        return torch.empty(1, *self.shape, device="meta")


def describe_denoiser(checkpoint: Checkpoint, kind: str) -> Any:
    """Make a checkpoint's transformer on the meta device.

    Args:
        kind: its diffusers class.
    Raises: WeightsMissing; WeightsMismatch if the config is of another class.
    """
    config = read_config(checkpoint, _PART)
    name = config.get("_class_name")
    if name not in (kind, "Transformer2DModel"):  # the old name of several, still in their checkpoints
        raise WeightsMismatch(f"the transformer of '{checkpoint.name}' is a {name}; this family takes {kind}.")
    try:
        return _make(kind, config, torch.device("meta"))
    except (NotImplementedError, ValueError, TypeError) as error:
        raise WeightsMismatch(f"the config of the transformer of '{checkpoint.name}' is no {kind}: {error}") from error


def _make(kind: str, config: Mapping[str, Any], device: torch.device) -> Any:
    import diffusers

    with device, quiet_libraries():
        return getattr(diffusers, kind).from_config(dict(config)).eval()


def find_latents(
    checkpoint: Checkpoint, resolution: int | None, *, own: int, patch: int, channels: int, only_own: bool = False
) -> LatentGrid:
    """Say what is denoised at a resolution.

    Args:
        resolution: image side in pixels; None takes the checkpoint's own.
        own: side of the latents that the transformer was made for.
        patch: latent places on a side of one token.
        channels: latent channels that the transformer takes.
        only_own: whether it takes no other side.
    Raises: WeightsMissing; WeightsMismatch if VAE and transformer do not go together; ConfigError.
    """
    read_config(checkpoint, "vae")
    given, factor = latent_geometry(checkpoint.part("vae"))
    if given != channels:
        raise WeightsMismatch(
            f"the transformer of '{checkpoint.name}' takes {channels} latent channels, its VAE gives {given}."
        )
    side = own * factor if resolution is None else resolution
    if only_own and side != own * factor:
        raise ConfigError(
            f"resolution {side}, but the positions of '{checkpoint.name}' are fixed.",
            f"allowed: {own * factor}",
            fix=f"features.resolution={own * factor}",
        )
    if side <= 0 or side % (factor * patch):
        raise ConfigError(
            f"resolution {side} of '{checkpoint.name}' gives no whole number of tokens.",
            f"allowed: multiples of {factor * patch}, which is {factor} (VAE) x {patch} (patch)",
        )
    return LatentGrid(side, channels, side // factor)


def check_width(checkpoint: Checkpoint, what: str, given: int | None, taken: int | None) -> None:
    """Refuse text encoders that do not fit the transformer. Raises: WeightsMismatch."""
    if given != taken:
        raise WeightsMismatch(
            f"{what} of '{checkpoint.name}' is {given} wide, its transformer takes {taken}.",
            "the parts come from different checkpoints",
        )


def load_denoiser(
    checkpoint: Checkpoint, spec: BackboneSpec, needed: Collection[str], options: LoadOptions, kind: str
) -> nn.Module:
    """Load the modules in `needed` of the transformer, or draw their weights afresh; the spec stays as it is.

    Raises: WeightsMissing, WeightsMismatch.
    """
    config = read_config(checkpoint, _PART)
    if options.random_seed is None:
        network = copy.deepcopy(spec.denoiser)
        expected = frozenset(network.state_dict()) | {name for name, _ in network.named_buffers()}
        prune_after(network, needed)
        load_tensors(network, denoiser_source(checkpoint, _PART)[1], dtype=options.dtype, expected=expected)
    else:
        # drawn whole and then prune_after, so that the weights do not depend on the taps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("random_weights", options.random_seed))
            network = _make(kind, config, torch.device("cpu")).to(options.dtype)
        prune_after(network, needed)
    _fill_tables(network, kind, config)
    return network.eval().requires_grad_(False)


def _fill_tables(network: nn.Module, kind: str, config: Mapping[str, Any]) -> None:
    """Compute the buffers that no checkpoint stores, the tables of positions: in float32, as they are always made."""
    stored = network.state_dict()
    absent = [name for name, _ in network.named_buffers() if name not in stored]
    if not absent:
        return
    with torch.random.fork_rng(devices=[]):
        bare = dict(_make(kind, {**config, "num_layers": 0}, torch.device("cpu")).named_buffers())
    for name in absent:
        if name not in bare:
            raise WeightsMismatch(f"the table '{name}' of {kind} is not one that this family can compute.")
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, bare[name])


def require_parts(checkpoint: Checkpoint, options: LoadOptions, parts: Sequence[str]) -> None:
    """Check that VAE, text encoders and, unless it is drawn afresh, the transformer have weights.

    Raises: WeightsMissing, naming all that lack them.
    """
    own = [] if options.random_seed is not None else [denoiser_source(checkpoint, _PART)[1]]
    require_files(*own, *(checkpoint.part(name) for name in ("vae", *parts)))


def digest_parts(
    checkpoint: Checkpoint, trained: bool, encoders: Sequence[str] = (), tokenizers: Sequence[str] = ()
) -> dict[str, str]:
    """Digest the parts; without `trained` the transformer's weights do not count. Raises: WeightsMissing."""
    parts = ("vae", *encoders)
    require_files(*(checkpoint.part(name) for name in parts))
    return {
        "denoiser": digest_denoiser(checkpoint, _PART, weights=trained),
        **{name: digest_part(checkpoint.part(name)) for name in parts},
        **{name: digest_files([checkpoint.part(name) / file for file in _TOKENIZER_FILES]) for name in tokenizers},
    }
