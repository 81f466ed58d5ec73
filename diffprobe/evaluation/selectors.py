"""Label-free selection of a cell beside selection on val: how often both choose the same, and what the others cost.

Reads finished runs of classifiers and the stores that they were measured on. A case is one target of one run, or of the
members of a grid that differ in nothing but the cell.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffprobe.analysis.label_free import cknna, high_frequency_share, rank_me
from diffprobe.backbones.cell import Cell
from diffprobe.core.digest import canonical_json
from diffprobe.core.errors import ConfigError, SchemaError, unknown
from diffprobe.evaluation.page_features import open_features
from diffprobe.evaluation.probe_runs import ProbeRun, open_probe_runs
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.shuffled_labels import hash_keys

VAL = "val"
FREQUENCIES = "high frequencies"
"""Selector by the share of high spatial frequencies, for cells that keep all places."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """The scores of all cells for one target."""

    name: str
    """Target, and the member of a grid."""
    val: Mapping[str, float]
    """Cell -> score on val."""
    test: Mapping[str, float]
    """Cell -> score on test."""

    def chosen(self, scores: Mapping[str, float]) -> str:
        """Return the cell with the largest score, the first of equal ones."""
        return max(self.val, key=lambda cell: scores[cell])


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the selectors choose among the cells of some cases."""

    metric: str
    """Metric of the cases."""
    n: int
    """Number of samples of the label-free scores."""
    split: str
    """Their split."""
    scores: Mapping[str, Mapping[str, float]]
    """Selector -> cell -> score."""
    cases: Sequence[Case]
    """The cases."""

    def agreement(self, selector: str) -> tuple[int, float]:
        """Return in how many cases a selector chooses the cell of val, and the mean loss on test, in the metric."""
        scores = self.scores[selector]
        same = sum(case.chosen(scores) == case.chosen(case.val) for case in self.cases)
        losses = [case.test[case.chosen(case.val)] - case.test[case.chosen(scores)] for case in self.cases]
        return same, sum(losses) / len(losses)

    def lines(self) -> list[str]:
        """Return Markdown tables: what each selector chooses per case, the agreement, and the scores of the cells."""
        names = list(self.scores)
        head = ["case", "val chooses", *(f"{name} chooses" for name in names)]
        rows = [
            [case.name, *(f"{cell} ({case.test[cell]:.3f})" for cell in self._choices(case))] for case in self.cases
        ]
        agree = [
            [name, f"{same} of {len(self.cases)}", f"{loss:+.3f}"]
            for name in names
            for same, loss in [self.agreement(name)]
        ]
        cells = list(dict.fromkeys(cell for case in self.cases for cell in case.val))
        scores = [[cell, *(f"{self.scores[name][cell]:.4g}" for name in names)] for cell in cells]
        return [
            f"{self.metric} on test in brackets; scores without labels on {self.n:,} samples of split '{self.split}'",
            "",
            *_table(head, rows),
            "",
            *_table(["selector", "chooses as val", f"mean loss of {self.metric} on test"], agree),
            "",
            *_table(["cell", *names], scores),
        ]

    def _choices(self, case: Case) -> list[str]:
        return [case.chosen(case.val), *(case.chosen(scores) for scores in self.scores.values())]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows)]


def compare_selectors(
    paths: Sequence[str | Path],
    *,
    encoder: str | None = None,
    encoder_cell: str | None = None,
    metric: str = "accuracy",
    k: int = 10,
    limit: int = 2000,
) -> Selection:
    """Compare selection without labels with selection on val, for finished runs of classifiers.

    Args:
        paths: folders of runs or grids.
        encoder: features for CKNNA: the folder of a feature store, or an .npz file with `keys` and `features`, with a
            row for each training sample; None leaves CKNNA out.
        encoder_cell: cell of the store; None for its only one.
        metric: metric of the runs by which val selects.
        k: neighbours of CKNNA.
        limit: largest number of training samples, chosen by the hash of their keys.

    Raises: ConfigError for runs without several cells, without the metric, or on live features; UnknownName for an
        unknown cell of the encoder; SchemaError for a file that is not one of features; ConfigError if it lacks a
        sample.
    """
    runs = [run for run in open_probe_runs(paths).runs if run.result.kind == "classifier" and run.control == "none"]
    cases = _cases(runs, metric)
    if not cases:
        raise ConfigError(
            f"no run has '{metric}' of several cells on val and test.", f"runs of classifiers: {len(runs)}"
        )
    wanted = list(dict.fromkeys(cell for case in cases for cell in case.val))
    given = None if encoder is None else _encoder(encoder, encoder_cell, runs[0].config.data.train_split)
    scores: dict[str, dict[str, float]] = {"RankMe": {}}
    if given is not None:
        scores[f"CKNNA (k={k})"] = {}
    if all(Cell.parse(cell).pool == "none" for cell in wanted):
        scores[FREQUENCIES] = {}
    n, split = 0, runs[0].config.data.train_split
    for run in runs:
        missing = [cell for cell in wanted if cell not in scores["RankMe"]]
        if not missing or not any(record.cell in missing for record in run.result.metrics):
            continue
        table = open_features(run).table(run.config.data.train_split)
        order = hash_keys(list(table.keys)).argsort()[:limit]
        keys, n = [table.keys[i] for i in order.tolist()], len(order)
        for cell in missing:
            if cell not in table.features:
                continue
            x = table.features[cell][order].flatten(1).float()
            scores["RankMe"][cell] = rank_me(x)
            if FREQUENCIES in scores:
                maps = table.features[cell][order].float()
                scores[FREQUENCIES][cell] = high_frequency_share(maps.reshape(-1, *maps.shape[-3:]))
            if given is not None:
                scores[f"CKNNA (k={k})"][cell] = cknna(x, given(keys), k=k)
    return Selection(metric=metric, n=n, split=split, scores=scores, cases=cases)


def _cases(runs: Sequence[ProbeRun], metric: str) -> list[Case]:
    """Group the records of runs that differ in nothing but the cell."""
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    names: dict[str, str] = {}
    for run in runs:
        probe = {key: value for key, value in run.result.config["probe"].items() if key != "cell"}
        key = canonical_json({**run.result.config, "probe": probe})
        label = ", ".join(f"{name}={value}" for name, value in sorted(probe.get("params", {}).items()))
        seeds = probe.get("grid", {}).get("seed", [])
        seeds = seeds or ([run.config.seed] if run.config.seed else [])
        names[key] = ", ".join([*([label] if label else []), *(f"seed={seed}" for seed in seeds)])
        splits = {run.config.data.val_split: VAL, run.config.data.test_split: "test"}
        for record in run.result.metrics:
            side = splits.get(record.split, record.split)
            if record.name == metric and record.cell and record.target and side in (VAL, "test"):
                found.setdefault((key, record.target), {}).setdefault(side, {})[record.cell] = record.value
    cases = []
    for (key, target), sides in found.items():
        cells = [cell for cell in sides.get(VAL, {}) if cell in sides.get("test", {})]
        if len(cells) > 1:
            name = target if not names[key] else f"{target} ({names[key]})"
            val, test = ({cell: sides[side][cell] for cell in cells} for side in (VAL, "test"))
            cases.append(Case(name=name, val=val, test=test))
    return cases


def _encoder(path: str, cell: str | None, split: str) -> Callable[[Sequence[str]], Tensor]:
    """Return a function from keys to the features of an encoder."""
    if path.endswith(".npz"):
        keys, features = _npz(Path(path))
    else:
        store = FeatureStore.open(path)
        if cell is None and len(store.cells) > 1:
            raise ConfigError(
                f"the store '{path}' has {len(store.cells)} cells.", fix=f"--encoder-cell {store.cells[0]}"
            )
        name = cell or store.cells[0]
        if name not in store.cells:
            raise unknown("cell of the encoder", name, store.cells)
        table = store.load(split, [name])
        keys, features = list(table.keys), table.features[name].flatten(1).float()
    row = {key: i for i, key in enumerate(keys)}

    def take(asked: Sequence[str]) -> Tensor:
        absent = [key for key in asked if key not in row]
        if absent:
            raise ConfigError(
                f"'{path}' lacks {len(absent)} of {len(asked)} training samples.", f"first: '{absent[0]}'"
            )
        return features[torch.tensor([row[key] for key in asked])]

    return take


def _npz(path: Path) -> tuple[list[str], Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            keys, features = file["keys"], file["features"]
    except (OSError, ValueError, KeyError) as error:
        raise SchemaError(f"'{path}' cannot be read: {error}", "expected: arrays `keys` and `features`") from error
    if features.ndim < 2 or len(keys) != len(features) or keys.dtype.kind != "U" or features.dtype.kind != "f":
        raise SchemaError(
            f"'{path}' has keys {keys.shape} of type {keys.dtype} and features {features.shape} of type "
            f"{features.dtype}.",
            "expected: a text and a row of floating-point numbers per sample",
        )
    return [str(key) for key in keys], torch.from_numpy(features.astype(np.float32)).flatten(1)
