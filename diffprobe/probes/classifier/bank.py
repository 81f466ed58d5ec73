"""Banks: several classifiers that read one feature, trained at once; each ends as it would alone."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import probes
from diffprobe.probes.classifier.base import ClassifierConfig, ClassifierProbe, Standardised, make_head
from diffprobe.probes.classifier.inputs import Shapes


class Bank(Standardised):
    """What every bank offers: one standardisation for all heads, the logits of each, and each as a probe of its own.

    Args:
        d_in: width of the feature.
        n_classes: number of classes of each head.
        shapes: see `Standardised`.

    Raises: ConfigError for a head with fewer than 2 classes.
    """

    def __init__(self, d_in: int, n_classes: Sequence[int], shapes: Shapes | None = None) -> None:
        super().__init__(d_in, shapes)
        for count in n_classes:
            if count < 2:
                raise ConfigError(f"a classifier needs at least 2 classes, got {count}.")
        self.n_classes = list(n_classes)

    def forward(self, x: Float[Tensor, "batch d_in"]) -> list[Float[Tensor, "batch n_classes"]]:
        """Return the logits of each head for features in their own unit."""
        raise NotImplementedError

    def head(self, index: int) -> ClassifierProbe:
        """Copy one head out as a probe of its own."""
        raise NotImplementedError

    def penalty(self) -> Float[Tensor, ""]:
        """Return what the weights of all heads add to the training loss."""
        return torch.zeros((), device=self.mean.device)

    @classmethod
    def together(
        cls, banks: Sequence["Bank"], x: Float[Tensor, "batch d_in"]
    ) -> list[list[Float[Tensor, "batch n_classes"]]]:
        """Return the logits of several banks of one class on one feature, which have the same standardisation.

        A subclass computes them as one product where the heads have equal shapes.
        """
        return [bank(x) for bank in banks]

    @classmethod
    def stacked(
        cls, banks: Sequence["Bank"], x: Float[Tensor, "batch d_in"], *, joined: bool
    ) -> dict[int, Float[Tensor, "n_classes heads batch"]]:
        """Return the logits of several banks, those of heads with equal numbers of classes as one tensor.

        Args:
            banks: banks of one class on one feature, which have the same standardisation.
            x: features in their own unit.
            joined: compute them as `together` does, equal to rounding; otherwise one bank after the other.

        Returns: number of classes -> logits, with the heads in the order of the banks, then of the heads of a bank.
        """
        logits = cls.together(banks, x) if joined else [bank(x) for bank in banks]
        heads = [
            (n, one)
            for bank, own in zip(banks, logits, strict=True)
            for n, one in zip(bank.n_classes, own, strict=True)
        ]
        counts = dict.fromkeys(n for n, _ in heads)
        return {count: torch.stack([one.T for n, one in heads if n == count], dim=1) for count in counts}

    def by_head(self, values: Sequence[Tensor]) -> list[list[Tensor]] | None:
        """Divide tensors that belong to the trained weights, such as gradients, among the heads.

        Args:
            values: a tensor of the shape of each trained parameter, in the order of `parameters()`.

        Returns: the tensors of each head; None for a bank that shares weights between heads.
        """
        return None

    def copy_standardisation(self, probe: ClassifierProbe) -> None:
        """Copy the standardisation of the bank into a probe."""
        for name in ("mean", "inverse_std", "fitted"):
            getattr(probe, name).copy_(getattr(self, name))


class HeadBank(Bank):
    """A bank of any heads, one after the other.

    Args:
        name: file of the head in `probes/classifier`.
        config: its settings.
        d_in, n_classes, shapes: see `Bank`.
        seeds: seed of the initial weights of each head.
    """

    def __init__(
        self,
        name: str,
        config: ClassifierConfig,
        d_in: int,
        n_classes: Sequence[int],
        seeds: Sequence[int],
        shapes: Shapes | None = None,
    ) -> None:
        super().__init__(d_in, n_classes, shapes)
        self.name, self.config = name, config
        pairs = zip(n_classes, seeds, strict=True)
        self.heads = nn.ModuleList(
            [make_head(name, config, d_in, count, seed=seed, shapes=shapes) for count, seed in pairs]
        )

    def forward(self, x: Float[Tensor, "batch d_in"]) -> list[Float[Tensor, "batch n_classes"]]:
        """Return the logits of each head for features in their own unit."""
        standard = self.standard(x)
        return [head(standard) for head in self.heads]

    def by_head(self, values: Sequence[Tensor]) -> list[list[Tensor]]:
        """Divide tensors that belong to the trained weights among the heads."""
        counts = [sum(weight.requires_grad for weight in head.parameters()) for head in self.heads]
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return [list(values[start : start + count]) for start, count in zip(starts, counts, strict=True)]

    @torch.no_grad()
    def head(self, index: int) -> ClassifierProbe:
        """Copy one head out as a probe of its own."""
        count = self.n_classes[index]
        probe = ClassifierProbe(self.name, self.config, d_in=self.d_in, n_classes=count, shapes=self.shapes)
        probe = probe.to(self.mean.device)
        assert probe.head is not None
        probe.head.load_state_dict(self.heads[index].state_dict())
        self.copy_standardisation(probe)
        return probe.eval()


def make_bank(
    name: str,
    config: ClassifierConfig,
    d_in: int,
    n_classes: Sequence[int],
    *,
    seeds: Sequence[int],
    shapes: Shapes | None = None,
) -> Bank:
    """Make the untrained bank of some heads on one feature: the file's own `make_bank`, or a `HeadBank`.

    Args:
        name: file of the head in `probes/classifier`.
        config: its settings.
        d_in, n_classes, shapes: see `Bank`.
        seeds: seed of the initial weights of each head.

    Raises: UnknownName for a file that does not exist, ConfigError for a head that cannot be trained.
    """
    file = probes("classifier").load(name)
    if hasattr(file, "make_bank"):
        own: Bank = file.make_bank(config, d_in, n_classes, seeds)
        return own
    return HeadBank(name, config, d_in, n_classes, seeds, shapes)
