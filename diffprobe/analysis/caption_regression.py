"""Choose the caption of an image without a diffusion model: a regression from captions to VAE latents.

The control of `probes/score/diffusion_classifier.py`: a diffusion model that chooses no better has learnt no more about
words than a closed-form fit on a few thousand captions and images.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.score.candidate_ranks import is_chosen


@dataclass(frozen=True, kw_only=True)
class RegressionRule:
    """A kernel ridge regression from captions to latents, and the number of images it is fitted on."""

    images: int = 0
    """Training images, a seeded choice of them if there are more; 0 leaves the regression out. Memory grows with the
    square: 10,000 take 1.2 GB."""
    width: float = 1.0
    """Width of the Gaussian kernel exp(-width * d^2), where inputs are centred and have norm 1 on average. This and
    `ridge` are the best of 12 pairs on the training split of `emoji` (113 families held out, in four ways)."""
    ridge: float = 1.0
    """Penalty; without one the fit would reproduce the training images."""
    balance_power: float = 0.4
    """Weight of an image: n ** -power, where n images share its group, since variants of one drawing are alike."""

    def __post_init__(self) -> None:
        if self.images < 0 or self.width <= 0 or self.ridge <= 0:
            raise ConfigError(
                f"regression: images={self.images}, width={self.width:g}, ridge={self.ridge:g} is out of range.",
                fix="images >= 0, width > 0, ridge > 0",
            )


class CaptionRegression:
    """Kernel ridge regression: minimises sum_i w_i |f(x_i) - z_i|^2 + ridge |f|^2 over f of the kernel's space.

    Args:
        inputs: vectors of the training captions, of any scale.
        latents: VAE latents of their images.
        groups: group of each image, for example the drawing it is a variant of.
        rule: kernel, penalty, weights.
    Raises: EmptyClass without images, or if all captions are alike.
    """

    def __init__(
        self,
        inputs: Float[Tensor, "image feature"],
        latents: Float[Tensor, "image c h w"],
        groups: Sequence[str],
        rule: RegressionRule,
    ) -> None:
        self.rule = rule
        self._centre = inputs.mean(0) if len(inputs) else torch.zeros(inputs.shape[1])
        norms = (inputs - self._centre).norm(dim=1)
        if not norms.any():
            raise EmptyClass(f"{len(inputs)} captions are all alike: nothing can be regressed on them.")
        self._norm = norms.mean()
        self._inputs = self._scaled(inputs)
        flat = latents.flatten(1)
        self._mean = flat.mean(0)
        sizes = Counter(groups)
        penalties = rule.ridge * torch.tensor([sizes[group] ** rule.balance_power for group in groups])
        kernel = self._kernel(self._inputs)
        kernel.diagonal().add_(penalties)
        self._dual = torch.cholesky_solve(flat - self._mean, torch.linalg.cholesky(kernel))

    def __call__(self, inputs: Float[Tensor, "caption feature"]) -> Float[Tensor, "caption number"]:
        """Return the flattened latent that each caption is expected to have."""
        return self._kernel(self._scaled(inputs)) @ self._dual + self._mean

    def _scaled(self, inputs: Float[Tensor, "caption feature"]) -> Float[Tensor, "caption feature"]:
        return (inputs - self._centre) / self._norm

    def _kernel(self, scaled: Float[Tensor, "caption feature"]) -> Float[Tensor, "caption image"]:
        return torch.cdist(scaled, self._inputs).square().mul(-self.rule.width).exp()


def choose_nearest(
    expected: Float[Tensor, "caption number"],
    latents: Float[Tensor, "sample c h w"],
    candidates: Int[Tensor, "sample n"],
) -> Bool[Tensor, " sample"]:
    """Return for each sample whether its latent is nearest to the one expected for its own caption; a tie is wrong.

    Args:
        expected: expected latent of each caption, flattened.
        latents: the samples' latents.
        candidates: rows of `expected`, the right one in column 0.
    """
    distances = (expected[candidates] - latents.flatten(1)[:, None]).square().sum(-1)
    return is_chosen(distances, torch.zeros(len(latents), dtype=torch.long))
