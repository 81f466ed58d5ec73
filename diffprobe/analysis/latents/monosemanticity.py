"""MonoSemanticity score: how alike the images are on which a latent is active, by the embeddings of an image encoder.

Pach et al. 2025 (2504.02821, Sparse autoencoders learn monosemantic features in vision-language models): the mean
cosine of the embeddings over all pairs of different images, weighted by the product of both activations. With unit
embeddings e_i, and activations a_i,

    sum over i != j of a_i a_j <e_i, e_j> = |sum of a_i e_i|^2 - sum of a_i^2

so it needs one vector per latent and no pairs. The paper scales the activations of a latent to 0..1 first: here they
start at 0, and the score does not depend on their unit. Which encoder gave the embeddings is part of a result.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.analysis.latents.permutation_tests import Moments, PermutationSettings, adjusted
from diffprobe.analysis.latents.sparse_codes import SparseCodes
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.groups import Groups

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Floats = NDArray[np.float64]
_BLOCK = 4_000_000
"""Largest number of values that are held at once."""


class MonosemanticitySums:
    """Sums over a stream of codes and embeddings; memory is latents x d.

    Args:
        n_latents: number of latents.
        d: width of the embeddings.

    >>> sums = MonosemanticitySums(1, 2)
    >>> sums.update(torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.long), torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
    >>> sums.result().round(6).tolist()
    [0.6]
    """

    def __init__(self, n_latents: int, d: int) -> None:
        if n_latents < 1 or d < 1:
            raise ConfigError(f"monosemanticity: n_latents={n_latents}, d={d}; allowed: at least 1.")
        self.vectors = torch.zeros(n_latents, d, dtype=torch.float64)
        self.total = torch.zeros(n_latents, dtype=torch.float64)
        self.square = torch.zeros(n_latents, dtype=torch.float64)
        self.n_active = torch.zeros(n_latents, dtype=torch.int64)
        self.mean = torch.zeros(d, dtype=torch.float64)
        self.n_images = 0

    def update(
        self, values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], embeddings: Float[Tensor, "batch d"]
    ) -> None:
        """Add a batch; only positive activations count.

        Raises: ConfigError for another width; NonFinite for an embedding that is not finite or that is 0.
        """
        if embeddings.shape[1] != self.vectors.shape[1]:
            raise ConfigError(
                f"monosemanticity: embeddings of width {embeddings.shape[1]} for sums of width {self.vectors.shape[1]}."
            )
        unit = torch.from_numpy(unit_rows(embeddings.detach().cpu().numpy()))
        activation = values.detach().to("cpu", torch.float64).clamp(min=0)
        flat, latents = activation.flatten(), indices.detach().cpu().long().flatten()
        rows = torch.arange(len(values)).repeat_interleave(values.shape[1])
        for part in torch.nonzero(flat > 0).flatten().split(max(1, _BLOCK // self.vectors.shape[1])):
            self.vectors.index_add_(0, latents[part], flat[part, None] * unit[rows[part]])
        self.total.index_add_(0, latents, flat)
        self.square.index_add_(0, latents, flat.square())
        self.n_active.index_add_(0, latents, (flat > 0).long())
        self.mean += unit.sum(0)
        self.n_images += len(values)

    def merge(self, other: "MonosemanticitySums") -> None:
        """Add the sums of another process. Raises: ConfigError for sums of another size."""
        if self.vectors.shape != other.vectors.shape:
            raise ConfigError(
                f"monosemanticity: sums of shape {tuple(other.vectors.shape)} for {tuple(self.vectors.shape)}."
            )
        for name in ("vectors", "total", "square", "n_active", "mean", "n_images"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def result(self) -> Floats:
        """Return the score of each latent, -1..1, (latents,); NaN for one that is active on fewer than two images."""
        weight = self.total.square() - self.square
        score = (self.vectors.square().sum(1) - self.square) / weight
        found: Floats = torch.where(self.n_active >= 2, score, torch.nan).numpy()
        return found

    def chance(self) -> float:
        """Return the mean cosine over all pairs of different images: the score of a latent active on all alike."""
        n = self.n_images
        return float((self.mean.square().sum() - n) / (n * (n - 1))) if n > 1 else float("nan")


@dataclass(frozen=True, kw_only=True, eq=False)
class Monosemanticity:
    """Scores of all latents on a split, one entry per latent; NaN where it cannot be measured."""

    score: Floats
    """The MonoSemanticity score over pairs of images."""
    between: Floats
    """The same over pairs of groups: activations are added up, and embeddings averaged, within groups. Variants of one
    drawing do not count as pairs here."""
    p: Floats
    """One-sided p of `between` against embeddings permuted between groups."""
    chance: float
    """Mean cosine over all pairs of images."""
    smallest_p: float
    """The smallest p that could have been counted."""

    @property
    def q(self) -> Floats:
        """p adjusted for the number of latents (Benjamini-Hochberg)."""
        return adjusted(self.p)


def monosemanticity(
    codes: SparseCodes, embeddings: NDArray[np.float32], groups: Groups, settings: PermutationSettings | None = None
) -> Monosemanticity:
    """Measure all latents of a sample of images, with a test by group.

    Args:
        codes: activations of held-out images.
        embeddings: embedding of each image, (images, d).
        groups: group of each image.
        settings: permutations; `enough` and `most` as in the other tests.

    Raises: ConfigError for another number of embeddings or groups; NonFinite for one that is not finite or is 0.
    """
    settings = PermutationSettings(most=1000) if settings is None else settings
    if len(embeddings) != codes.n_images or len(groups.ids) != codes.n_images or embeddings.ndim != 2:
        raise ConfigError(
            f"monosemanticity: embeddings of shape {embeddings.shape} and {len(groups.ids)} groups for "
            f"{codes.n_images} images."
        )
    unit = unit_rows(embeddings)
    rows = np.arange(codes.n_images)
    score = _score(_matrix(codes, rows, codes.n_images), unit, codes.n_active)
    n = codes.n_images
    chance = float((np.square(unit.sum(0)).sum() - n) / (n * (n - 1))) if n > 1 else float("nan")
    means = groups.sums(unit) / np.bincount(groups.ids, minlength=groups.n)[:, None]
    of_groups = _matrix(codes, groups.ids, groups.n)
    n_groups = np.diff(of_groups.indptr)
    between = _score(of_groups, means, n_groups)
    generator = np.random.default_rng(settings.seed)
    p, tests = np.full(codes.n_latents, np.nan), np.flatnonzero(~np.isnan(between))
    reached, drawn, moments = np.zeros(len(tests), dtype=np.int64), 0, Moments.none(len(tests))
    while drawn < settings.most and len(tests):
        shuffled = _score(of_groups[tests], means[generator.permutation(groups.n)], n_groups[tests])
        drawn += 1
        reached += shuffled >= between[tests] - 1e-12
        moments.add((shuffled - between[tests])[:, None])
        done = reached >= settings.enough
        moments = moments.take(~done)
        p[tests[done]] = settings.enough / drawn
        tests, reached = tests[~done], reached[~done]
    p[tests] = (1 + reached) / (1 + drawn)
    rare = reached == 0
    if settings.tail and rare.any():
        tail = moments.take(rare).tail(np.zeros(int(rare.sum())), drawn)
        p[tests[rare]] = np.minimum(p[tests[rare]], tail)
    return Monosemanticity(score=score, between=between, p=p, chance=chance, smallest_p=1 / (1 + settings.most))


def unit_rows(embeddings: NDArray[np.float32]) -> Floats:
    """Return embeddings scaled to length 1, float64 (images, d).

    Raises: NonFinite for one that is not finite, or that is 0 and has no direction.
    """
    values = np.asarray(embeddings, dtype=np.float64)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    bad = ~np.isfinite(length[:, 0]) | (length[:, 0] == 0)
    if bad.any():
        raise NonFinite(
            f"monosemanticity: embedding {int(np.flatnonzero(bad)[0])} of {len(values)} is 0 or not finite; "
            "a cosine needs a direction."
        )
    unit: Floats = values / length
    return unit


def _matrix(codes: SparseCodes, rows: NDArray[np.int64], n: int) -> "csr_array":
    from scipy.sparse import csr_array  # heavy

    found = csr_array((codes.value, (codes.latent, rows[codes.row])), shape=(codes.n_latents, n))
    found.sum_duplicates()
    return found


def _score(matrix: "csr_array", unit: Floats, n_active: NDArray[np.int64]) -> Floats:
    vectors = np.asarray(matrix @ unit)
    total = np.asarray(matrix.sum(1)).ravel()
    square = np.asarray(matrix.power(2).sum(1)).ravel()
    own = np.asarray(matrix.power(2) @ np.square(unit).sum(1)).ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        score = (np.square(vectors).sum(1) - own) / (total**2 - square)
    return np.where(n_active >= 2, score, np.nan)
