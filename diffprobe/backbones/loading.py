"""Load the part of a denoiser that a plan needs, with trained or with random weights; the same for all families."""

import copy
from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Checkpoint, Family, LoadOptions
from diffprobe.backbones.hooks import prune_after
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.weights import denoiser_source, load_tensors, read_config, require_files
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.rng import derive_seed


def make_network(kind: str, config: Mapping[str, Any], device: torch.device) -> Any:
    """Build a network of diffusers' class `kind` from its config, in evaluation mode."""
    import diffusers

    with device, quiet_libraries():
        return getattr(diffusers, kind).from_config(dict(config)).eval()


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
    Raises: WeightsMissing, WeightsMismatch.
    """
    kind, config = type(spec.denoiser).__name__, read_config(checkpoint, part)
    network: nn.Module
    if options.random_seed is None:
        network = copy.deepcopy(spec.denoiser)
        expected = frozenset(network.state_dict()) | {name for name, _ in network.named_buffers()}
        prune_after(network, needed)
        load_tensors(network, denoiser_source(checkpoint, part)[1], dtype=options.dtype, expected=expected)
    else:
        # Drawn whole and pruned afterwards, so that the weights do not depend on the taps; under a derived seed, so
        # that they differ from those that a training run with the same seed started from.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("random_weights", options.random_seed))
            network = make_network(kind, config, torch.device("cpu")).to(options.dtype)
        prune_after(network, needed)
    if "num_layers" in config:
        _fill_tables(network, kind, config)
    left = [name for name, value in chain(network.named_parameters(), network.named_buffers()) if value.is_meta]
    if left:
        raise WeightsMismatch(
            f"the {part} of '{checkpoint.name}' has tensors that no file holds: {', '.join(left[:3])}.",
            "blocks with fixed filters of their own are not supported",
        )
    return network.eval().requires_grad_(False)


def load_whole(checkpoint: Checkpoint, family: Family, spec: BackboneSpec, options: LoadOptions) -> Backbone:
    """Load a backbone with its whole denoiser, for passes whose prediction is used.

    Raises: WeightsMissing, WeightsMismatch.
    """
    everything = frozenset(path for path, _ in spec.denoiser.named_modules())
    return family.load(checkpoint, spec, everything, options)


def _fill_tables(network: nn.Module, kind: str, config: Mapping[str, Any]) -> None:
    """Compute the position tables of a transformer, buffers that no checkpoint stores: always in float32."""
    stored = network.state_dict()
    absent = [name for name, _ in network.named_buffers() if name not in stored]
    if not absent:
        return
    with torch.random.fork_rng(devices=[]):
        bare = dict(make_network(kind, {**config, "num_layers": 0}, torch.device("cpu")).named_buffers())
    for name in absent:
        if name not in bare:
            raise WeightsMismatch(f"the table '{name}' of {kind} is not one that this family can compute.")
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, bare[name])
