"""MLP: hidden layers with ReLU on standardised features. The heads of a bank are computed as one batched product."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.bank import Bank, HeadBank
from diffprobe.probes.classifier.base import TrainedConfig


@dataclass(frozen=True, kw_only=True)
class Config(TrainedConfig):
    """Keys of `probe=mlp`, below `probe.params`."""

    hidden: int = 512
    """Width of the hidden layers."""
    layers: int = 1
    """Number of hidden layers."""
    dropout: float = 0.0
    """Share of the hidden units that a step leaves out; above 0 the heads of a run do not repeat what each would be
    alone, as they draw from one generator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1 or self.layers < 1:
            raise ConfigError(f"hidden={self.hidden}, layers={self.layers} are out of range: at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} is out of range: 0 to below 1.")

    @property
    def default_learning_rate(self) -> float:
        """Step size of AdamW where none is set."""
        return 1e-3


def make(config: Config, d_in: int, n_classes: int, *, seed: int) -> nn.Sequential:
    """Return the untrained head: linear, ReLU and dropout for each hidden layer, and a linear layer to the classes."""
    widths = [d_in, *[config.hidden] * config.layers]
    hidden = [
        (nn.Linear(wide, narrow), nn.ReLU(), nn.Dropout(config.dropout))
        for wide, narrow in zip(widths, widths[1:], strict=False)
    ]
    return nn.Sequential(*chain.from_iterable(hidden), nn.Linear(config.hidden, n_classes))


def make_bank(config: Config, d_in: int, n_classes: Sequence[int], seeds: Sequence[int]) -> "MLPBank":
    """Return the untrained bank."""
    return MLPBank("mlp", config, d_in, n_classes, seeds)


class MLPBank(HeadBank):
    """Several MLPs of one shape on one feature (see `HeadBank`)."""

    def forward(self, x: Float[Tensor, "batch d_in"]) -> list[Float[Tensor, "batch n_classes"]]:
        """Return the logits of each head for features in their own unit."""
        return batched(list(self.heads), self.standard(x), self.training)

    @classmethod
    def together(
        cls, banks: Sequence[Bank], x: Float[Tensor, "batch d_in"]
    ) -> list[list[Float[Tensor, "batch n_classes"]]]:
        """Return the logits of several banks, by one product for each layer of those whose layers have equal widths."""
        found = cast(Sequence[MLPBank], banks)
        forms = [
            tuple((p.shape if p.ndim > 1 else ()) for p in list(bank.heads[0].parameters())[:-2]) for bank in found
        ]
        drops = [cast(Config, bank.config).dropout for bank in found]
        logits: dict[int, list[Tensor]] = {}
        for form in dict.fromkeys(zip(forms, drops, strict=True)):
            chosen = [i for i, own in enumerate(zip(forms, drops, strict=True)) if own == form]
            heads = [head for i in chosen for head in found[i].heads]
            parts = iter(batched(heads, found[0].standard(x), found[0].training))
            logits |= {i: [next(parts) for _ in found[i].heads] for i in chosen}
        return [logits[i] for i in range(len(found))]


def batched(
    heads: Sequence[nn.Module], x: Float[Tensor, "batch d_in"], training: bool
) -> list[Float[Tensor, "batch n_classes"]]:
    """Return the logits of heads of `make` whose hidden layers have equal widths, for standardised features."""
    layers = [[part for part in head.children() if isinstance(part, nn.Linear)] for head in heads]
    (drop,) = {part.p for head in heads for part in head.children() if isinstance(part, nn.Dropout)}
    n, first = len(heads), [own[0] for own in layers]
    found = F.linear(x, torch.cat([part.weight for part in first]), torch.cat([part.bias for part in first]))
    hidden = F.dropout(found.relu(), drop, training).unflatten(1, (n, -1)).transpose(0, 1)  # heads, batch, hidden
    for depth in range(1, len(layers[0]) - 1):
        weight = torch.stack([own[depth].weight for own in layers])
        bias = torch.stack([own[depth].bias for own in layers])
        hidden = F.dropout(torch.baddbmm(bias[:, None], hidden, weight.transpose(1, 2)).relu(), drop, training)
    return [F.linear(own, last[-1].weight, last[-1].bias) for own, last in zip(hidden, layers, strict=True)]
