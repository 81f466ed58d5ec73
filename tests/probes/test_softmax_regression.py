"""Batched logistic regression: scikit-learn's solution, problems that do not influence each other, a stated end."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.softmax_regression import Problems, Solutions, class_weights, solve

N, D, C = 240, 12, 3


def _problems(*, balanced: bool = True) -> Problems:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(2, N, D, generator=made, dtype=torch.float64) @ torch.randn(D, D, generator=made).double() + 5
    noise = torch.randn(N, C, generator=made, dtype=torch.float64)
    y = (x[0, :, :C] + 4 * noise + torch.tensor([2.0, 0.0, -2.0])).argmax(1)
    weights = [class_weights(y, torch.arange(N) % 3 != fold, C, balanced=balanced) for fold in (0, 1, 0, 1)]
    return Problems(x, torch.tensor([0, 0, 1, 1]), y.expand(4, N), torch.stack(weights), C)


def _reference(problems: Problems, i: int, l2: float) -> tuple[LogisticRegression, StandardScaler]:
    used = problems.weights[i] > 0
    x, y = problems.features[problems.cell[i]][used], problems.labels[i][used]
    scaler = StandardScaler().fit(x.numpy())
    weights = problems.weights[i][used].numpy()
    model = LogisticRegression(C=1 / (l2 * weights.sum()), tol=1e-10, max_iter=20_000)
    return model.fit(scaler.transform(x.numpy()), y.numpy(), sample_weight=weights), scaler


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("balanced", [True, False])
def test_the_path_is_that_of_scikit_learn(balanced: bool, dtype: torch.dtype) -> None:
    problems, start = _problems(balanced=balanced), None
    for l2 in (1.0, 0.03, 1e-3):
        start = solve(problems, l2, start=start, dtype=dtype, gap=1e-9)
        assert start.converged.all() and (start.gap <= 1.01e-9).all()
        for i in (0, 3):
            model, scaler = _reference(problems, i, l2)
            x = problems.features[problems.cell[i]]
            ours = (x @ start.weight[i].T + start.bias[i]).softmax(1)
            theirs = model.predict_proba(scaler.transform(x.numpy()))
            held_out = problems.weights[i] == 0
            y = problems.labels[i][held_out].numpy()
            difference = log_loss(y, ours[held_out].numpy()) - log_loss(y, theirs[held_out.numpy()])
            assert abs(difference) < 1e-3
            assert torch.allclose(start.standard_weight[i].double(), torch.tensor(model.coef_), atol=1e-3)


def _row(found: Solutions, i: int) -> torch.Tensor:
    return torch.cat([found.weight[i], found.bias[i][:, None]], dim=1)


def test_a_problem_does_not_depend_on_the_others_or_on_the_order_of_samples() -> None:
    problems = _problems()
    together = solve(problems, 0.01, gap=1e-10)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    for i in range(4):
        rows = torch.tensor([i])
        alone = Problems(
            problems.features[:, order],
            problems.cell[rows],
            problems.labels[rows][:, order],
            problems.weights[rows][:, order],
            C,
        )
        assert torch.allclose(_row(solve(alone, 0.01, gap=1e-10), 0), _row(together, i), atol=1e-6)


def test_a_warm_start_ends_at_the_same_minimum() -> None:
    problems = _problems()
    cold, warm = solve(problems, 0.01), solve(problems, 0.01, start=solve(problems, 0.03))
    assert torch.allclose(cold.objective, warm.objective, atol=2e-6)


def test_the_gap_bounds_the_distance_to_the_minimum_and_an_early_end_is_reported() -> None:
    problems = _problems()
    best = solve(problems, 0.01, gap=1e-13).objective
    early = solve(problems, 0.01, max_steps=2)
    assert not early.converged.all() and (early.n_steps <= 2).all()
    assert (early.objective - best <= early.gap + 1e-9).all()
    assert torch.allclose(early.gap, early.gradient_norm.square() / 0.02)


def test_constant_features_and_absent_classes_have_no_say() -> None:
    problems = _problems()
    x = problems.features.clone()
    x[:, :, 0] = 7.0
    labels, weights = problems.labels[:1], problems.weights[:1] * (problems.labels[:1] != 2)
    found = solve(Problems(x, torch.tensor([0]), labels, weights, C), 0.1)
    assert (found.weight[0, :, 0] == 0).all()
    assert found.bias[0, 2] == -torch.inf and torch.isfinite(found.bias[0, :2]).all()
    assert found.converged.all()


def test_unusable_input_is_refused() -> None:
    problems = _problems()
    with pytest.raises(ConfigError, match="l2=0"):
        solve(problems, 0)
    with pytest.raises(ConfigError, match="weight"):
        solve(Problems(problems.features, problems.cell, problems.labels, problems.weights * 0, C), 1.0)
    broken = problems.features.clone()
    broken[0, 0, 0] = torch.nan
    with pytest.raises(NonFinite):
        solve(Problems(broken, problems.cell, problems.labels, problems.weights, C), 1.0)
