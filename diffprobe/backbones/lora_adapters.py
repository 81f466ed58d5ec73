"""A LoRA that is trained while the network stays as it is: its factors are held outside, and hooks add their product.

For a layer y = W x it adds scale * up (down x). The network keeps its weights, its state and its names; only the
factors require gradients. A file that `save` writes is read by `backbone.lora=FILE` (`lora.py`).
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from diffprobe.backbones.lora_names import DENOISER, parse_key
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.safetensors_file import load_safetensors

ATTENTION_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")
"""Ends of the paths of an attention's layers, of self- and cross-attention."""
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"


class LoraAdapters(nn.Module):
    """Factors for the attention layers of a network, which start without effect.

    As in Hu et al. (2106.09685, section 4.1) one factor is Gaussian and the other 0.

    Args:
        network: the denoiser; its parameters are frozen.
        rank: width between the factors.
        seed: seed of the Gaussian factors, standard deviation 1 / sqrt(d_in).
    Raises: ConfigError for a network without such layers, or a rank below 1.

    Attributes:
        layers: the layers by their paths.
        enabled: whether the product is added.
    """

    def __init__(self, network: nn.Module, *, rank: int = 4, seed: int = 0) -> None:
        super().__init__()
        if rank < 1:
            raise ConfigError(f"rank={rank} of a LoRA is out of range: at least 1.")
        self.layers: dict[str, nn.Linear] = {
            path: module
            for path, module in network.named_modules()
            if isinstance(module, nn.Linear) and path.endswith(tuple(f".{end}" for end in ATTENTION_LAYERS))
        }
        if not self.layers:
            raise ConfigError("the network has no attention layers that a LoRA can be trained on.")
        network.requires_grad_(False)
        self._prefix = "unet." if hasattr(network, "down_blocks") else "transformer."
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for layer in self.layers.values():
            start = torch.randn(rank, layer.in_features, generator=generator) * layer.in_features**-0.5
            self.down.append(nn.Parameter(start.to(layer.weight.device)))
            self.up.append(nn.Parameter(torch.zeros(layer.out_features, rank, device=layer.weight.device)))
        self.enabled = True
        self._handles = [
            layer.register_forward_hook(self._hook(number)) for number, layer in enumerate(self.layers.values())
        ]

    def _hook(self, number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if not self.enabled:
                return None
            update = args[0].float() @ self.down[number].T @ self.up[number].T
            return output + update.to(output.dtype)

        return add

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run the network without the LoRA."""
        self.enabled = False
        try:
            yield
        finally:
            self.enabled = True

    def remove(self) -> None:
        """Take the hooks from the network, which is then as it was before."""
        for handle in self._handles:
            handle.remove()

    @property
    def digest(self) -> str:
        """The sha256 of the factors, with the names of their layers."""
        found = hashlib.sha256()
        for name, value in self._tensors().items():
            found.update(name.encode())
            found.update(value.numpy().tobytes())
        return found.hexdigest()

    def save(self, path: Path) -> Path:
        """Write the factors, float32, with the names of diffusers and a scale of 1."""
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            save_file(self._tensors(), temporary)
        return path

    @torch.no_grad()
    def read(self, path: Path) -> None:
        """Take the factors from a file that `save` wrote. Raises: WeightsMismatch for other layers or shapes."""
        stored, own = load_safetensors(path, fix=f"remove '{path}' and run the same command again"), self._tensors()
        if {name: value.shape for name, value in stored.items()} != {name: value.shape for name, value in own.items()}:
            raise WeightsMismatch(f"'{path}' is not a LoRA of these layers and this rank.", fix=f"remove '{path}'")
        for number, layer in enumerate(self.layers):
            self.down[number].copy_(stored[f"{self._prefix}{layer}{_DOWN}"])
            self.up[number].copy_(stored[f"{self._prefix}{layer}{_UP}"])

    def _tensors(self) -> dict[str, Tensor]:
        found = {}
        for number, layer in enumerate(self.layers):
            for end, factor in ((_DOWN, self.down[number]), (_UP, self.up[number])):
                found[f"{self._prefix}{layer}{end}"] = factor.detach().float().cpu().contiguous()
        assert all((key := parse_key(name)) is not None and key.part == DENOISER for name in found)
        return found
