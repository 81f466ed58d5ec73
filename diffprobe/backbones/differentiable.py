"""Feature maps and cross-attention of a denoiser with gradients to its inputs, for training through a frozen model.

The network keeps its weights: none of them requires a gradient unless `trainable` is set, so none has a gradient or a
state of an optimiser. Activations of its blocks can be computed again in the backward pass instead of being held
(Chen et al., 1604.06174); gradients are the same.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.base import Backbone, BackboneSpec, Condition
from diffprobe.backbones.readouts import split_tap
from diffprobe.backbones.taps import TapInfo, resolve, tap_infos, trace_spec
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.shapes import FeatureMap

Size = tuple[int, int]
"""Height and width of a map."""


@dataclass(frozen=True)
class Reading:
    """What one pass gives.

    Attributes:
        maps: tap -> feature map.
        attention: size of a map -> probability of each text token at each place, the mean over heads and over the
            cross-attentions of that size.
    """

    maps: dict[str, Float[Tensor, "batch _ _ _"]]
    attention: dict[Size, Float[Tensor, "batch tokens _ _"]]


class DifferentiableBackbone:
    """Reads taps of a loaded backbone with gradients.

    Not an `nn.Module`, so that no module that holds it has the weights in its checkpoint or optimiser.

    Args:
        backbone: with its whole denoiser (`load_whole`).
        spec: its description.
        taps: paths, globs or aliases of maps.
        attention: paths of cross-attentions, without a readout; see `cross_attentions`.
        checkpointing: compute activations of the blocks again in the backward pass.
        trainable: let the denoiser's own weights have gradients.

    Raises: UnknownTap; ConfigError for a denoiser that cannot compute activations again.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: BackboneSpec,
        *,
        taps: Sequence[str],
        attention: Sequence[str] = (),
        checkpointing: bool = True,
        trainable: bool = False,
    ) -> None:
        infos = readable(spec)
        self.backbone, self.spec, self.attention = backbone, spec, tuple(attention)
        self.paths = resolve(taps, list(infos.values()), spec)
        self.infos = {path: infos[path] for path in self.paths}
        self._sizes = {path: infos[f"{path}/probs"].size for path in self.attention}
        for network in backbone.components().values():
            network.requires_grad_(False).eval()
        backbone.denoiser.requires_grad_(trainable)
        set_checkpointing(backbone.denoiser, checkpointing, spec.name)

    def __call__(self, x_t: FeatureMap, timesteps: Int[Tensor, " batch"], condition: Condition) -> Reading:
        """Run the denoiser once; a graph is recorded where gradients are enabled."""
        maps: dict[str, Tensor] = {}
        found: dict[str, dict[str, Tensor]] = {path: {} for path in self.attention}
        with self._noting(maps, found):
            self.backbone.denoise(x_t, timesteps, condition)
        missing = [path for path in self.paths if path not in maps]
        missing += [path for path, own in found.items() if len(own) < 2]
        if missing:
            raise RunFailed(f"a pass did not reach {', '.join(missing)}.", "this is a bug in diffprobe")
        by_size: dict[Size, list[Tensor]] = {}
        for path, own in found.items():
            heads: Any = self.backbone.denoiser.get_submodule(path)
            probs = mean_attention(own["to_q"], own["to_k"], heads=heads.heads)
            size = self._sizes[path]
            by_size.setdefault(size, []).append(probs.transpose(1, 2).unflatten(2, size))
        return Reading(
            {path: maps[path] for path in self.paths},
            {size: torch.stack(parts).mean(0) for size, parts in by_size.items()},
        )

    @contextmanager
    def _noting(self, maps: dict[str, Tensor], found: dict[str, dict[str, Tensor]]) -> Iterator[None]:
        """Hook the modules. A hook keeps what is there and computes nothing: it does not run in the second pass."""
        network, handles = self.backbone.denoiser, []

        def keep(path: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                image = self.spec.layout.image(output, path)
                if image is not None:
                    maps[path] = image

            return hook

        def note(path: str, name: str) -> Any:
            return lambda module, args, output: found[path].__setitem__(name, output)

        try:
            for path in self.paths:
                handles.append(network.get_submodule(path).register_forward_hook(keep(path)))
            for path in self.attention:
                for name in ("to_q", "to_k"):
                    module = network.get_submodule(f"{path}.{name}")
                    handles.append(module.register_forward_hook(note(path, name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def digest(self) -> str:
        """Digest the weights of the denoiser by their bytes."""
        return weights_digest(self.backbone.denoiser)


def readable(spec: BackboneSpec) -> dict[str, TapInfo]:
    """Return the taps of a backbone by path, in the order in which they are reached."""
    return {info.path: info for info in tap_infos(spec, trace_spec(spec, count=False), counted=False)}


def cross_attentions(spec: BackboneSpec, blocks: Sequence[str] = ("down_blocks", "up_blocks")) -> tuple[str, ...]:
    """Return the paths of the cross-attentions inside some groups of blocks.

    Raises: ConfigError for a backbone without cross-attention to a text.
    """
    infos = readable(spec)
    found = [split_tap(path) for path in infos]
    every = [path for path, readout in found if readout == "probs" and f"{path}/logits" in infos]
    own = tuple(path for path in every if path.partition(".")[0] in blocks)
    if not own:
        raise ConfigError(
            f"backbone '{spec.name}' (family {spec.family}) has no cross-attention from the image to a text in "
            f"{' or '.join(blocks)}.",
            "a text adapter and attention maps need a text encoder and a U-Net that attends to its states",
        )
    return own


def set_checkpointing(network: nn.Module, on: bool, name: str) -> None:
    """Switch the second computation of activations on or off. Raises: ConfigError for a network that has no such."""
    model: Any = network
    if on and not getattr(model, "_supports_gradient_checkpointing", False):
        raise ConfigError(
            f"backbone '{name}': its denoiser cannot compute activations again.", fix="checkpointing=false"
        )
    if hasattr(model, "disable_gradient_checkpointing"):
        (model.enable_gradient_checkpointing if on else model.disable_gradient_checkpointing)()


def mean_attention(
    q: Float[Tensor, "batch places width"], k: Float[Tensor, "batch tokens width"], *, heads: int
) -> Float[Tensor, "batch places tokens"]:
    """Return softmax(q k / sqrt(d)) over tokens, the mean over heads, float32.

    Source: Vaswani et al., NeurIPS 2017, equation 1.
    """
    one, other = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    scores = one @ other.transpose(2, 3) * one.shape[-1] ** -0.5
    return scores.softmax(-1).mean(1)


def weights_digest(network: nn.Module) -> str:
    """Digest the weights of a network by their bytes."""
    found = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


class HeldBytes:
    """Counts the bytes of activations that a forward pass holds for its backward pass, weights left out.

    Each tensor counts once, by its storage. Used as a context around the forward pass.

    >>> import torch
    >>> x = torch.ones(8, requires_grad=True)
    >>> with HeldBytes() as held:
    ...     y = x.exp()
    >>> held.total
    32
    """

    def __init__(self, *networks: nn.Module) -> None:
        self._weights = {p.untyped_storage().data_ptr() for one in networks for p in one.parameters()}
        self._seen: dict[int, int] = {}
        self._hooks: Any = None

    @property
    def total(self) -> int:
        """Bytes that are held."""
        return sum(self._seen.values())

    def __enter__(self) -> "HeldBytes":
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return x
