"""Which of n captions is this image's, told without a diffusion model: a regression from captions to vae_latents.

The control of `caption_choice.py`. What a few thousand captions and images say of unseen ones when nothing is denoised; a
diffusion model that chooses no better has learnt no more of words than a closed form does.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.score.diffusion_classifier import leads


@dataclass(frozen=True, kw_only=True)
class RegressionRule:
    """A kernel ridge regression from captions to latents, and on how many images it is fitted."""

    images: int = 0
    """Training images, a seeded choice of them if there are more; 0 leaves the regression out. Memory grows with the
    square: 10,000 take 1.2 GB."""
    width: float = 1.0
    """Of the Gaussian kernel exp(-width * d^2), where inputs are centred and have norm 1 on average. This and `ridge`
    are of 12 pairs the best on the training split of `emoji` (113 families held out, four choices of them)."""
    ridge: float = 1.0
    """Penalty; 0 would give back the training images."""
    balance_power: float = 0.4
    """An image counts n ** -power, where n images share its group: variants of one drawing say little more than one."""

    def __post_init__(self) -> None:
        if self.images < 0 or self.width <= 0 or self.ridge <= 0:
            raise ConfigError(
                f"regression: images={self.images}, width={self.width:g}, ridge={self.ridge:g} is no rule.",
                fix="images >= 0, width > 0, ridge > 0",
            )


class WordVectors:
    """Captions as sets of words, rare words weighing more: log(captions / captions with the word).

    Args:
        captions: whose words are known; others are left out later, for nothing is known of them.
    """

    def __init__(self, captions: Sequence[str]) -> None:
        counts = Counter(word for caption in captions for word in words_of(caption))
        self._columns = {word: column for column, word in enumerate(sorted(counts))}
        self._weights = torch.tensor([len(captions) / counts[word] for word in self._columns]).log()

    def __call__(self, captions: Sequence[str]) -> Float[Tensor, "caption word"]:
        """Return the vectors of captions."""
        vectors = torch.zeros(len(captions), len(self._columns))
        for row, caption in enumerate(captions):
            known = [self._columns[word] for word in words_of(caption) if word in self._columns]
            vectors[row, known] = 1.0
        return vectors * self._weights


def words_of(caption: str) -> set[str]:
    """Return the words of a caption.

    >>> sorted(words_of("noto emoji, health worker, medium-light skin tone"))
    ['emoji', 'health', 'medium-light', 'noto', 'skin', 'tone', 'worker']
    """
    return set(caption.replace(",", " ").split())


class CaptionRegression:
    """Kernel ridge regression: minimises sum_i w_i |f(x_i) - z_i|^2 + ridge |f|^2 over f of the kernel's space.

    Args:
        inputs: of training captions, of any scale.
        latents: vae_latents of their images.
        groups: the drawing that each image is a variant of.
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
            raise EmptyClass(f"{len(inputs)} captions, none unlike another: nothing can be regressed on them.")
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
    expected: Float[Tensor, "sample number"],
    latents: Float[Tensor, "sample c h w"],
    candidates: Int[Tensor, "sample n"],
) -> Bool[Tensor, " sample"]:
    """Tell for each sample whether its latent is nearest to what its own caption makes one expect; a tie is wrong.

    Args:
        expected: latents by each sample's caption; `candidates` are rows of it, the right one in column 0.
    """
    return leads((expected[candidates] - latents.flatten(1)[:, None]).square().sum(-1))
