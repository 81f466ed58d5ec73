"""How far training of a classifier stopped from a minimum: its gradient over the training set, against the first one.

LIBLINEAR (Fan et al. 2008, section 3) ends where |g| <= 0.01 |g_0|, g_0 being the gradient at the initial weights;
ten times that is called far from convergence here. Unlike a fall of the loss per epoch, the ratio does not become small
because the step size does. Both gradients are exact: one pass over the training set with the final and the initial
weights, summed over processes, so a resumed run and any number of processes give the same.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffprobe.probes.classifier.bank import Bank
from diffprobe.training.module import ProbeModule

FAR = 0.1
"""Ratio of the gradients above which a classifier is far from convergence."""


class GradientSums:
    """Gradients of the summed losses of the heads of some banks, over all samples that are given.

    Args:
        banks: cell -> bank; their weights are not changed.
    """

    def __init__(self, banks: Mapping[str, Bank]) -> None:
        self._banks = dict(banks)
        self._sums = {
            cell: [torch.zeros_like(p, dtype=torch.float64) for p in trained_weights(b)] for cell, b in banks.items()
        }

    def update(self, features: Mapping[str, Tensor], labels: Sequence[Tensor]) -> None:
        """Add samples.

        Args:
            features: cell -> pooled features (samples, d_in).
            labels: class ids of each head of a bank; -1 for none.
        """
        for cell, bank in self._banks.items():
            with torch.enable_grad(), torch.autocast(features[cell].device.type, enabled=False):
                logits = bank(features[cell])
                losses = [
                    F.cross_entropy(found.float(), label, ignore_index=-1, reduction="sum")
                    for found, label in zip(logits, labels, strict=True)
                ]
                found = torch.autograd.grad(torch.stack(losses).sum(), trained_weights(bank))
            self.add(cell, found)

    def add(self, cell: str, gradients: Sequence[Tensor]) -> None:
        """Add gradients of the summed losses of a bank, one for each of its trained weights."""
        for total, part in zip(self._sums[cell], gradients, strict=True):
            total += part

    @property
    def banks(self) -> Mapping[str, Bank]:
        """Cell -> bank."""
        return self._banks

    def norms(self, module: ProbeModule) -> list[Tensor | None]:
        """Return the norm of the gradient of each head, bank by bank. Collective; None for a bank of another layout."""
        found: list[Tensor | None] = []
        for cell, bank in self._banks.items():
            parts = bank.by_head([module.sum_over_processes(total) for total in self._sums[cell]])
            if parts is None:
                found += [None] * len(bank.n_classes)
            else:
                found += [torch.stack([part.square().sum() for part in head]).sum().sqrt() for head in parts]
        return found


def trained_weights(bank: Bank) -> list[Tensor]:
    """Return the weights of a bank that gradients change."""
    return [weight for weight in bank.parameters() if weight.requires_grad]


def ratios(final: Iterable[Tensor | None], start: Iterable[Tensor | None]) -> list[float | None]:
    """Return |g| / |g_0| of each head; 0 where both are 0, None where they are not known or the start is a minimum."""
    found: list[float | None] = []
    for end, begin in zip(final, start, strict=True):
        if end is None or begin is None or (begin == 0 and end > 0):
            found.append(None)
        else:
            found.append(float(end / begin) if begin > 0 else 0.0)
    return found


def warn_of_distance(found: Mapping[str, float | None]) -> None:
    """Warn if classifiers stopped far from convergence.

    Args:
        found: name of each classifier -> ratio of its gradients.
    """
    known = {name: ratio for name, ratio in found.items() if ratio is not None}
    far = [name for name, ratio in known.items() if ratio > FAR]
    if not far:
        return
    worst = max(far, key=known.__getitem__)
    warnings.warn(
        f"{len(far)} of {len(known)} classifiers stopped far from convergence: the gradient of the training loss is "
        f"still more than {FAR:g} of that at the start (converged: 0.01), of {worst} {known[worst]:.2g}. Their scores "
        "measure the training as well as the features. More trainer.max_epochs, a larger "
        "trainer.learning_rate or a smaller "
        "data.batch_size trains further",
        stacklevel=2,
    )
