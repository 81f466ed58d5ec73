"""DifFeed: features of a first pass fed back into the encoder of a second one (Mukhopadhyay et al., 2311.17921).

The maps of decoder layers, each through a 1 x 1 convolution, batch normalisation and ReLU, are resized and added to the
outputs of the mirrored encoder layers. Both passes have the same input. Only these layers are trained: the gradient
passes the second pass of the frozen denoiser.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import interpolate

from diffprobe.backbones.base import BackboneSpec, Condition
from diffprobe.backbones.differentiable import DifferentiableBackbone, readable
from diffprobe.core.errors import ConfigError
from diffprobe.core.shapes import FeatureMap

Maps = Mapping[str, Float[Tensor, "batch _ _ _"]]


def feedback_pairs(paths: Sequence[str]) -> dict[str, str]:
    """Return decoder layer -> encoder layer: of each up block its last layer but one, to the first of its down block.

    The first up block is mirrored by the last down block. In the paper's network (ADM) these are the decoder blocks 21,
    24, 27, 30, 33 and 36, fed to 17, 14, 11, 8, 5 and 2. A layer is read after its attention, where it has one.

    Args:
        paths: paths of all taps.
    Raises: ConfigError for a denoiser that is not a U-Net with as many up as down blocks.
    """
    layers: dict[str, dict[int, dict[int, str]]] = {"down_blocks": {}, "up_blocks": {}}
    for path in paths:
        parts = path.split(".")
        if len(parts) == 4 and parts[0] in layers and parts[2] in ("resnets", "attentions"):
            own = layers[parts[0]].setdefault(int(parts[1]), {})
            if parts[2] == "attentions" or int(parts[3]) not in own:
                own[int(parts[3])] = path
    ups, downs = layers["up_blocks"], layers["down_blocks"]
    if not ups or len(ups) != len(downs) or any(len(own) < 2 for own in ups.values()):
        raise ConfigError("feedback goes from the up blocks of a U-Net to its down blocks; this denoiser has none.")
    found = {}
    for number, down in zip(sorted(ups), sorted(downs, reverse=True), strict=True):
        found[ups[number][max(ups[number]) - 1]] = downs[down][min(downs[down])]
    return found


class FeedbackLayers(nn.Module):
    """What makes an addition to the encoder of each map of the decoder.

    Args:
        widths: channels of the decoder layer and of the encoder layer, of each pair.
    """

    def __init__(self, widths: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(a, b, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths]
        )

    def forward(self, maps: Sequence[Float[Tensor, "batch _ _ _"]]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the additions, at the sizes of the decoder's maps."""
        return [layer(one.float()) for layer, one in zip(self.layers, maps, strict=True)]

    @torch.no_grad()
    def silence(self) -> None:
        """Set scale and offset of the normalisation to 0, so that nothing is added."""
        for layer in self.layers:
            norm: Any = layer[1]  # type: ignore[index]
            norm.weight.zero_()
            norm.bias.zero_()


class TwoPasses:
    """Reads one tap of a second pass, with the maps of the first one fed back.

    Args:
        reader: of `read` and all decoder layers, without a second computation of activations: the additions are made
            by hooks, which are gone in the backward pass.
        pairs: decoder layer -> encoder layer.
        read: the tap that is read.

    Raises: ConfigError for a reader that computes activations again; KeyError for a tap that it does not read.
    """

    def __init__(self, reader: DifferentiableBackbone, pairs: Mapping[str, str], read: str) -> None:
        network: Any = reader.backbone.denoiser
        if getattr(network, "is_gradient_checkpointing", False):
            raise ConfigError("feedback with activations that are computed again.", fix="checkpointing=false")
        self.reader, self.pairs, self.read = reader, dict(pairs), read
        self.widths = feedback_widths(reader.spec, pairs)

    @torch.no_grad()
    def first(self, x_t: FeatureMap, timesteps: Int[Tensor, " batch"], condition: Condition) -> dict[str, Tensor]:
        """Return the maps of the first pass, without gradients."""
        return self.reader(x_t, timesteps, condition).maps

    def second(
        self,
        layers: FeedbackLayers,
        maps: Maps,
        x_t: FeatureMap,
        timesteps: Int[Tensor, " batch"],
        condition: Condition,
    ) -> Float[Tensor, "batch _ _ _"]:
        """Return the tap after the second pass, with gradients to the feedback layers.

        Args:
            maps: of `first`.
        """
        additions = layers([maps[path] for path in self.pairs])
        with self._adding(dict(zip(self.pairs.values(), additions, strict=True))):
            return self.reader(x_t, timesteps, condition).maps[self.read]

    @contextmanager
    def _adding(self, additions: Maps) -> Iterator[None]:
        network, layout, handles = self.reader.backbone.denoiser, self.reader.spec.layout, []

        def add(path: str, addition: Tensor) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                image = layout.image(output, path)
                assert image is not None
                size = (image.shape[2], image.shape[3])
                total = image + interpolate(addition, size=size, mode="bilinear", align_corners=False).to(image.dtype)
                return (total, *output[1:]) if isinstance(output, tuple) else total

            return hook

        try:
            for path, addition in additions.items():
                handles.append(network.get_submodule(path).register_forward_hook(add(path, addition)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def feedback_widths(spec: BackboneSpec, pairs: Mapping[str, str]) -> list[tuple[int, int]]:
    """Return the channels of decoder and encoder layer of each pair."""
    infos = readable(spec)
    return [(infos[source].channels, infos[target].channels) for source, target in pairs.items()]
