import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.score.diffusion_classifier import candidates_of, choose
from diffprobe.probes.score.staged_errors import Stage
from diffprobe.scoring.noise_sets import spread_timesteps

N = 60
KEYS = [f"key {i}" for i in range(N)]
GROUPS = [f"group {i // 2}" for i in range(N)]  # two samples a group
CAPTIONS = [f"caption {i // 3}" for i in range(N)]  # three samples share a caption


class Planted:
    """Errors that are known: the distance between a sample's number and its candidate's, or chance."""

    def __init__(self, chance: bool = False) -> None:
        self.chance, self.sizes = chance, []
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, latents, keys, conditions, timesteps):
        text = conditions["text"]
        self.sizes.append(len(keys))
        assert [int(key.split()[1]) for key in keys] == latents.flatten().tolist()
        if self.chance:
            return torch.rand(len(keys), text.shape[1], len(timesteps), generator=self.generator)
        distance = (latents.flatten(1) - text.flatten(2)[:, :, 0]).abs()
        noise = torch.tensor([100.0 * (-1) ** i for i in range(len(timesteps))])  # gone in the mean over timesteps
        return distance[..., None] + noise


def numbers(n: int = N) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Latents and texts that hold the number of their sample."""
    return torch.arange(n).float().reshape(n, 1, 1, 1), {"text": torch.arange(n).float().reshape(n, 1, 1)}


def test_candidates_are_the_own_caption_then_others_of_other_groups():
    table = candidates_of(KEYS, GROUPS, CAPTIONS, n=10, seed=0)
    assert table.shape == (N, 10) and table[:, 0].tolist() == list(range(N))
    for row, candidates in enumerate(table.tolist()):
        assert all(GROUPS[other] != GROUPS[row] for other in candidates[1:])
        assert len({CAPTIONS[other] for other in candidates}) == 10
    assert len(set(table[:, 1:].flatten().tolist())) == N  # all samples are drawn


def test_candidates_are_fixed_by_seed_and_key():
    table = candidates_of(KEYS, GROUPS, CAPTIONS, n=5, seed=0)
    assert torch.equal(table, candidates_of(KEYS, GROUPS, CAPTIONS, n=5, seed=0))
    assert not torch.equal(table, candidates_of(KEYS, GROUPS, CAPTIONS, n=5, seed=1))
    renamed = candidates_of([*KEYS[:-1], "another"], GROUPS, CAPTIONS, n=5, seed=0)
    assert torch.equal(table[:-1], renamed[:-1])  # what the others are called changes nothing
    assert not torch.equal(table[-1], renamed[-1])


def test_too_few_groups_or_captions_are_refused():
    with pytest.raises(EmptyClass, match="10 .* groups.* 2"):
        candidates_of(KEYS, ["a", "b"] * 30, CAPTIONS, n=10, seed=0)
    with pytest.raises(EmptyClass, match="'key 0' .* 1 .* 9"):
        candidates_of(KEYS, GROUPS, ["one", "two"] * 30, n=10, seed=0)


def test_a_perfect_score_is_always_right_and_progress_is_per_batch():
    latents, text = numbers()
    table = candidates_of(KEYS, GROUPS, CAPTIONS, n=10, seed=0)
    score, done = Planted(), []
    choice = choose(score, latents, KEYS, text, table, [1, 2], batch_size=25, on_batch=done.append)
    right = choice.right
    assert torch.equal(right, choice.right_at_screening)
    assert right.dtype == torch.bool and right.all() and len(right) == N
    assert score.sizes == done == [25, 25, 10]
    wrong = table.clone()
    wrong[:, [0, 1]] = wrong[:, [1, 0]]  # the first is taken for the right one
    assert not choose(score, latents, KEYS, text, wrong, [1, 2]).right.any()


def test_a_tie_is_wrong():
    latents, text = numbers()
    table = torch.stack([torch.arange(N), torch.arange(N)], 1)
    assert not choose(Planted(), latents, KEYS, text, table, [1, 2]).right.any()
    table = torch.stack([torch.arange(N), *[torch.arange(N)] * 3], 1)  # all alike
    stages = (Stage(n_timesteps=2, kept=2),)
    assert not choose(Planted(), latents, KEYS, text, table, [1, 2, 3, 4], stages=stages).right.any()


def test_a_score_that_knows_nothing_is_right_one_time_in_ten():
    n = 2000
    latents, text = numbers(n)
    table = torch.stack([torch.randperm(n)[:10] for _ in range(n)])
    choice = choose(Planted(chance=True), latents, [f"key {i}" for i in range(n)], text, table, [1, 2, 3])
    assert float(choice.right.float().mean()) == pytest.approx(0.1, abs=0.025)  # standard error 0.007


def test_timesteps_are_spread_evenly():
    assert spread_timesteps(1, 1000) == [500]
    assert set(spread_timesteps(10, 1000)) < set(spread_timesteps(50, 1000))
    steps = spread_timesteps(15, 1000)
    assert len(set(steps)) == 15 and {b - a for a, b in zip(steps, steps[1:], strict=False)} <= {66, 67}
    assert 0 <= steps[0] and steps[-1] < 1000


class Table:
    """Errors that are looked up: [sample, candidate, timestep]."""

    def __init__(self, errors: torch.Tensor) -> None:
        self.errors, self.asked = errors, []

    def __call__(self, latents, keys, conditions, timesteps):
        text = conditions["text"]
        rows = torch.tensor([int(key.split()[1]) for key in keys])
        columns = text[..., 0, 0].long() - 10 * rows[:, None]
        self.asked.append((columns.shape[1], list(timesteps)))
        return self.errors[rows[:, None, None], columns[..., None], torch.tensor(timesteps)]


def choose_from(errors: torch.Tensor, stages: tuple[Stage, ...] = (), *, steps=None, **options):
    n = len(errors)
    score, candidates = Table(errors), torch.arange(10 * n).reshape(n, 10)
    text = {"text": torch.arange(10.0 * n).reshape(-1, 1, 1)}
    keys, steps = [f"key {i}" for i in range(n)], list(range(errors.shape[-1])) if steps is None else steps
    return score, choose(score, numbers(n)[0], keys, text, candidates, steps, stages=stages, **options)


def test_a_screening_scores_the_others_at_what_is_left_and_sums_over_all():
    errors = torch.rand(400, 10, 6, generator=torch.Generator().manual_seed(1))
    errors[:, 0] -= 0.3  # the own caption is often best, and often not
    stages, steps = (Stage(n_timesteps=2, kept=3),), [1, 4, 0, 2, 3, 5]
    score, choice = choose_from(errors, stages, steps=steps, batch_size=400)
    assert score.asked == [(10, [1, 4]), (3, [0, 2, 3, 5])]
    first, total = errors[..., [1, 4]].sum(-1), errors.sum(-1)
    expected = []
    for row in range(400):  # as one would say it
        kept = first[row].argsort()[:3].tolist()
        expected.append(0 in kept and total[row, kept].argmin().item() == kept.index(0))
    assert choice.right.tolist() == expected
    assert torch.equal(choice.right_at_screening, first.argmin(1) == 0)
    assert 0.1 < choice.right_at_screening.float().mean() < choice.right.float().mean() < 0.99


def test_a_screening_that_keeps_all_changes_nothing():
    errors = torch.rand(50, 10, 6, generator=torch.Generator().manual_seed(2))
    errors[:, 0] -= 0.2
    kept = choose_from(errors, (Stage(n_timesteps=2, kept=10),))[1].right
    assert torch.equal(kept, choose_from(errors)[1].right) and 0 < kept.sum() < 50
    assert torch.equal(kept, choose_from(errors, (Stage(n_timesteps=2, kept=99),), batch_size=7)[1].right)


def test_the_position_of_the_right_caption_has_no_effect():
    errors = torch.rand(80, 10, 4, generator=torch.Generator().manual_seed(3)).round(decimals=1)  # with ties
    errors[:, 0] -= 0.2
    stages = (Stage(n_timesteps=1, kept=2),)
    plain = choose_from(errors, stages)[1].right
    order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(9)])
    assert torch.equal(plain, choose_from(errors[:, order], stages)[1].right) and 0 < plain.sum() < 80


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="keeping 0 after 1"):
        choose_from(torch.rand(3, 10, 4), (Stage(n_timesteps=1, kept=0),))
    with pytest.raises(ConfigError, match="after 4 of 4"):
        choose_from(torch.rand(3, 10, 4), (Stage(n_timesteps=4, kept=3),))
