"""Linear classifiers over a path of penalties: ours against scikit-learn, in one run (`diffprobe bench solver`).

Both solve the same problems: the folds and the path of a cross-validation, on standardised features of the training
folds. Data are a cell of a feature store, or synthetic, seeded and clustered. The floor is the matrix products alone,
of as many steps as ours took.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.benchmarks.machine import machine, seconds
from diffprobe.core.errors import ConfigError
from diffprobe.probes.grouped_folds import Folds, grouped_folds
from diffprobe.probes.l2_selection import DEFAULT_PATH, FOLD_GAP, Chosen, Task, fold_problems, select_l2
from diffprobe.probes.softmax_regression import Regressions

PATH = DEFAULT_PATH
_PER_GROUP = 4


@dataclass(frozen=True)
class Size:
    """What is solved."""

    samples: int = 2000
    width: int = 128
    classes: int = 8
    folds: int = 5
    cells: int = 2
    device: str = "cpu"
    store: str | None = None
    """Folder of a feature store, whose training split replaces the synthetic samples."""
    cell: str = ""
    """Its cell, or a unique prefix of one."""
    target: str = "label"
    """What is learned: label or an attribute."""
    group: str = "label"
    """Attribute whose samples stay in one fold."""


@dataclass(frozen=True)
class _Data:
    x: Tensor
    """Features (cells, samples, width), float64."""
    labels: NDArray[np.int64]
    groups: list[str]


@dataclass(frozen=True)
class Report:
    """Seconds of both and of the floor, and how far their cross-validated log-losses are apart."""

    machine: str
    size: Size
    ours_s: float
    theirs_s: float
    floor_s: float
    path: tuple[float, ...]
    largest_difference: tuple[float, ...]
    """Largest difference in cross-validated log-loss over the cells, for each penalty, nats."""
    converged: bool

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(asdict(self), indent=2) + "\n"


def bench_solver(size: Size) -> Report:
    """Solve the problems with both, on the same folds and path.

    Raises: ConfigError without scikit-learn, and for sizes that give fewer groups than folds.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ConfigError(
            "bench solver compares with scikit-learn, which is missing.", fix="pip install scikit-learn"
        ) from error
    data = _synthetic(size) if size.store is None else _stored(size)
    x, labels = data.x, data.labels
    size = replace(
        size, samples=x.shape[1], width=x.shape[2], classes=int(labels.max()) + 1 if size.store else size.classes,
        cells=len(x),
    )  # fmt: skip
    folds = grouped_folds(data.groups, labels, n_folds=size.folds)
    device, found = torch.device(size.device), list[list[Chosen]]()
    moved = x.to(device)

    def ours() -> None:
        found[:] = select_l2(moved, [Task(labels, folds)], n_classes=size.classes, path=PATH, dtype=torch.float32)

    ours_s = seconds(ours, device)
    started, largest = time.perf_counter(), [0.0] * len(PATH)
    for cell in range(size.cells):
        totals = [0.0] * len(PATH)
        for k in range(size.folds):
            train, held_out = torch.from_numpy(folds.fold != k), torch.from_numpy(folds.fold == k)
            mean, std = x[cell][train].mean(0), x[cell][train].std(0, unbiased=False)
            z = ((x[cell] - mean) / torch.where(std > 1e-9, std, 1.0)).numpy()  # rounding is not variance
            target = torch.from_numpy(labels[held_out.numpy()])
            for i, l2 in enumerate(PATH):
                model = LogisticRegression(C=1 / (l2 * int(train.sum())), class_weight="balanced", max_iter=5000)
                model.set_params(tol=1e-6).fit(z[train.numpy()], labels[train.numpy()])
                loss = -torch.from_numpy(model.predict_log_proba(z[held_out.numpy()])).gather(1, target[:, None])[:, 0]
                parts = [loss[target == k].mean() for k in target.unique()]
                totals[i] += float(torch.stack(parts).mean()) / size.folds
        for i, total in enumerate(totals):
            largest[i] = max(largest[i], abs(total - found[cell][0].log_loss[i]))
    theirs_s = time.perf_counter() - started
    converged = all(chosen.converged for row in found for chosen in row)
    floor_s = _floor(moved.float(), labels, folds, size)
    return Report(machine(), size, ours_s, theirs_s, floor_s, PATH, tuple(largest), converged)


def _synthetic(size: Size) -> _Data:
    made = torch.Generator().manual_seed(0)
    n_groups = -(-size.samples // _PER_GROUP)
    groups = [f"g{i // _PER_GROUP}" for i in range(size.samples)]
    base = torch.randn(size.cells, n_groups, size.width, generator=made).repeat_interleave(_PER_GROUP, 1)
    x = (base[:, : size.samples] + 0.5 * torch.randn(size.cells, size.samples, size.width, generator=made)).double()
    truth = torch.randn(size.width, size.classes, generator=made).double() / size.width**0.5
    labels = (3 * x[0] @ truth + torch.randn(size.samples, size.classes, generator=made)).argmax(1).numpy()
    return _Data(x, labels, groups)


def _stored(size: Size) -> _Data:
    from diffprobe.features.reader import FeatureStore

    store = FeatureStore.open(Path(size.store or ""))
    x, labels = store.arrays(size.cell, target=size.target)
    y, groups = store.arrays(size.cell, target=size.group)
    if len(y) != len(x):
        raise ConfigError(
            f"--group {size.group}: {abs(len(y) - len(x))} samples with '{size.target}' have no value of it."
        )
    return _Data(x[None].double(), labels.numpy().astype(np.int64), [str(group) for group in groups.tolist()])


def _floor(x: Tensor, labels: NDArray[np.int64], folds: Folds, size: Size) -> float:
    """Return the seconds of the two matrix products of a step, times the steps that all folds take together."""
    problems = fold_problems(x, [Task(labels, folds)], size.classes)
    batch, theta, n_products = Regressions(problems, dtype=torch.float32), None, 0
    for l2 in PATH:
        found = batch.minimise(l2, start=theta, gap=FOLD_GAP)
        theta, n_products = found.theta, n_products + int(found.n_steps.max())
    weights = torch.randn(len(problems.cell) // size.cells * size.classes, size.width, device=x.device)

    def products() -> None:
        for cell in x:
            (weights @ cell.T) @ cell

    return n_products * min(seconds(products, x.device) for _ in range(5))


def render(report: Report) -> str:
    """Return the report as text with a Markdown table."""
    size = report.size
    problems = size.cells * size.folds * len(report.path)
    lines = [
        f"{report.machine}; {size.samples:,} samples, width {size.width}, {size.classes} classes, {problems} problems",
        f"ours {report.ours_s:.2f} s with the refits, scikit-learn {report.theirs_s:.2f} s without: "
        f"{report.theirs_s / report.ours_s:.1f} x; floor {report.floor_s:.2f} s (the matrix products of the steps)",
        "",
        "| l2 | largest difference in log-loss, nats |",
        "|---|---|",
        *(f"| {l2:g} | {d:.1e} |" for l2, d in zip(report.path, report.largest_difference, strict=True)),
    ]
    return "\n".join(lines if report.converged else [*lines, "", "some of our regressions did not converge"])
