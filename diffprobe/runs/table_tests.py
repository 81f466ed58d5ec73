"""The tests of a table's entries against their controls, from kept predictions: what the mark ‡ means.

A control that is another run, or that was kept with the run, gives a paired difference over the same samples. What
chance gives is a distribution, and p is adjusted for the number of entries.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import (
    SINGLE_SAMPLES,
    LabelPermutations,
    PairedResamples,
    benjamini_hochberg,
)
from diffprobe.core.errors import DiffprobeError, RunFailed
from diffprobe.report.entry_tests import NULL_CONTROLS, Difference, EntryTests, NullTest
from diffprobe.report.filled_table import Entry, TableData
from diffprobe.report.table_spec import TableSpec
from diffprobe.runs.kept_statistics import KeptPredictions, Samples, Sources

_WORDS = {"random_direction": "random directions", "shuffled_labels": "directions of shuffled labels"}
"""Control of a direction -> what its null values are of."""
_NO_PREDICTIONS = "the result has no predictions of this control"


def with_tests(table: TableData, predictions: KeptPredictions) -> TableData:
    """Add its tests to each entry of a table that has controls, and to the chosen cells on test.

    Args:
        table: the table; one whose values are not ranked is returned as it is.
        predictions: those of the results that it was filled from.
    """
    if not table.spec.ranked:
        return table
    tests = _Tests(table.spec, predictions)
    entries = iter(_adjusted([tests.add(entry) for entry in table.entries()]))
    rows = tuple(replace(row, entries=tuple(next(entries) for _ in row.entries)) for row in table.rows)
    scored = [chosen for chosen in table.chosen if chosen.test is not None]
    on_test = iter(_adjusted([tests.add(chosen.test) for chosen in scored if chosen.test is not None]))
    chosen = tuple(one if one.test is None else replace(one, test=next(on_test)) for one in table.chosen)
    return replace(table, rows=rows, chosen=chosen)


def _adjusted(entries: list[Entry]) -> list[Entry]:
    """Adjust the p-values of entries for their number."""
    p_values = [entry.tests.null.p for entry in entries if entry.tests is not None and entry.tests.null is not None]
    if not p_values:
        return entries
    found = benjamini_hochberg(p_values)
    adjusted = iter(found.adjusted)
    made = []
    for entry in entries:
        if entry.tests is not None and entry.tests.null is not None:
            null = replace(entry.tests.null, p_adjusted=next(adjusted), n_tests=found.n_tests)
            entry = replace(entry, tests=replace(entry.tests, null=null))
        made.append(entry)
    return made


class _Tests:
    """Tests of the entries of one table; what several entries share is computed once."""

    def __init__(self, spec: TableSpec, predictions: KeptPredictions) -> None:
        self._spec, self._marks, self._predictions = spec, spec.marks, predictions
        self._resamples: list[tuple[Samples, PairedResamples]] = []
        self._permutations: list[tuple[Samples, LabelPermutations]] = []
        self._values: dict[tuple[object, ...], tuple[NDArray[np.float64], Samples]] = {}

    def add(self, entry: Entry) -> Entry:
        """Return an entry with its tests."""
        if entry.value is None or not entry.compared or entry.split is None:
            return entry
        differences, points = [], {}
        for control in entry.compared:
            try:
                differences.append(self._difference(entry, control, entry.split))
            except (DiffprobeError, OSError) as error:
                points[control] = _reason(error)
        nulls = tuple(name for name in entry.compared if name in NULL_CONTROLS)
        null = None
        if nulls:
            try:
                null = self._null(entry, nulls, entry.split)
                points = {name: reason for name, reason in points.items() if name not in nulls}
            except (DiffprobeError, OSError) as error:
                points |= {name: _reason(error) for name in nulls if name in points}
        tests = EntryTests(
            differences=tuple(differences), null=null, null_of=nulls if null is not None else (), points=points
        )
        return replace(entry, tests=tests)

    def _difference(self, entry: Entry, control: str, split: str) -> Difference:
        runs = entry.control_sources.get(control)
        if runs is None and not self._is_kept(entry.sources, control, split):
            raise RunFailed(_NO_PREDICTIONS)
        ours, samples = self._of(entry.sources, split, None)
        theirs, others = self._of(entry.sources, split, control) if runs is None else self._of(runs, split, None)
        if not samples.equals(others):
            raise RunFailed(f"{control} was not scored on the same samples and labels of {split}")
        found = self._over(samples).interval(ours, theirs, level=self._marks.level, method=self._marks.interval)
        return Difference(
            control=control, value=found.estimate, low=found.low, high=found.high, n_groups=found.n_clusters,
            unit=samples.unit,
        )  # fmt: skip

    def _is_kept(self, sources: Sources, control: str, split: str) -> bool:
        """Return whether a control was kept, as one set of predictions, with the runs of an entry."""
        heads = [head for result, _ in sources for head in self._predictions.of(result, split).predictions.heads]
        kept = [head for head in heads if head.control == control]
        return bool(kept) and all(head.draws == 1 for head in kept)

    def _of(self, sources: Sources, split: str, control: str | None) -> tuple[NDArray[np.float64], Samples]:
        """Return the statistic of some results over all samples and each resample, and its samples."""
        key = (split, control, *((id(result), id(record)) for result, record in sources))
        if key not in self._values:
            statistic, samples = self._predictions.statistic(self._spec.metric, sources, split, control=control)
            self._values[key] = self._over(samples).of(statistic), samples
        return self._values[key]

    def _over(self, samples: Samples) -> PairedResamples:
        for known, resamples in self._resamples:
            if known.keys == samples.keys and known.group == samples.group:
                return resamples
        made = PairedResamples(samples.clusters, n_resamples=self._marks.resamples, seed=self._marks.seed)
        self._resamples.append((samples, made))
        return made

    def _null(self, entry: Entry, names: tuple[str, ...], split: str) -> NullTest:
        recorded = _recorded(entry, names)
        if recorded is not None:
            return recorded
        statistic, samples = self._predictions.label_statistic(self._spec.metric, entry.sources, split)
        permutations = next((made for known, made in self._permutations if known.equals(samples)), None)
        if permutations is None:
            permutations = LabelPermutations(
                samples.labels, samples.clusters, n=self._marks.permutations, seed=self._marks.seed
            )
            self._permutations.append((samples, permutations))
        found = permutations.null(statistic, higher_is_better=self._spec.higher_is_better)
        of = "permuted labels" if samples.group == SINGLE_SAMPLES else "labels permuted by group"
        return NullTest(p=found.p, smallest_p=found.smallest_p, quantile=found.quantile, of=of)


def _recorded(entry: Entry, names: tuple[str, ...]) -> NullTest | None:
    """Return the null distributions that results record of the controls of a direction; None without them."""
    wanted = [name for name in names if name != "chance"]
    kept = [record.detail.get("control_nulls", {}) for _, record in entry.sources]
    if not wanted or not all(set(wanted) <= set(nulls) for nulls in kept):
        return None
    nulls = [nulls[name] for nulls in kept for name in wanted]
    return NullTest(
        p=max(null["p"] for null in nulls), smallest_p=max(null["smallest_p"] for null in nulls),
        quantile=min(null["quantile"] for null in nulls),
        of=" and ".join(_WORDS[name] for name in wanted),
    )  # fmt: skip


def _reason(error: Exception) -> str:
    return (error.what if isinstance(error, DiffprobeError) else str(error)).rstrip(".")
