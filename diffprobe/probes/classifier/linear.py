"""Linear: multinomial logistic regression on standardised features, alone or many heads on one feature at once.

Owns the modules and their files. Training, metrics and controls are in training/classifier.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.probes.serialization import load_probe, save_probe

KIND, SCHEMA_VERSION = "probe/classifier/linear", 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys of `probe=linear`, below `probe.params`."""

    controls: tuple[str, ...] = ("shuffled_labels",)
    """Control heads trained beside the real ones in the same pass; () for none."""

    def __post_init__(self) -> None:
        for name in self.controls:
            if name != "shuffled_labels":
                raise ConfigError(f"probe 'linear' can't train the control '{name}'.", "allowed: shuffled_labels")


class LinearBank(nn.Module):
    """Several linear heads that read one feature, in one matrix; a single probe is a bank of one.

    The weights start at zero (the problem is convex), so no head depends on how many others there are.

    Args:
        d_in: width of the feature.
        n_classes: number of classes of each head.
    """

    mean: Tensor
    inverse_std: Tensor
    fitted: Tensor

    def __init__(self, d_in: int, n_classes: Sequence[int]) -> None:
        super().__init__()
        for count in n_classes:
            if count < 2:
                raise ConfigError(f"a classifier needs at least 2 classes, got {count}.")
        self.d_in, self.n_classes = d_in, list(n_classes)
        self.weight = nn.Parameter(torch.zeros(sum(self.n_classes), d_in))
        self.bias = nn.Parameter(torch.zeros(sum(self.n_classes)))
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("inverse_std", torch.ones(d_in))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def standardise(self, mean: Float[Tensor, " d_in"], variance: Float[Tensor, " d_in"]) -> None:
        """Take mean and variance of the training set. A dimension without variance becomes 0."""
        self.mean.copy_(mean)
        self.inverse_std.copy_(torch.where(variance > 0, variance.clamp(min=1e-300).rsqrt(), 0.0))
        self.fitted.fill_(True)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> list[Float[Tensor, "batch n_classes"]]:
        """Return the logits of each head for features in their own unit."""
        standard = (x - self.mean) * self.inverse_std
        return list(F.linear(standard, self.weight, self.bias).split(self.n_classes, dim=1))

    def head(self, index: int) -> "LinearProbe":
        """Copy one head out as a probe of its own."""
        start, width = sum(self.n_classes[:index]), self.n_classes[index]
        probe = LinearProbe(self.d_in, width).to(self.weight.device)
        state = {name: tensor for name, tensor in self.state_dict().items() if name not in ("weight", "bias")}
        rows = slice(start, start + width)
        probe.load_state_dict({**state, "weight": self.weight.detach()[rows], "bias": self.bias.detach()[rows]})
        return probe


class LinearProbe(LinearBank):
    """One linear classifier with the standardisation of its training features.

    Args:
        d_in: width of the feature.
        n_classes: number of classes.
    """

    def __init__(self, d_in: int, n_classes: int) -> None:
        super().__init__(d_in, [n_classes])

    def logits(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_classes"]:
        """Return the logits for features in their own unit."""
        return self(x)[0]

    def predict(self, x: Float[Tensor, "batch d_in"]) -> Int[Tensor, " batch"]:
        """Return the most likely class of each sample."""
        return self.logits(x).argmax(1)

    def save_pretrained(
        self, folder: Path | str, *, cell: str | None = None, target: str | None = None, classes: Sequence[str] = ()
    ) -> Path:
        """Write the weights, their standardisation and settings to a folder (safetensors and JSON)."""
        of = {"cell": cell, "target": target, "classes": list(classes)}
        settings = {"d_in": self.d_in, "n_classes": self.n_classes[0], **of}
        tensors = self.state_dict()
        return save_probe(folder, kind=KIND, schema_version=SCHEMA_VERSION, settings=settings, tensors=tensors)

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> "LinearProbe":
        """Read what `save_pretrained` wrote. Raises: SchemaError, WeightsMismatch."""
        settings, tensors = load_probe(folder, kind=KIND, schema_version=SCHEMA_VERSION)
        probe = cls(settings["d_in"], settings["n_classes"])
        try:
            probe.load_state_dict(tensors)
        except RuntimeError as error:
            raise WeightsMismatch(f"the weights in '{folder}' do not fit their settings.", str(error)) from error
        return probe
