"""Whether the denoiser uses each latent: the rise of its denoising error, beside controls, with intervals over groups.

`scoring/latent_ablation.py` measures the rises. A latent counts as used if ablating it raises the error, and raises it
more than each control at the same places and of the same norm does.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from diffprobe.analysis.statistics import (
    Interval,
    SumStatistic,
    benjamini_hochberg,
    bootstrap_interval,
    mean_of,
    ratio,
    sign_flip_nulls,
)
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.groups import Groups

RATE = 0.05
"""False discovery rate of `used`."""
_AT_ONCE = 256
"""Latents that are permuted at once."""


@dataclass(frozen=True, kw_only=True)
class UseSettings:
    """How intervals and tests are computed."""

    n_resamples: int = 1000
    """Bootstrap resamples of whole groups."""
    n_permutations: int = 9999
    """Sign flips of whole groups, where there are more than that."""
    seed: int = 0
    """Seed of both."""


@dataclass(frozen=True, kw_only=True)
class LatentUse:
    """What ablating one latent does to the denoising error. Numbers are None for a latent that never fires."""

    latent: int
    n_active: int
    """Samples on which it is active."""
    n_groups: int
    """Groups of these samples."""
    delta: Interval | None
    """Mean over all samples of the rise; 0 on those where it is not active."""
    relative: Interval | None
    """The same over the mean untouched error."""
    delta_active: float | None
    """Mean rise over the samples on which it is active."""
    controls: Mapping[str, float]
    """Control -> mean rise over all samples."""
    above: Mapping[str, Interval]
    """Control -> interval of the paired difference between latent and control."""
    p: float | None
    """Largest p of its tests: against no rise, and against each control."""
    q: float | None = None
    """p by Benjamini and Hochberg over all latents that fire."""

    @property
    def used(self) -> bool:
        """Whether the error rises, and more than with each control, at a false discovery rate of `RATE`."""
        return self.q is not None and self.q <= RATE


def use_of_latents(
    latents: Sequence[int],
    rises: Float[np.ndarray, "latent sample"],
    controls: Mapping[str, Float[np.ndarray, "latent sample"]],
    active: Bool[np.ndarray, "latent sample"],
    untouched: Float[np.ndarray, " sample"],
    groups: Sequence[Hashable],
    settings: UseSettings | None = None,
) -> list[LatentUse]:
    """Return the use of each latent, without q.

    The p of a test is two-sided, from flipping the signs of whole groups; it is 1 where the mean is not positive. A
    control of the same norm that the denoiser treats like the latent has differences that are symmetric around 0. The
    p of a latent is the largest of its tests, so that all of them have to hold (intersection-union test).

    Args:
        latents: number of each latent.
        rises: rise of the error by ablation.
        controls: control -> rise by it.
        active: where each latent is active.
        untouched: untouched error of each sample.
        groups: group of each sample.
        settings: how; None for the defaults.
    Raises: TooFewGroups with fewer than two groups; EmptyClass if the untouched error is zero; NonFinite.
    """
    settings = UseSettings() if settings is None else settings
    if not untouched.mean() > 0:
        raise EmptyClass("the untouched denoising error is zero: no rise relative to it is defined.")
    grouped = Groups.of(groups, what="intervals over groups")
    fires = np.flatnonzero(active.any(1))
    differences = [rises, *(rises - control for control in controls.values())]
    p = np.max([_p_values(one[fires], grouped, settings) for one in differences], axis=0)
    p_of = dict(zip(fires.tolist(), p.tolist(), strict=True))
    return [
        _one(latent, row, rises, controls, active, untouched, grouped, p_of.get(row), settings)
        for row, latent in enumerate(latents)
    ]


def _one(
    latent: int,
    row: int,
    rises: NDArray[np.float64],
    controls: Mapping[str, NDArray[np.float64]],
    active: NDArray[np.bool_],
    untouched: NDArray[np.float64],
    groups: Groups,
    p: float | None,
    settings: UseSettings,
) -> LatentUse:
    if p is None:
        return LatentUse(
            latent=latent, n_active=0, n_groups=0, delta=None, relative=None, delta_active=None, controls={}, above={},
            p=None,
        )  # fmt: skip
    names, rise = groups.ids.tolist(), rises[row]

    def interval(statistic: SumStatistic) -> Interval:
        return bootstrap_interval(statistic, names, n_resamples=settings.n_resamples, seed=settings.seed)

    return LatentUse(
        latent=latent,
        n_active=int(active[row].sum()),
        n_groups=len(np.unique(groups.ids[active[row]])),
        delta=interval(mean_of(rise)),
        relative=interval(SumStatistic(parts=np.stack([rise, untouched], 1), value=ratio)),
        delta_active=float(rise[active[row]].mean()),
        controls={name: float(control[row].mean()) for name, control in controls.items()},
        above={name: interval(mean_of(rise - control[row])) for name, control in controls.items()},
        p=p,
    )


def _p_values(
    values: Float[np.ndarray, "latent sample"], groups: Groups, settings: UseSettings
) -> Float[np.ndarray, " latent"]:
    """Return the p of a positive mean of each row."""
    sums = groups.sums(values.T).T
    found = np.ones(len(values))
    for start in range(0, len(values), _AT_ONCE):
        part = sums[start : start + _AT_ONCE]
        nulls = sign_flip_nulls(part, n_permutations=settings.n_permutations, seed=settings.seed)
        p = np.array([null.p for null in nulls])
        found[start : start + _AT_ONCE] = np.where(part.sum(1) > 0, p, 1.0)
    return found


def with_q(found: Sequence[LatentUse]) -> list[LatentUse]:
    """Return the same with q over all latents that fire, each number of which is tested once."""
    from dataclasses import replace

    tested = [use.p for use in found if use.p is not None]
    adjusted = iter(benjamini_hochberg(tested).adjusted if tested else ())
    return [use if use.p is None else replace(use, q=next(adjusted)) for use in found]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How reading and use of latents go together."""

    correlation: float | None
    """Spearman's rank correlation of held-out AUROC and rise of the error, over latents that have both; None where
    all numbers of one kind are equal."""
    interval: tuple[float, float] | None
    """Of the correlation, over resampled latents; None with fewer than 10 latents."""
    n: int
    """Latents that have both."""
    n_read: int
    """Those whose reading passes its test."""
    n_used_of_read: int
    n_used_of_others: int


def agreement(
    found: Iterable[LatentUse], auroc: Sequence[float | None], read: Sequence[bool], *, seed: int = 0
) -> Agreement:
    """Compare what can be read with what is used.

    Args:
        found: the use of some latents.
        auroc: held-out AUROC of every latent of the dictionary, None without one.
        read: whether the reading of every latent passes its test.
        seed: seed of the resamples.
    Raises: ConfigError if fewer than three latents have both numbers.
    """
    both = [use for use in found if use.delta is not None and auroc[use.latent] is not None]
    if len(both) < 3:
        raise ConfigError(f"{len(both)} latents have an AUROC and a rise of the error; a correlation needs 3.")
    from scipy.stats import rankdata  # heavy

    x = np.array([auroc[use.latent] for use in both], dtype=np.float64)
    y = np.array([use.delta.estimate for use in both if use.delta is not None])

    def spearman(rows: NDArray[np.int64]) -> float:
        a, b = rankdata(x[rows]), rankdata(y[rows])
        if a.std() == 0 or b.std() == 0:
            raise EmptyClass("a rank correlation of equal numbers is not defined.")
        return float(np.corrcoef(a, b)[0, 1])

    correlation, interval = None, None
    if len(set(x.tolist())) > 1 and len(set(y.tolist())) > 1:
        correlation = spearman(np.arange(len(both)))
    if correlation is not None and len(both) >= 10:
        drawn = bootstrap_interval(spearman, range(len(both)), seed=seed)
        interval = (drawn.low, drawn.high)
    of_read = [use.used for use in both if read[use.latent]]
    others = [use.used for use in both if not read[use.latent]]
    return Agreement(
        correlation=correlation, interval=interval, n=len(both), n_read=len(of_read),
        n_used_of_read=sum(of_read), n_used_of_others=sum(others),
    )  # fmt: skip
