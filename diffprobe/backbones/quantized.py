"""Weights of a frozen denoiser in 8 bits, for passes in the precision of `backbone.dtype` (weight-only quantisation).

The linear layers inside the blocks are quantised, by torchao: int8 or fp8 (e4m3), with one scale per output channel.
Convolutions, norms, embeddings and what is outside of the blocks stay as they are. A layer turns its weights back into
the precision of the pass when it runs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.core.errors import ConfigError

INSTALL = "pip install 'diffprobe[quantize]'"
"""Command that installs the library."""
_PER_CHANNEL = {"int8": 5, "fp8": 4}
"""Bytes that torchao keeps for each output channel of a layer: a scale in float32, and for int8 a zero point."""


def linear_layers(network: nn.Module, blocks: Sequence[str]) -> list[str]:
    """Return the paths of the linear layers inside some blocks of a network, in the order of the blocks."""
    found = []
    for block in blocks:
        for path, module in network.get_submodule(block).named_modules(prefix=block):
            if isinstance(module, nn.Linear):
                found.append(path)
    return list(dict.fromkeys(found))


def quantize(network: nn.Module, how: str) -> None:
    """Quantise the weights of the linear layers of a network or block in place.

    Args:
        how: `int8` or `fp8`.

    Raises: ConfigError if torchao is not installed.
    """
    with quiet_libraries():
        try:
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
        except ImportError as error:
            raise ConfigError(
                f"backbone.quantize={how} needs the package torchao ({error}).", fix=f"{INSTALL}; or quantize=none"
            ) from error
        config: Any = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[how]()
        quantize_(network, config)


def planned_bytes(network: nn.Module, dtype: torch.dtype, how: str = "none") -> int:
    """Return the bytes of a network or block as it will be held, from its shapes; it may be on the meta device.

    Args:
        dtype: precision of the pass, of all floating-point tensors that are not quantised.
        how: `none`, `int8` or `fp8`, of its linear layers.
    """
    packed = {} if how == "none" else {
        id(module.weight): module.weight.numel() + _PER_CHANNEL[how] * module.out_features
        for module in network.modules() if isinstance(module, nn.Linear)
    }  # fmt: skip
    values = (*network.parameters(), *network.buffers())
    plain = (x.numel() * (dtype.itemsize if x.is_floating_point() else x.element_size()) for x in values)
    return sum(packed.get(id(x), n) for x, n in zip(values, plain, strict=True))


def packed_bytes(network: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of a network as they are held, quantised or not."""
    return sum(map(_bytes_of, (*network.parameters(), *network.buffers())))


def _bytes_of(value: Tensor) -> int:
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        return value.numel() * value.element_size()
    return sum(_bytes_of(getattr(value, name)) for name in flatten()[0])
