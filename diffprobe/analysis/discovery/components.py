"""Independent components of latents: the single attributes that vary, although none of them has a large variance.

Principal components mix whatever varies together by chance; independent component analysis turns them until each is as
far from a normal distribution as possible (Hyvarinen and Oja 2000, Independent component analysis: algorithms and
applications, Neural Networks). An attribute with two or few values is far from normal, so it tends to get a component
of its own. Nothing of that guarantees that a component is one attribute; how well it recurs in halves of the data is
reported.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, NonFinite, TooFewGroups

LEAST_SAMPLES = 40
"""Fewer samples are not decomposed: halves of them would have fewer than 20."""
_MAX_ITERATIONS = 200
_NORMAL = 0.374567
"""Mean of log cosh of a standard normal number."""
_TOLERANCE = 1e-3
"""Of FastICA: largest change of a direction (one minus its cosine) in the last iteration."""


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """How latents are decomposed."""

    max_components: int = 32
    """Largest number of components."""
    explained: float = 0.99
    """Share of the variance that the principal components hold, unless there are more than `max_components`."""
    n_starts: int = 5
    """Random starts of FastICA, of which the one farthest from normal is taken."""
    seed: int = 0
    """Seed of the starts."""

    def __post_init__(self) -> None:
        if min(self.max_components, self.n_starts) < 1 or not 0 < self.explained <= 1:
            raise ConfigError(
                f"max_components={self.max_components}, n_starts={self.n_starts}, explained={self.explained:g} is out "
                "of range.",
                "allowed: max_components and n_starts from 1, explained above 0 to 1",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Components:
    """Independent components of the samples."""

    scores: Float64[np.ndarray, "samples components"]
    """Place of each sample along each component, with mean 0 and standard deviation 1 over all samples. The positive
    end is the one with the longer tail."""
    stability: Float64[np.ndarray, " components"]
    """Smaller of the correlations with the nearest component of either half of the data, 0..1."""
    explained: float
    """Share of the variance that the principal components hold, 0..1."""
    n_constant: int
    """Features that do not vary, which were left out."""


def find_components(
    features: Float[np.ndarray, "samples d"],
    half: Bool[np.ndarray, " samples"],
    how: Decomposition,
    *,
    blocks: Sequence[str] | None = None,
) -> Components:
    """Decompose latents into independent components, the one with the most distant tail first.

    Samples that share their noise are alike whatever their subject. With a few dozen seeds, components would find
    single seeds; so they are fitted to what is left without the mean of each seed, and then measured on all.

    Args:
        features: latents, of any scale; each feature is standardised.
        half: half of the data that each sample is in, for `stability`; see `halves`.
        how: number of components.
        blocks: seed of each sample where subjects share their seeds; None for independent samples.

    Raises: ConfigError for features of another shape, or that are all constant; NonFinite; TooFewGroups for fewer than
        `LEAST_SAMPLES` samples, or a half with fewer than half as many.
    """
    # The iterations below enlarge differences of rounding, so samples are brought into an order of their own first.
    latents = _finite_latents(features)
    order = sorted(range(len(latents)), key=lambda row: latents[row].tobytes())
    x, fitted, n_constant = standardised_features(
        latents[order], None if blocks is None else [blocks[row] for row in order]
    )
    half = half[order]
    if min(int(half.sum()), int((~half).sum())) < LEAST_SAMPLES // 2:
        raise TooFewGroups(
            f"discovery: the halves have {int(half.sum())} and {int((~half).sum())} samples; at least "
            f"{LEAST_SAMPLES // 2} each are needed.", fix="more seeds or images",
        )  # fmt: skip
    scores, explained = _fit(fitted, x, how)
    halves_scores = [_fit(fitted[side], x, how)[0] for side in (half, ~half)]
    stability = np.min([_nearest_correlation(scores, other) for other in halves_scores], axis=0)
    skewness = (scores**3).mean(0)
    scores = scores * np.where(skewness < 0, -1.0, 1.0)
    first = np.argsort(-(np.abs(scores) ** 3).mean(0), kind="stable")
    return Components(
        scores=scores[np.argsort(order)][:, first], stability=stability[first], explained=explained,
        n_constant=n_constant,
    )  # fmt: skip


def standardised_features(
    features: Float[np.ndarray, "samples d"], blocks: Sequence[str] | None = None
) -> tuple[Float64[np.ndarray, "samples kept"], Float64[np.ndarray, "samples kept"], int]:
    """Return features with mean 0, the same without the mean of each block and with standard deviation 1, which are
    what components are fitted to, and how many features were left out because they do not vary.

    Both are in the same unit; without blocks they are equal.

    Raises: see `find_components`.
    """
    x = _finite_latents(features)
    largest = np.abs(x).max(0)
    x = x - x.mean(0)
    fitted = x if blocks is None else without_block_means(x, blocks)
    spread = fitted.std(0)
    varies = spread > 1e-9 * np.maximum(largest, 1e-300)
    if not varies.any():
        where = "" if blocks is None else " within each seed"
        raise ConfigError(f"latents: all {x.shape[1]} features are constant{where}.", fix="another cell")
    return x[:, varies] / spread[varies], fitted[:, varies] / spread[varies], int((~varies).sum())


def _finite_latents(features: Float[np.ndarray, "samples d"]) -> Float64[np.ndarray, "samples d"]:
    """Return features in float64. Raises: see `find_components`."""
    if features.ndim != 2 or not features.size:
        raise ConfigError(f"latents of shape {features.shape}; needed: (samples, d), at least 1 of each.")
    if len(features) < LEAST_SAMPLES:
        raise TooFewGroups(
            f"discovery: {len(features)} samples; at least {LEAST_SAMPLES} are needed.", fix="more seeds or images"
        )
    x = np.asarray(features, dtype=np.float64)
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise NonFinite(f"latents: feature {column} of sample {row} is not finite.")
    return x


def without_block_means(x: Float64[np.ndarray, "samples d"], blocks: Sequence[str]) -> Float64[np.ndarray, "samples d"]:
    """Return features minus the mean over all samples of the same block."""
    numbers = np.unique(np.array(blocks), return_inverse=True)[1]
    sums = np.zeros((int(numbers.max()) + 1, x.shape[1]))
    np.add.at(sums, numbers, x)
    found: np.ndarray = x - (sums / np.bincount(numbers)[:, None])[numbers]
    return found


def halves(names: Sequence[str]) -> Bool[np.ndarray, " samples"]:
    """Return which half each sample is in: by the digest of its block's name, so that the order does not matter.

    Blocks are ordered by digest and every second one is in the first half; both halves have blocks if there are two.

    >>> halves(["seed 1", "seed 2", "seed 1"]).tolist() in ([True, False, True], [False, True, False])
    True
    """
    first = {name: place % 2 == 0 for place, name in enumerate(ordered_names(names))}
    return np.array([first[name] for name in names], dtype=bool)


def ordered_names(names: Sequence[str]) -> list[str]:
    """Return the different names in the order of their digests, which depends on no order of samples.

    >>> ordered_names(["a", "b", "a"]) == ordered_names(["b", "a"])
    True
    """
    return sorted(set(names), key=digest_json)


def normal_surrogate(
    features: Float[np.ndarray, "samples d"], *, blocks: Sequence[str] | None = None, seed: int = 0
) -> Float64[np.ndarray, "samples d"]:
    """Return normal random numbers with mean and covariance of the latents: what they show, chance shows.

    With blocks, their means are kept, and the covariance is that within blocks.
    """
    x = np.asarray(features, dtype=np.float64)
    varying = x - x.mean(0) if blocks is None else without_block_means(x, blocks)
    _, lengths, axes = np.linalg.svd(varying, full_matrices=False)
    drawn = np.random.default_rng(seed).normal(size=(len(x), len(lengths)))
    return x - varying + (drawn * (lengths / np.sqrt(len(x)))) @ axes


def _fit(
    fitted: Float64[np.ndarray, "some d"], x: Float64[np.ndarray, "samples d"], how: Decomposition
) -> tuple[Float64[np.ndarray, "samples components"], float]:
    """Return scores of all samples along components that are fitted to some, with variance 1 over all samples; and the
    share of the variance that was decomposed."""
    from sklearn.decomposition import PCA, FastICA  # heavy
    from sklearn.exceptions import ConvergenceWarning

    most = min(how.max_components, fitted.shape[1], len(fitted) - 1)
    principal = PCA(n_components=most, whiten=True, random_state=how.seed).fit(fitted)
    shares = np.cumsum(principal.explained_variance_ratio_)
    n = int(min(most, np.searchsorted(shares, how.explained) + 1))
    basis = principal.components_[:n] / np.sqrt(np.maximum(principal.explained_variance_[:n], 1e-300))[:, None]
    white = (fitted - principal.mean_) @ basis.T
    best, turns = -1.0, np.eye(n)
    with warnings.catch_warnings():
        # directions that are normal have no preferred turn and never converge; `stability` shows which those are
        warnings.simplefilter("ignore", ConvergenceWarning)
        for start in range(how.n_starts):
            ica = FastICA(
                whiten=False, fun="logcosh", max_iter=_MAX_ITERATIONS, tol=_TOLERANCE, random_state=how.seed + start
            ).fit(white)
            distance = _distance_from_normal(white @ ica.components_.T)
            if distance > best:
                best, turns = distance, ica.components_
    scores = (x @ basis.T) @ turns.T
    scores = scores - scores.mean(0)
    scores /= np.maximum(scores.std(0), 1e-300)
    return scores, float(shares[n - 1])


def _distance_from_normal(scores: Float64[np.ndarray, "samples components"]) -> float:
    """Return the sum of the squared differences of the mean of log cosh from that of a normal distribution."""
    size = np.abs(scores)
    log_cosh = size + np.log1p(np.exp(-2 * size)) - np.log(2)
    return float(((log_cosh.mean(0) - _NORMAL) ** 2).sum())


def _nearest_correlation(
    scores: Float64[np.ndarray, "samples components"], other: Float64[np.ndarray, "samples others"]
) -> Float64[np.ndarray, " components"]:
    """Return the largest absolute correlation of each component with another decomposition of the same samples."""
    found: np.ndarray = np.abs(scores.T @ other).max(1) / len(scores)
    return found
