"""Linear: multinomial logistic regression on standardised features, alone or many heads on one feature at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.bank import Bank
from diffprobe.probes.classifier.base import ClassifierConfig, ClassifierProbe, TrainedConfig


@dataclass(frozen=True, kw_only=True)
class Config(TrainedConfig):
    """Keys of `probe=linear`, below `probe.params`. Epochs and weight decay are keys of `trainer`."""

    class_weight: Literal["balanced", "none"] = "none"
    """balanced: all classes have equal weight in the training loss; none: all samples."""
    l2: float = 0.0
    """Penalty: l2 / 2 * sum(w^2) on standardised features, beside the mean cross entropy in nats, as in `linear_cv`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.l2) and self.l2 >= 0):
            raise ConfigError(f"l2={self.l2} is out of range: at least 0.")

    @property
    def balances_classes(self) -> bool:
        """Whether all classes have the same weight in the training loss."""
        return self.class_weight == "balanced"

    @property
    def has_penalty(self) -> bool:
        """Whether `l2` is above 0."""
        return self.l2 > 0


def make(config: Config, d_in: int, n_classes: int, *, seed: int) -> nn.Linear:
    """Return the untrained head. Its weights start at zero: the problem is convex, so the seed changes nothing."""
    head = nn.Linear(d_in, n_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def make_bank(config: Config, d_in: int, n_classes: Sequence[int], seeds: Sequence[int] = ()) -> "LinearBank":
    """Return the untrained bank in one matrix."""
    return LinearBank(d_in, n_classes, l2=config.l2)


class LinearBank(Bank):
    """Several linear heads that read one feature, in one matrix.

    The weights start at zero, so no head depends on how many others there are.

    Args:
        d_in: width of the feature.
        n_classes: number of classes of each head.
        l2: see `Config`.
    """

    def __init__(self, d_in: int, n_classes: Sequence[int], *, l2: float = 0.0) -> None:
        super().__init__(d_in, n_classes)
        self.l2 = l2
        self.weight = nn.Parameter(torch.zeros(sum(self.n_classes), d_in))
        self.bias = nn.Parameter(torch.zeros(sum(self.n_classes)))

    def forward(self, x: Float[Tensor, "batch d_in"]) -> list[Float[Tensor, "batch n_classes"]]:
        """Return the logits of each head for features in their own unit."""
        return list(F.linear(self.features(x), self.weight, self.bias).split(self.n_classes, dim=1))

    @classmethod
    def together(
        cls, banks: Sequence[Bank], x: Float[Tensor, "batch d_in"]
    ) -> list[list[Float[Tensor, "batch n_classes"]]]:
        """Return the logits of several banks, by one product."""
        found = cast(Sequence[LinearBank], banks)
        weight, bias = (torch.cat([getattr(bank, name) for bank in found]) for name in ("weight", "bias"))
        logits = F.linear(found[0].features(x), weight, bias).split([sum(bank.n_classes) for bank in found], dim=1)
        return [list(part.split(bank.n_classes, dim=1)) for part, bank in zip(logits, found, strict=True)]

    @classmethod
    def stacked(
        cls, banks: Sequence[Bank], x: Float[Tensor, "batch d_in"], *, joined: bool
    ) -> dict[int, Float[Tensor, "n_classes heads batch"]]:
        """Return the logits of several banks, joined by one product (see `Bank.stacked`)."""
        if not joined:
            return super().stacked(banks, x, joined=False)
        found = cast(Sequence[LinearBank], banks)
        rows = _rows_by_class(tuple(tuple(bank.n_classes) for bank in found))
        order = torch.cat([part.flatten() for part in rows.values()]).to(x.device)
        weight, bias = (
            torch.cat([getattr(bank, name) for bank in found]).index_select(0, order) for name in ("weight", "bias")
        )
        logits = torch.addmm(bias[:, None], weight, found[0].features(x).T)
        parts = logits.split([part.numel() for part in rows.values()])
        return {n: part.unflatten(0, rows[n].shape) for n, part in zip(rows, parts, strict=True)}

    def features(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return what the weights are applied to."""
        return self.standard(x)

    def penalty(self) -> Float[Tensor, ""]:
        """Return l2 / 2 * sum(w^2) of all heads; offsets are free."""
        weight = self.weight.float()
        return self.l2 / 2 * torch.where(torch.isfinite(weight), weight, 0.0).square().sum()  # a head may have diverged

    def by_head(self, values: Sequence[Tensor]) -> list[list[Tensor]]:
        """Divide tensors that belong to the trained weights among the heads."""
        parts = [value.split(self.n_classes) for value in values]
        return [[part[i] for part in parts] for i in range(len(self.n_classes))]

    @torch.no_grad()
    def head(self, index: int) -> ClassifierProbe:
        """Copy one head out as a probe of its own."""
        start, width = sum(self.n_classes[:index]), self.n_classes[index]
        probe = LinearProbe(self.d_in, width).to(self.weight.device)
        probe.weight.copy_(self.weight[start : start + width])
        probe.bias.copy_(self.bias[start : start + width])
        self.copy_standardisation(probe)
        return probe.eval()


@lru_cache(maxsize=64)
def _rows_by_class(n_classes: tuple[tuple[int, ...], ...]) -> dict[int, Tensor]:
    """Return where the weights of each head are among the rows of several banks, one below the other.

    Args:
        n_classes: number of classes of each head, by bank.

    Returns: number of classes -> rows (n_classes, heads).
    """
    starts: dict[int, list[int]] = {}
    at = 0
    for count in (count for own in n_classes for count in own):
        starts.setdefault(count, []).append(at)
        at += count
    return {count: torch.arange(count)[:, None] + torch.tensor(own) for count, own in starts.items()}


class LinearProbe(ClassifierProbe):
    """A linear classifier with the standardisation of its training features.

    >>> x, y = torch.tensor([[0.0, 1.0], [0.2, 1.0], [3.0, 1.0], [3.1, 1.0]]), torch.tensor([0, 0, 1, 1])
    >>> LinearProbe().fit(x, y).score(x, y)
    1.0

    Args:
        d_in: width of the feature; None until `fit` sees the data.
        n_classes: number of classes; None until `fit` sees the data.
    """

    HEAD: ClassVar[str | None] = "linear"
    ALSO_READS: ClassVar[tuple[str, ...]] = ("linear_cv",)

    def __init__(self, d_in: int | None = None, n_classes: int | None = None, *, config: Config | None = None) -> None:
        super().__init__("linear", config, d_in=d_in, n_classes=n_classes)

    @classmethod
    def _of(cls, name: str, config: ClassifierConfig, d_in: int, n_classes: int) -> "LinearProbe":
        probe = cls(d_in, n_classes)
        probe.name, probe.config = name, config
        return probe

    @property
    def weight(self) -> Tensor:
        """The weight matrix (n_classes, d_in), for standardised features."""
        assert isinstance(self.head, nn.Linear)
        return self.head.weight

    @property
    def bias(self) -> Tensor:
        """The offset of each class (n_classes)."""
        assert isinstance(self.head, nn.Linear)
        return self.head.bias
