"""Choice of the penalty: the log-loss of scikit-learn on the same folds, one standard error, the refit."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from diffprobe.core.errors import ConfigError
from diffprobe.probes.grouped_folds import grouped_folds
from diffprobe.probes.l2_selection import Task, check_path, choose, select_l2

PATH = (1.0, 0.1, 0.01)
N, D, C = 150, 8, 3


def _task() -> tuple[torch.Tensor, list[str], np.ndarray]:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(2, N, D, generator=made, dtype=torch.float64) * 2 + 3
    noise = torch.randn(N, C, generator=made, dtype=torch.float64)
    labels = (x[0, :, :C] + 2 * noise + torch.tensor([1.5, 0.0, 0.0])).argmax(1).numpy()
    return x, [f"family{i // 3}" for i in range(N)], labels


@pytest.mark.parametrize("balanced", [True, False])
def test_scores_and_refit_are_those_of_scikit_learn(balanced: bool) -> None:
    x, groups, labels = _task()
    folds = grouped_folds(groups, labels, n_folds=3)
    found = select_l2(x, [Task(labels, folds)], n_classes=C, path=PATH, balanced=balanced)
    mode = "balanced" if balanced else None
    for cell in (0, 1):
        chosen, whole = found[cell][0], x[cell].numpy()
        for i, l2 in enumerate(PATH):
            losses = []
            for k in range(3):
                train, held_out = folds.fold != k, folds.fold == k
                scaler = StandardScaler().fit(whole[train])
                model = LogisticRegression(C=1 / (l2 * train.sum()), class_weight=mode, tol=1e-8, max_iter=5000)
                model.fit(scaler.transform(whole[train]), labels[train])
                weights = compute_sample_weight(mode, labels[held_out])
                p = model.predict_proba(scaler.transform(whole[held_out]))
                losses.append(log_loss(labels[held_out], p, sample_weight=weights))
            assert chosen.log_loss[i] == pytest.approx(np.mean(losses), abs=1e-3)
            assert chosen.standard_error[i] == pytest.approx(np.std(losses, ddof=1) / 3**0.5, abs=1e-3)
        assert chosen.l2 == PATH[int(np.argmin(chosen.log_loss))] and chosen.converged and chosen.gap <= 1.01e-6
        scaler = StandardScaler().fit(whole)
        model = LogisticRegression(C=1 / (chosen.l2 * N), class_weight=mode, tol=1e-8, max_iter=5000)
        theirs = model.fit(scaler.transform(whole), labels).predict_proba(scaler.transform(whole))
        ours = (x[cell] @ chosen.weight.T + chosen.bias).softmax(1).numpy()
        assert log_loss(labels, ours) == pytest.approx(log_loss(labels, theirs), abs=1e-3)


def test_a_class_of_one_group_is_left_out_of_the_score_and_learned_by_the_refit() -> None:
    x, groups, labels = _task()
    labels = labels.copy()
    labels[:3] = 3
    folds = grouped_folds(groups, labels, n_folds=3)
    chosen = select_l2(x[:1], [Task(labels, folds)], n_classes=4, path=PATH)[0][0]
    assert folds.single_group_classes == (3,) and chosen.n_unscored == 3
    assert np.isfinite(chosen.log_loss).all() and torch.isfinite(chosen.bias).all()


def test_one_standard_error_takes_the_larger_penalty() -> None:
    assert choose([0.9, 0.56, 0.5], [0.0, 0.0, 0.07], one_standard_error=True) == 1
    assert choose([0.9, 0.56, 0.5], [0.0, 0.0, 0.07], one_standard_error=False) == 2
    x, groups, labels = _task()
    task = Task(labels, grouped_folds(groups, labels, n_folds=3))
    plain, rule = (
        select_l2(x[:1], [task], n_classes=C, path=PATH, one_standard_error=on)[0][0] for on in (False, True)
    )
    assert rule.l2 >= plain.l2 and rule.log_loss == plain.log_loss


def test_a_path_ends_where_the_loss_has_risen_and_chooses_what_the_whole_path_does() -> None:
    x, groups, labels = _task()
    task = Task(labels, grouped_folds(groups, labels, n_folds=3))
    path = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
    x = torch.cat([x, torch.randn(2, N, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))], 2)
    whole, early = (select_l2(x, [task], n_classes=C, path=path, patience=n) for n in (None, 2))
    for one, other in zip(whole, early, strict=True):
        n = len(other[0].path)
        assert other[0].path == path[:n] and other[0].log_loss == one[0].log_loss[:n] and n < len(path)
        assert other[0].l2 == one[0].l2 and torch.allclose(other[0].weight, one[0].weight)
        mean, error = np.array(one[0].log_loss), np.array(one[0].standard_error)
        best = int(np.argmin(mean[:n]))
        assert (mean[n - 2 : n] > mean[best] + error[best]).all()


def test_cells_and_tasks_end_their_paths_each_by_itself() -> None:
    x, groups, labels = _task()
    x = torch.cat([x, torch.randn(2, N, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))], 2)
    tasks = [Task(y, grouped_folds(groups, y, n_folds=3)) for y in (labels, np.roll(labels, 50))]
    path = (10.0, 1.0, 0.1, 0.01, 1e-3, 1e-4)
    together = select_l2(x, tasks, n_classes=C, path=path, patience=1, fold_gap=1e-10)
    for cell in (0, 1):
        for t in (0, 1):
            alone = select_l2(x[cell : cell + 1], tasks[t : t + 1], n_classes=C, path=path, patience=1, fold_gap=1e-10)
            assert alone[0][0].path == together[cell][t].path
            assert alone[0][0].log_loss == pytest.approx(together[cell][t].log_loss, abs=1e-6)


def test_two_tasks_together_are_as_alone() -> None:
    x, groups, labels = _task()
    tasks = [Task(y, grouped_folds(groups, y, n_folds=3)) for y in (labels, np.roll(labels, 50))]
    together = select_l2(x, tasks, n_classes=C, path=PATH, gap=1e-10, fold_gap=1e-10)
    for cell in (0, 1):
        for t in (0, 1):
            alone = select_l2(x[cell : cell + 1], tasks[t : t + 1], n_classes=C, path=PATH, gap=1e-10, fold_gap=1e-10)[
                0
            ][0]
            assert alone.log_loss == pytest.approx(together[cell][t].log_loss, abs=1e-6)
            assert alone.l2 == together[cell][t].l2


@pytest.mark.parametrize("path", [(), (1.0, 1.0), (0.0,), (float("inf"),)])
def test_an_unusable_path_is_refused(path: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="l2="):
        check_path(path)
