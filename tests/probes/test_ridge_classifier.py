"""The closed-form classifier: against a plain solution, on separable classes, and what it refuses."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.probes.ridge_classifier import ALPHAS, FOLDS, ridge_predictions


def samples(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator) * torch.tensor([1.0, 5.0, 0.1, 1.0, 1.0, 1.0]) + 3
    noise = torch.randn(n, 3, generator=generator)
    y = (x[:, :3] / torch.tensor([1.0, 5.0, 0.1]) + noise).argmax(1)
    return x, torch.stack([y, (x[:, 3] > 3).long()], dim=1)


def plain(x: torch.Tensor, y: torch.Tensor, test: torch.Tensor, alpha: float) -> torch.Tensor:
    """Solve the penalised least squares with an explicit column of ones and an explicit inverse."""
    mean, scale = x.mean(0), x.std(0, correction=0)
    ones = torch.cat([(x - mean) / scale, torch.ones(len(x), 1)], dim=1).double()
    penalty = torch.eye(7).double() * alpha * len(x)
    penalty[-1, -1] = 0
    weights = torch.linalg.inv(ones.T @ ones + penalty) @ ones.T @ y.double()
    return torch.cat([(test - mean) / scale, torch.ones(len(test), 1)], dim=1).double() @ weights


def test_predictions_are_those_of_the_plain_solution_with_the_best_penalty_of_the_folds() -> None:
    x, labels = samples(200, 0)
    test, _ = samples(300, 1)
    found = ridge_predictions(x, labels, test, n_classes=[3, 2])
    for target, n in enumerate((3, 2)):
        y = torch.nn.functional.one_hot(labels[:, target], n)
        errors = dict.fromkeys(ALPHAS, 0.0)
        for alpha in ALPHAS:
            for fold in range(FOLDS):
                own = torch.arange(200) % FOLDS == fold
                errors[alpha] += float((plain(x[~own], y[~own], x[own], alpha) - y[own]).square().sum())
        best = min(errors, key=errors.__getitem__)
        assert torch.equal(found[:, target], plain(x, y, test, best).argmax(1))


def test_a_linear_attribute_is_found_and_labels_at_random_are_not() -> None:
    x, labels = samples(400, 0)
    test, truth = samples(400, 1)
    found = ridge_predictions(x, labels, test, n_classes=[3, 2])
    assert float((found[:, 1] == truth[:, 1]).float().mean()) > 0.9
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(2))]
    guessed = ridge_predictions(x, shuffled, test, n_classes=[3, 2])
    assert float((guessed[:, 1] == truth[:, 1]).float().mean()) < 0.65


def test_bad_features_are_refused() -> None:
    x, labels = samples(50, 0)
    with pytest.raises(ConfigError, match="at least 10"):
        ridge_predictions(x[:9], labels[:9], x, n_classes=[3, 2])
    with pytest.raises(NonFinite):
        ridge_predictions(x * float("nan"), labels, x, n_classes=[3, 2])
    with pytest.raises(ConfigError, match="constant"):
        ridge_predictions(torch.ones(50, 6), labels, x, n_classes=[3, 2])
