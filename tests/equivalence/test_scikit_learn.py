"""Probes and metrics against scikit-learn, which shares no code with them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffprobe.metrics import accuracy, balanced_accuracy
from diffprobe.metrics.auroc import auroc
from diffprobe.metrics.confusion import ConfusionCounts
from diffprobe.probes.classifier.linear import LinearProbe
from diffprobe.probes.direction.ridge import ridge

sklearn = pytest.importorskip("sklearn")


def data(n=400, d=8, n_classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, n_classes, (n,), generator=generator)
    centres = torch.randn(n_classes, d, generator=generator)
    return 4 + centres[label] + torch.randn(n, d, generator=generator), label


def test_linear_probe_equals_logistic_regression_on_standardised_features():
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, label = data()
    probe = LinearProbe(8, 3)
    probe.standardise(x.double().mean(0), x.double().var(0, unbiased=False))
    strength = 0.01  # penalty strength |W|^2 / 2 on the mean loss
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(probe.logits(x), label) + strength / 2 * probe.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scaler = StandardScaler().fit(x.double().numpy())
    reference = LogisticRegression(C=1 / (strength * len(x)), max_iter=2000, tol=1e-10)
    reference.fit(scaler.transform(x.double().numpy()), label.numpy())
    expected = reference.predict_proba(scaler.transform(x.double().numpy()))
    np.testing.assert_allclose(probe.logits(x).softmax(1).detach().numpy(), expected, atol=2e-4)
    assert (probe.predict(x).numpy() == reference.predict(scaler.transform(x.double().numpy()))).mean() > 0.995


def test_ridge_equals_ridge():
    from sklearn.linear_model import Ridge

    x, label = data()
    positive = label == 0
    alpha = 0.3 * float((x.double() - x.double().mean(0)).square().mean()) * len(x)
    reference = Ridge(alpha=alpha, solver="cholesky").fit(x.double().numpy(), positive.double().numpy())
    np.testing.assert_allclose(ridge(x, positive, alpha=0.3).numpy(), reference.coef_, rtol=1e-8)


def test_scores_equal_their_metrics():
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

    x, label = data(seed=1)
    score = x[:, :2].round(decimals=1)  # with ties
    got = auroc(score, label == 1)
    expected = [roc_auc_score((label == 1).numpy(), score[:, j].numpy()) for j in range(2)]
    assert got.tolist() == pytest.approx(expected, abs=1e-12)
    counts = ConfusionCounts([3])
    counts.update(torch.tensor([0]), x[None, :, :3].argmax(2), label[None])
    prediction = x[:, :3].argmax(1).numpy()
    (found,) = counts.compute()
    truth = label.numpy()
    assert accuracy.from_confusion(found) == pytest.approx(accuracy_score(truth, prediction))
    assert balanced_accuracy.from_confusion(found) == pytest.approx(balanced_accuracy_score(truth, prediction))
