"""The statistics of use on planted rises: a latent that is used, one that is not, one that never fires."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, spearmanr

from diffprobe.analysis.latents.use import LatentUse, UseSettings, agreement, use_of_latents, with_q
from diffprobe.analysis.statistics import bootstrap_interval, mean_of
from diffprobe.core.errors import ConfigError, EmptyClass, TooFewGroups

N = 60
GROUPS = [f"family-{i // 2}" for i in range(N)]
SETTINGS = UseSettings(n_resamples=400, n_permutations=999)


def planted(seed: int = 0):
    """Latent 7 is used, 8 costs as much as its control, 9 lowers the error, 3 never fires, 5 fires on one image."""
    rng = np.random.default_rng(seed)
    active = rng.random((5, N)) < 0.6
    active[3], active[4] = False, np.arange(N) == 11
    rises = np.stack([3 + rng.normal(size=N), 1 + rng.normal(size=N), -1 + rng.normal(size=N), *np.ones((2, N))])
    control = 1 + rng.normal(size=(5, N))
    untouched = 10 + rng.random(N)
    return [7, 8, 9, 3, 5], rises * active, {"random_direction": control * active}, active, untouched


def measured(**keys) -> dict[int, LatentUse]:
    latents, rises, controls, active, untouched = planted()
    found = use_of_latents(latents, rises, controls, active, untouched, GROUPS, SETTINGS, **keys)
    return {use.latent: use for use in with_q(found)}


def test_the_used_latent_alone_is_found() -> None:
    found = measured()
    assert [latent for latent, use in found.items() if use.used] == [7]
    assert found[8].delta is not None and found[8].delta.low > 0  # it costs, but no more than its control
    assert found[8].above["random_direction"].low < 0 and found[9].p == 1.0


def test_numbers_are_those_of_plain_formulas() -> None:
    latents, rises, controls, active, untouched = planted()
    found = measured()
    for row, latent in enumerate(latents[:3]):
        use = found[latent]
        assert use.delta is not None and use.relative is not None
        assert use.delta.estimate == pytest.approx(rises[row].mean())
        assert use.relative.estimate == pytest.approx(rises[row].sum() / untouched.sum())
        assert use.delta_active == pytest.approx(rises[row][active[row]].mean())
        assert use.controls["random_direction"] == pytest.approx(controls["random_direction"][row].mean())
        plain = bootstrap_interval(mean_of(rises[row] - controls["random_direction"][row]), GROUPS, n_resamples=400)
        assert (use.above["random_direction"].low, use.above["random_direction"].high) == (plain.low, plain.high)
        assert use.n_active == active[row].sum()
        assert use.n_groups == len({GROUPS[i] for i in np.flatnonzero(active[row])})
    p = [found[latent].p for latent in (7, 8, 9, 5)]
    assert [found[latent].q for latent in (7, 8, 9, 5)] == pytest.approx(list(false_discovery_control(p)))


def test_the_p_is_that_of_all_sign_patterns_of_groups() -> None:
    """With few groups every pattern is enumerated; the p of the harder of both tests is taken."""
    groups = [0, 0, 1, 1, 2, 3, 4, 5]
    rng = np.random.default_rng(1)
    rise, control = 1 + rng.normal(size=8), 0.2 * rng.normal(size=8)

    def plain(values) -> float:
        sums = np.array([values[[g == i for g in groups]].sum() for i in range(6)])
        flips = [abs((np.array([1 - 2 * ((code >> i) & 1) for i in range(6)]) * sums).sum()) for code in range(64)]
        return float(np.mean(np.array(flips) >= abs(sums.sum()) - 1e-12))

    (use,) = use_of_latents(
        [0], rise[None], {"random_latent": control[None]}, np.ones((1, 8), bool), np.ones(8), groups, SETTINGS
    )
    assert use.p == pytest.approx(max(plain(rise), plain(rise - control)))


def test_a_latent_that_never_fires_has_no_numbers_rather_than_zeros() -> None:
    never = measured()[3]
    assert (never.n_active, never.delta, never.p, never.q, never.used) == (0, None, None, None, False)


def test_one_image_is_never_enough() -> None:
    one = measured()[5]
    assert one.n_active == one.n_groups == 1 and one.p == 1.0 and not one.used


def test_the_order_of_samples_and_latents_does_not_matter() -> None:
    latents, rises, controls, active, untouched = planted()
    order = np.arange(5)[::-1]
    flipped = use_of_latents(
        [latents[i] for i in order], rises[order], {"random_direction": controls["random_direction"][order]},
        active[order], untouched, GROUPS, SETTINGS,
    )  # fmt: skip
    assert {use.latent: use for use in with_q(flipped)} == measured()
    rows = np.random.default_rng(2).permutation(N)
    moved = use_of_latents(
        latents, rises[:, rows], {"random_direction": controls["random_direction"][:, rows]}, active[:, rows],
        untouched[rows], [GROUPS[i] for i in rows], SETTINGS,
    )  # fmt: skip
    for use in with_q(moved):
        same = measured()[use.latent]
        assert use.used == same.used and use.n_active == same.n_active
        assert use.delta is None or use.delta.estimate == pytest.approx(same.delta.estimate)


def test_without_an_effect_few_are_found() -> None:
    rng = np.random.default_rng(3)
    rises, control = rng.normal(size=(2, 400, 40))
    found = use_of_latents(
        range(400), rises, {"random_direction": control}, np.ones((400, 40), bool), np.ones(40), range(40),
        UseSettings(n_resamples=20, n_permutations=499),
    )  # fmt: skip
    assert sum(use.used for use in with_q(found)) <= 1
    assert np.mean([use.p <= 0.05 for use in found if use.p is not None]) < 0.05


def test_reading_and_use_are_compared_over_the_latents_that_have_both() -> None:
    found = list(measured().values())
    auroc = [None, 0.5, 0.5, 0.9, 0.5, 0.55, 0.5, 0.8, 0.7, 0.6]
    read = [value is not None and value >= 0.7 for value in auroc]
    one = agreement(found, auroc, read)
    x = [auroc[latent] for latent in (7, 8, 9, 5)]
    y = [use.delta.estimate for latent in (7, 8, 9, 5) for use in found if use.latent == latent and use.delta]
    assert one.correlation == pytest.approx(spearmanr(x, y).statistic)
    assert (one.n, one.n_read, one.n_used_of_read, one.n_used_of_others, one.interval) == (4, 2, 1, 0, None)
    assert agreement(found, [0.5] * 10, [False] * 10).correlation is None
    with pytest.raises(ConfigError, match="2 latents"):
        agreement(found, [None] * 8 + [0.5, 0.6], [False] * 10)


def test_what_has_no_interval_is_refused() -> None:
    latents, rises, controls, active, untouched = planted()
    with pytest.raises(TooFewGroups, match="1 group"):
        use_of_latents(latents, rises, controls, active, untouched, ["one"] * N)
    with pytest.raises(EmptyClass, match="zero"):
        use_of_latents(latents, rises, controls, active, np.zeros(N), GROUPS)
