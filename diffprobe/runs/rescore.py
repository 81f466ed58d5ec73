"""`diffprobe rescore`: metrics, intervals and paired differences from the kept predictions of a run, without training.

A bootstrap resamples groups of samples; a paired difference resamples the same groups for both heads.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffprobe.analysis.statistics import (
    SINGLE_SAMPLES,
    AnyStatistic,
    Method,
    benjamini_hochberg,
    bootstrap_interval,
    difference,
    permutation_null,
)
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, RunFailed, SchemaError, unknown
from diffprobe.core.progress import Bar
from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult, predictions_file, read_result
from diffprobe.probes.predictions import KeptHead, Predictions, load_predictions
from diffprobe.runs.rescore_forms import form_of, is_higher_better, label_form_of
from diffprobe.runs.rescore_metrics import Measure, Scored, find_measure, measures

FIELDS = ("cell", "tap", "timestep", "target", "probe", "control")
"""What a head is chosen by."""
SPLITS = ("val", "test")
"""Splits whose predictions a run keeps."""


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How an interval is drawn."""

    resamples: int = 1000
    """Number of resamples."""
    level: float = 0.95
    """Nominal coverage."""
    seed: int = 0
    """Seed of the resampling."""
    group_by: str | None = None
    """Column whose values are the independent units, or "sample" for single samples; None for the group that the data
    set names, single samples where it names none."""
    method: Method = "percentile"
    """"expanded" covers with few groups too."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ConfigError(f"seed={self.seed} of a bootstrap is out of range: at least 0.")


@dataclass(frozen=True, kw_only=True)
class Permutations:
    """How a null distribution is drawn."""

    n: int = 1000
    """Number of permutations of the labels."""
    seed: int = 0
    """Seed of the permutations."""
    group_by: str | None = None
    """As of `Bootstrap`: whole groups keep their labels together."""

    def __post_init__(self) -> None:
        if self.seed < 0 or self.n < 1:
            raise ConfigError(f"seed={self.seed} (at least 0) or n={self.n} (at least 1) of a permutation is wrong.")


Drawn = TypeVar("Drawn", Bootstrap, Permutations)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredRun:
    """A run with its kept predictions of one split."""

    result: RunResult
    """The record of the run."""
    predictions: Predictions
    """Its predictions."""

    def heads(self, where: Mapping[str, str]) -> list[int]:
        """Return the numbers of the heads that have the given values; controls only where asked for.

        A run that is itself a control has no other heads, so they need not be asked for.

        Raises: RunFailed, with what there is, if no head has them.
        """
        infos = self.predictions.heads
        plain = any(info.control == "none" for info in infos)
        wanted = {"control": "none", **where} if plain else where
        found = [
            i for i, info in enumerate(infos) if all(_field(info, name) == value for name, value in wanted.items())
        ]
        if not found:
            raise RunFailed(
                f"run '{self.result.run}' has no head with {', '.join(f'{k}={v}' for k, v in wanted.items())}.",
                *(f"{name}: {', '.join(sorted({_field(info, name) for info in infos}))}" for name in wanted),
            )
        return found


def load_run(path: Path | str, split: str = "test") -> ScoredRun:
    """Read the result of a run and its kept predictions of a split.

    Args:
        path: folder of the run, or its `result.json`.

    Raises: RunFailed, with what to do, for a folder without result, a grid (its members have the predictions), a run
        without kept predictions; SchemaError for a file that is not the one of the result.
    """
    path = Path(path)
    folder = path.parent if path.name == RESULT_FILE else path
    if not (folder / RESULT_FILE).is_file():
        raise RunFailed(f"'{folder}' has no {RESULT_FILE}.", fix="name the folder of a finished run")
    result, name = read_result(folder / RESULT_FILE), predictions_file(split)
    if name not in result.artifacts:
        inside = sorted({kept.rpartition("/")[0] for kept in result.artifacts if kept.endswith(f"/{name}")})
        if inside:
            raise RunFailed(
                f"run '{result.run}' is a grid: the predictions are those of its members.",
                *inside[:20],
                fix=f"diffprobe rescore {folder / inside[0]}",
            )
        raise RunFailed(
            f"run '{result.run}' of kind '{result.kind}' kept no predictions of split '{split}'.",
            "classifiers, directions and autoencoders keep them since version 0.2",
            fix="train it again: diffprobe train",
        )
    if not (folder / name).is_file():
        raise RunFailed(f"'{folder / name}' is missing.", fix="restore it, or train the run again")
    if digest_file(folder / name) != result.artifacts[name]:
        raise SchemaError(
            f"'{folder / name}' does not have the digest that {RESULT_FILE} records.",
            fix="restore it, or train the run again",
        )
    return ScoredRun(result=result, predictions=load_predictions(folder / name))


def parse_where(conditions: Sequence[str]) -> dict[str, str]:
    """Parse `FIELD=VALUE` conditions on heads. Raises: ConfigError without "=", UnknownName for another field."""
    found: dict[str, str] = {}
    for text in conditions:
        name, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"invalid filter '{text}'.", "expected: FIELD=VALUE")
        if name not in FIELDS:
            raise unknown("field of a head:", name, FIELDS)
        found[name] = value
    return found


def rescore(
    run: ScoredRun,
    *,
    metrics: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    per: str | None = None,
    bootstrap: Bootstrap | None = None,
    null: Permutations | None = None,
    progress: Callable[[int], AbstractContextManager[Bar | None]] | None = None,
) -> list[MetricRecord]:
    """Compute metrics of the heads of a run from its kept predictions.

    Args:
        run: the run.
        metrics: names; () for those that the run recorded, as far as predictions give them (`not_kept`).
        where: field of `FIELDS` -> value, which chooses heads.
        per: column; one record for each of its values, over the samples that have it.
        bootstrap: adds an interval (`detail["interval"]`).
        null: adds the null distribution of a classifier's or direction's metric (`detail["null"]`): its mean and 95th
            percentile, the quantile of the value, p, and the smallest p that could have been; p adjusted by
            Benjamini-Hochberg for the number of records returned.
        progress: opens a bar of so many numbers.

    Returns: one record per head, value of `per` and metric, with chance and the head's controls.
    Raises: UnknownName, ConfigError, EmptyClass, RunFailed.
    """
    predictions, made = run.predictions, []
    parts = _parts(predictions, per)
    jobs = [
        (head, name, part)
        for head in run.heads(where or {})
        for name in metrics or _recorded(run, predictions.heads[head])
        for part in parts
    ]
    if not jobs:
        raise RunFailed(
            f"run '{run.result.run}' has no recorded metric that its predictions give.", fix="--metric NAME"
        )
    bootstrap, null = _with_unit(bootstrap, predictions), _with_unit(null, predictions)
    groups, blocks = _groups(predictions, bootstrap), _groups(predictions, null)
    scored = {head: Scored(predictions, head) for head in dict.fromkeys(head for head, _, _ in jobs)}
    with (progress or _silent)(len(jobs)) as bar:
        for head, name, (value, mask) in jobs:
            measure = find_measure(scored[head].info.kind, name)
            found = _record(run, head, name, measure, scored[head], mask, groups, bootstrap, per, value)
            if null is not None:
                rows = mask[scored[head].rows].nonzero().flatten()
                found = replace(found, detail=found.detail | _null(scored[head], name, rows, blocks, null))
            made.append(found)
            if bar is not None:
                bar.update(1)
    return made if null is None else _adjusted(made)


def _null(scored: Scored, name: str, rows: Tensor, groups: Tensor, null: Permutations) -> dict[str, Any]:
    found = permutation_null(
        label_form_of(scored, name, rows),
        scored.truth[rows].numpy(),
        groups[scored.rows][rows].tolist(),
        n_permutations=null.n,
        seed=null.seed,
        higher_is_better=is_higher_better(name),
    )
    return {
        "null": {
            "p": found.p, "smallest_p": found.smallest_p, "quantile": found.quantile, "mean": found.mean,
            "percentile_95": found.percentiles(0.95)[0], "permutations": found.n_permutations,
            "undefined": found.n_undefined, "groups_permuted_whole": found.n_between,
            "groups_permuted_within": found.n_within, "group_by": null.group_by, "seed": null.seed,
        }
    }  # fmt: skip


def _adjusted(records: list[MetricRecord]) -> list[MetricRecord]:
    """Add p-values adjusted for the number of records."""
    found = benjamini_hochberg([record.detail["null"]["p"] for record in records])
    for record, p in zip(records, found.adjusted, strict=True):
        record.detail["null"] |= {"p_adjusted": p, "n_tests": found.n_tests}
    return records


def not_kept(run: ScoredRun) -> list[str]:
    """Return the metrics that the run recorded on the split and that its predictions do not give."""
    split = [record for record in run.result.metrics if record.split == run.predictions.split]
    known = {name for info in run.predictions.heads for name in measures(info.kind)}
    return sorted({record.name for record in split} - known)


def compare(
    one: ScoredRun,
    other: ScoredRun,
    *,
    metrics: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    other_where: Mapping[str, str] | None = None,
    bootstrap: Bootstrap | None = None,
    progress: Callable[[int], AbstractContextManager[Bar | None]] | None = None,
) -> list[MetricRecord]:
    """Compute paired differences, one minus other, over the same samples.

    A head is compared with the one of `other` that has its target and cell, or the only one with its target.

    Returns: records whose value is the difference; `detail` has both values, and the other head.
    Raises: as `rescore`; RunFailed if keys or labels differ, or if a head has no or several counterparts.
    """
    pairs = _pairs(one, other, where or {}, other_where or {})
    bootstrap = _with_unit(bootstrap, one.predictions)
    groups, made = _groups(one.predictions, bootstrap), []
    jobs = [
        (pair, name) for pair in pairs for name in metrics or _recorded(one, one.predictions.heads[pair[0]])
    ]  # fmt: skip
    with (progress or _silent)(len(jobs)) as bar:
        for (a, b), name in jobs:
            both = Scored(one.predictions, a), Scored(other.predictions, b)
            measure = find_measure(both[0].info.kind, name)
            find_measure(both[1].info.kind, name)
            rows = torch.arange(len(both[0].rows))
            values = [measure.value(scored, rows) for scored in both]
            record = _plain(one, name, values[0] - values[1], both[0], len(rows))
            against = {name: _field(both[1].info, name) for name in ("cell", "target", "probe", "control")}
            detail: dict[str, Any] = {"difference": values, "against": {"run": other.result.run, **against}}

            paired = None if bootstrap is None else difference(*(form_of(scored, name, rows) for scored in both))
            detail |= _interval(paired, both[0], rows, groups, bootstrap)
            made.append(replace(record, detail=detail))
            if bar is not None:
                bar.update(1)
    return made


def _silent(total: int) -> AbstractContextManager[Bar | None]:
    return nullcontext()


def _field(info: KeptHead, name: str) -> str:
    if name in ("tap", "timestep"):
        tap, _, rest = (info.cell or "").partition("@")
        return tap if name == "tap" else rest.partition(":")[0].removeprefix("t")
    return str(getattr(info, name) or "")


def _recorded(run: ScoredRun, info: KeptHead) -> list[str]:
    """Return the metrics that the run recorded on this split for a kind of head."""
    names = dict.fromkeys(record.name for record in run.result.metrics if record.split == run.predictions.split)
    return [name for name in names if name in measures(info.kind)]


def _parts(predictions: Predictions, per: str | None) -> list[tuple[str | None, Tensor]]:
    """Return the values of a column with the samples that have each; all samples without a column."""
    if per is None:
        return [(None, torch.ones(len(predictions), dtype=torch.bool))]
    ids = _column(predictions, per)
    names = predictions.values[per]
    return [(names[i], ids == i) for i in ids.unique().tolist() if i >= 0]


def _column(predictions: Predictions, name: str) -> Tensor:
    if name not in predictions.values:
        raise unknown("column of the predictions:", name, predictions.values)
    return predictions.column(name)


def _with_unit(drawn: Drawn | None, predictions: Predictions) -> Drawn | None:
    """Return how an interval or a null distribution is drawn, with the unit named."""
    if drawn is None or drawn.group_by is not None:
        return drawn
    return replace(drawn, group_by=predictions.group or SINGLE_SAMPLES)


def _groups(predictions: Predictions, bootstrap: Bootstrap | Permutations | None) -> Tensor:
    """Return the number of the independent unit of each sample. Raises: RunFailed for samples without a unit."""
    if bootstrap is None or bootstrap.group_by == SINGLE_SAMPLES:
        return torch.arange(len(predictions))
    name = str(bootstrap.group_by)
    ids = _column(predictions, name)
    without = (ids < 0).nonzero().flatten().tolist()
    if without:
        raise RunFailed(
            f"{len(without)} of {len(ids)} samples have no value of '{name}', so their group is unknown.",
            f"the first is '{predictions.keys[without[0]]}'",
            fix=f"group by another column, or by '{SINGLE_SAMPLES}'",
        )
    return ids


def _plain(run: ScoredRun, name: str, value: float, scored: Scored, n: int) -> MetricRecord:
    info = scored.info
    return MetricRecord(
        name=name,
        value=value,
        split=run.predictions.split,
        n=n,
        cell=info.cell,
        target=info.target,
        probe=info.probe,
    )


def _record(
    run: ScoredRun, head: int, name: str, measure: Measure, scored: Scored, mask: Tensor, groups: Tensor,
    bootstrap: Bootstrap | None, per: str | None, value: str | None,
) -> MetricRecord:  # fmt: skip
    rows = mask[scored.rows].nonzero().flatten()
    n = int(scored.of("n_rows")[rows].sum()) if scored.info.kind == "rows" else len(rows)
    record = _plain(run, name, measure.value(scored, rows), scored, n)
    controls = {} if measure.chance is None else {"chance": measure.chance(scored, rows)}
    for i, info in enumerate(run.predictions.heads):
        if info.control not in ("none", scored.info.control) and _same_place(info, scored.info):
            controls[info.control] = measure.value(Scored(run.predictions, i), rows)
    detail: dict[str, Any] = {} if per is None else {"per": {per: value}}
    if scored.info.control != "none":
        detail["control"] = scored.info.control

    form = None if bootstrap is None else form_of(scored, name, rows)
    detail |= _interval(form, scored, rows, groups, bootstrap)
    return replace(record, controls=controls, detail=detail)


def _same_place(info: KeptHead, other: KeptHead) -> bool:
    return (info.cell, info.target, info.positive, info.negative) == (
        other.cell, other.target, other.positive, other.negative,
    )  # fmt: skip


def _interval(
    statistic: AnyStatistic | None, scored: Scored, rows: Tensor, groups: Tensor, bootstrap: Bootstrap | None
) -> dict[str, Any]:
    if bootstrap is None or statistic is None:
        return {}
    found = bootstrap_interval(
        statistic,
        groups[scored.rows][rows].tolist(),
        n_resamples=bootstrap.resamples,
        level=bootstrap.level,
        seed=bootstrap.seed,
        method=bootstrap.method,
    )
    return {
        "interval": [found.low, found.high],
        "bootstrap": {
            "group_by": bootstrap.group_by, "n_groups": found.n_clusters, "resamples": found.n_resamples,
            "undefined": found.n_undefined, "level": found.level, "seed": bootstrap.seed,
            **({} if found.method == "percentile" else {"method": found.method}),
        },
    }  # fmt: skip


def _pairs(
    one: ScoredRun, other: ScoredRun, where: Mapping[str, str], other_where: Mapping[str, str]
) -> list[tuple[int, int]]:
    _require_same_keys(one, other)
    theirs, pairs = other.heads(other_where), []
    for head in one.heads(where):
        info = one.predictions.heads[head]
        same = [i for i in theirs if other.predictions.heads[i].target == info.target]
        exact = [i for i in same if _same_place(other.predictions.heads[i], info)]
        found = exact if len(exact) == 1 else same
        if len(found) != 1:
            cells = [f"{other.predictions.heads[i].cell} ({other.predictions.heads[i].control})" for i in found]
            raise RunFailed(
                f"head {info.cell} of target '{info.target}' has {len(found)} counterparts in '{other.result.run}'.",
                *cells[:20],
                fix="choose one: --against-where cell=NAME",
            )
        if other is one and found[0] == head:
            raise RunFailed(
                f"head {info.cell} of target '{info.target}' would be compared with itself.",
                fix="--where FIELD=VALUE and --against-where FIELD=VALUE choose two heads",
            )
        _require_same_truth(one, head, other, found[0])
        pairs.append((head, found[0]))
    return pairs


def _require_same_keys(one: ScoredRun, other: ScoredRun) -> None:
    ours, theirs = one.predictions.keys, other.predictions.keys
    if ours == theirs:
        return
    only = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    raise RunFailed(
        f"runs '{one.result.run}' and '{other.result.run}' were scored on different samples.",
        *(
            f"only in '{run.result.run}': {len(keys)} samples, for example '{keys[0]}'"
            for run, keys in zip((one, other), only, strict=True)
            if keys
        ),
        "a paired difference needs the same samples in both",
    )


def _require_same_truth(one: ScoredRun, head: int, other: ScoredRun, against: int) -> None:
    infos = one.predictions.heads[head], other.predictions.heads[against]
    target = infos[0].target
    names = [run.predictions.values[target] if target is not None else () for run in (one, other)]
    ends = [(info.kind == "axis", info.positive_ids, info.negative_ids) for info in infos]
    differ = one.predictions.truth(head) != other.predictions.truth(against)
    if names[0] == names[1] and ends[0] == ends[1] and not differ.any():
        return
    first = f", for example '{one.predictions.keys[int(differ.nonzero()[0])]}'" if differ.any() else ""
    raise RunFailed(
        f"target '{target}' is not the same in runs '{one.result.run}' and '{other.result.run}'.",
        f"{int(differ.sum())} of {len(differ)} labels differ{first}" if first else "the names of its classes differ",
        "a paired difference needs the same labels in both",
    )
