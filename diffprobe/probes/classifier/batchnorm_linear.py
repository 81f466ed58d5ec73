"""BatchNorm and linear: the linear probe of representation learning, whose features are normalised by the batch.

BatchNorm without scale and offset before a linear layer is the probe of l-DAE ("parameter-free", Chen et al. 2024,
arXiv 2401.14404, text) and of MAE, whose setup REPA states to follow (sihyun-yu/REPA, issue 55; the snippet that its
author gives in issue 32 leaves torch's default, with scale and offset, which a linear layer after it can absorb). The
released code of DDAE has a linear layer alone (FutureXiang/ddae, linear.py): `linear` without standardisation.

The features are standardised over the training set before, so BatchNorm changes the noise of a step, not the unit.
The weights start at zero as those of `linear`; MAE starts them at a standard deviation of 0.01.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.probes.classifier import linear
from diffprobe.probes.classifier.bank import Bank
from diffprobe.probes.classifier.base import ClassifierProbe
from diffprobe.probes.classifier.batch_norm import JointBatchNorm

EPS = 1e-6
"""Added to the variance, as in MAE's probe."""


@dataclass(frozen=True, kw_only=True)
class Config(linear.Config):
    """Keys of `probe=batchnorm_linear`, below `probe.params`: those of `linear`, and the memory of BatchNorm."""

    momentum: float = 0.1
    """Weight of a batch in the running mean and variance that evaluation uses."""


def make(config: Config, d_in: int, n_classes: int, *, seed: int) -> nn.Sequential:
    """Return the untrained head: BatchNorm without parameters, and a linear layer at zero."""
    norm = JointBatchNorm(d_in, affine=False, eps=EPS, momentum=config.momentum)
    return nn.Sequential(norm, linear.make(config, d_in, n_classes, seed=seed))


def make_bank(config: Config, d_in: int, n_classes: Sequence[int], seeds: Sequence[int] = ()) -> "BatchNormLinearBank":
    """Return the untrained bank: one BatchNorm, and all heads in one matrix."""
    return BatchNormLinearBank(config, d_in, n_classes)


class BatchNormLinearBank(linear.LinearBank):
    """Several heads on one feature. The heads alone would have equal statistics of the batch, so they share them.

    Args:
        config: settings of all heads.
        d_in, n_classes: see `Bank`.
    """

    def __init__(self, config: Config, d_in: int, n_classes: Sequence[int]) -> None:
        super().__init__(d_in, n_classes, l2=config.l2)
        self.config = config
        self.norm = JointBatchNorm(d_in, affine=False, eps=EPS, momentum=config.momentum)

    def features(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_in"]:
        """Return the normalised features."""
        found: Tensor = self.norm(self.standard(x))
        return found

    @classmethod
    def together(
        cls, banks: Sequence[Bank], x: Float[Tensor, "batch d_in"]
    ) -> list[list[Float[Tensor, "batch n_classes"]]]:
        """Return the logits of several banks, by one product; each keeps its own running statistics."""
        found = cast(Sequence[BatchNormLinearBank], banks)
        if len({bank.config.momentum for bank in found}) > 1:
            return [bank(x) for bank in found]
        logits = super().together(banks, x)
        cls._share_statistics(found)
        return logits

    @classmethod
    def stacked(
        cls, banks: Sequence[Bank], x: Float[Tensor, "batch d_in"], *, joined: bool
    ) -> dict[int, Float[Tensor, "n_classes heads batch"]]:
        """Return the logits of several banks (see `Bank.stacked`); each keeps its own running statistics."""
        found = cast(Sequence[BatchNormLinearBank], banks)
        if not joined or len({bank.config.momentum for bank in found}) > 1:
            return super().stacked(banks, x, joined=False)
        logits = super().stacked(banks, x, joined=True)
        cls._share_statistics(found)
        return logits

    @staticmethod
    def _share_statistics(banks: "Sequence[BatchNormLinearBank]") -> None:
        """Copy the running statistics of the first bank, which alone has seen the batch, to the others."""
        for bank in banks[1:] if banks[0].training else ():
            bank.norm.load_state_dict(banks[0].norm.state_dict())

    @torch.no_grad()
    def head(self, index: int) -> ClassifierProbe:
        """Copy one head out as a probe of its own."""
        count = self.n_classes[index]
        probe = ClassifierProbe("batchnorm_linear", self.config, d_in=self.d_in, n_classes=count).to(self.mean.device)
        assert isinstance(probe.head, nn.Sequential)
        norm, layer = probe.head[0], probe.head[1]
        assert isinstance(layer, nn.Linear)
        norm.load_state_dict(self.norm.state_dict())
        start = sum(self.n_classes[:index])
        layer.weight.copy_(self.weight[start : start + count])
        layer.bias.copy_(self.bias[start : start + count])
        self.copy_standardisation(probe)
        return probe.eval()
