"""Stages keep what a plain search keeps, and neither the order of candidates nor the batch has an effect."""

import pytest
import torch
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.score.staged_errors import Stage, check_stages, nested_timesteps, staged_errors, weighted_error

TIMES = [500, 300, 700, 200, 600, 400, 800, 100]
N, K = 7, 6
KEYS = [f"k{i}" for i in range(N)]
OFFERED = torch.ones(N, K, dtype=torch.bool)


class Table:
    """A score that looks errors up by (sample, candidate, timestep); it counts what it is asked for."""

    def __init__(self, seed: int = 0) -> None:
        self.values = torch.rand(N, K, 1000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.passes = 0

    def __call__(self, latents, keys, conditions, timesteps) -> Tensor:
        rows = torch.tensor([KEYS.index(key) for key in keys])
        assert rows.tolist() == latents.flatten().tolist()
        candidates = conditions["text"].long()[..., 0]
        self.passes += candidates.numel() * len(timesteps)
        return self.values[rows[:, None, None], candidates[..., None], torch.tensor(timesteps)]


def run(score, order: Tensor | None = None, rows=range(N), offered=OFFERED, stages=(), weights=None) -> Tensor:
    order = torch.arange(K) if order is None else order
    picked = torch.tensor(list(rows))
    return staged_errors(
        score,
        picked[:, None, None, None].float(),
        [KEYS[row] for row in picked],
        {"text": torch.arange(K)[:, None].float()},
        order.expand(len(picked), K),
        offered[picked],
        TIMES,
        torch.ones(len(TIMES), dtype=torch.float64) if weights is None else weights,
        stages,
    )


STAGES = (Stage(n_timesteps=2, kept=4), Stage(n_timesteps=5, kept=2))


def test_three_stages_keep_what_a_search_by_hand_keeps() -> None:
    score = Table()
    found = run(score, stages=STAGES)
    for row in range(N):
        alive = list(range(K))
        for start, stop, kept in ((0, 2, 4), (2, 5, 2), (5, 8, None)):
            for candidate in range(K):
                expected = score.values[row, candidate, TIMES[start:stop]]
                part = found[row, candidate, start:stop]
                assert torch.equal(part, expected) if candidate in alive else bool(part.isnan().all())
            if kept:
                total = {c: float(score.values[row, c, TIMES[:stop]].sum()) for c in alive}
                alive = sorted(total, key=total.__getitem__)[:kept]
    assert score.passes == int(found.isfinite().sum()) == N * (6 * 2 + 4 * 3 + 2 * 3)


def test_weights_decide_about_pruning() -> None:
    score = Table()
    last_of_two = torch.tensor([0.0, 1.0, *[1.0] * 6], dtype=torch.float64)
    found = run(score, stages=(Stage(n_timesteps=2, kept=1),), weights=last_of_two)
    kept = found[..., 2].isfinite().double().argmax(1)
    assert torch.equal(kept, score.values[:, :, TIMES[1]].argmin(1))


def test_the_order_of_candidates_has_no_effect() -> None:
    plain = run(Table(), stages=STAGES)
    for seed in range(5):
        order = torch.randperm(K, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(run(Table(), order, stages=STAGES).nan_to_num(-1), plain[:, order].nan_to_num(-1))


def test_the_batch_has_no_effect() -> None:
    plain = run(Table(), stages=STAGES)
    parts = torch.cat([run(Table(), rows=rows, stages=STAGES) for rows in ([0, 1], [2, 3, 4, 5], [6])])
    assert torch.equal(parts.nan_to_num(-1), plain.nan_to_num(-1))


def test_samples_may_have_different_numbers_of_candidates() -> None:
    offered = OFFERED.clone()
    offered[0, 3:], offered[1, 0] = False, False
    score = Table()
    found = run(score, offered=offered)
    assert torch.equal(found.isfinite().all(2), offered) and torch.equal(found[2:], run(Table())[2:])
    assert score.passes == int(offered.sum()) * len(TIMES)


def test_candidates_that_tie_with_the_last_kept_one_are_kept_whatever_their_position() -> None:
    score = Table()
    score.values[:, :4] = 0.25  # four equal ones, better than some others
    score.values[:, 4], score.values[:, 5] = 0.5, 0.1
    found = run(score, stages=(Stage(n_timesteps=1, kept=2),))
    assert found[..., 1].isfinite().tolist() == [[True, True, True, True, False, True]] * N


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_error_that_is_not_finite_names_sample_candidate_and_timestep(value: float) -> None:
    score = Table()
    score.values[3, 4, 700] = value
    with pytest.raises(NonFinite, match=r"'k3', candidate 4 at t=700"):
        run(score)


@pytest.mark.parametrize("stages", [[(0, 2)], [(8, 2)], [(2, 0)], [(3, 2), (2, 1)], [(2, 2), (3, 2)]])
def test_stages_that_do_not_follow_each_other_are_refused(stages: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match="stages"):
        check_stages([Stage(n_timesteps=n, kept=kept) for n, kept in stages], 8)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 15, 30, 64])
def test_each_beginning_of_the_nested_order_is_spread(n: int) -> None:
    order = nested_timesteps(range(n))
    assert sorted(order) == list(range(n))
    for length in range(2, n + 1):
        edges = sorted([-1, *order[:length], n])
        assert max(b - a for a, b in zip(edges, edges[1:], strict=False)) <= 2 * (n + 1) / length + 1


def test_the_weighted_error_is_a_mean_and_infinite_where_nothing_was_scored() -> None:
    errors = torch.tensor([[[1.0, 3.0], [torch.nan, torch.nan], [2.0, torch.nan]]], dtype=torch.float64)
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert weighted_error(errors, weights).tolist() == [[1.5, float("inf"), float("inf")]]
