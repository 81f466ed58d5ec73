"""A linear classifier of an attribute on clean latents, tuned by grouped cross-validation, that reads generated images.

Latents of real images and of generated ones are the same kind of tensor, so nothing has to be decoded.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.core.errors import EmptyClass
from diffprobe.probes.grouped_folds import grouped_folds
from diffprobe.probes.l2_selection import Task, select_l2

N_FOLDS = 5
"""Folds of the cross-validation."""
PATH, GAP = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01), 1e-4
"""Penalties to choose from, and the distance from the minimum in nats: latents are wide, smaller penalties overfit."""
_SIDE = 16
"""Larger latents are averaged down to this many places on a side, as for the control vae_latents."""


@dataclass(frozen=True)
class LatentClassifier:
    """A fitted classifier."""

    weight: Float[Tensor, "classes d_in"]
    """Weights, float64."""
    bias: Float[Tensor, " classes"]
    """Offsets; -inf for a class without a training sample."""
    n_train: int
    """Number of training samples."""
    l2: float
    """The chosen penalty."""

    def predict(self, latents: Float[Tensor, "sample c h w"]) -> NDArray[np.int64]:
        """Return the class id of each sample."""
        found: NDArray[np.int64] = (_features(latents) @ self.weight.T + self.bias).argmax(1).numpy()
        return found


def fit_latent_classifier(
    latents: Float[Tensor, "sample c h w"],
    labels: NDArray[np.int64],
    groups: Sequence[Hashable],
    *,
    n_classes: int,
    what: str,
) -> LatentClassifier:
    """Fit a class-balanced logistic regression, with L2 chosen by cross-validation over whole groups.

    Args:
        latents: clean latents of real images.
        labels: class ids, -1 for none; samples without are left out.
        groups: the group of each sample.
        n_classes: number of classes.
        what: the attribute, for messages.
    Raises: EmptyClass for fewer than two classes; ConfigError for fewer groups than folds.
    """
    used = np.flatnonzero(labels >= 0)
    classes = np.unique(labels[used])
    if len(classes) < 2:
        raise EmptyClass(
            f"attribute '{what}' has {len(classes)} value(s) in {len(labels)} training samples; a classifier needs 2.",
            fix="more of them (classifier_limit, data.limit), or another attribute",
        )
    names = [str(groups[i]) for i in used.tolist()]
    task = Task(labels[used], grouped_folds(names, labels[used], n_folds=N_FOLDS))
    features = _features(latents[torch.from_numpy(used)])
    chosen = select_l2(features[None], [task], n_classes=n_classes, path=PATH, gap=GAP, dtype=torch.float32)[0][0]
    return LatentClassifier(chosen.weight, chosen.bias, len(used), chosen.l2)


def _features(latents: Float[Tensor, "sample c h w"]) -> Float[Tensor, "sample d_in"]:
    side = min(_SIDE, *latents.shape[2:])
    return torch.nn.functional.adaptive_avg_pool2d(latents.float(), side).flatten(1).double()
