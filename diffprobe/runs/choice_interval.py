"""The interval of a chosen cell on test, from kept predictions: each resample of the groups chooses again on val."""

from collections.abc import Hashable
from dataclasses import replace

from diffprobe.analysis.statistics import AnyStatistic, selected_interval
from diffprobe.core.errors import DiffprobeError, RunFailed
from diffprobe.report.filled_table import ChoiceInterval, ChosenCell, TableData
from diffprobe.report.table_spec import TableSpec
from diffprobe.runs.kept_statistics import KeptPredictions, Samples


def with_intervals(table: TableData, predictions: KeptPredictions) -> TableData:
    """Add the interval of the score on test to each chosen cell of a table; where there is none, the reason.

    Args:
        table: the table.
        predictions: those of the results that it was filled from.
    """
    return replace(table, chosen=tuple(_with_interval(table.spec, one, predictions) for one in table.chosen))


def _with_interval(spec: TableSpec, chosen: ChosenCell, predictions: KeptPredictions) -> ChosenCell:
    try:
        return replace(chosen, interval=_interval(spec, chosen, predictions), no_interval="")
    except (DiffprobeError, OSError) as error:
        text = error.what if isinstance(error, DiffprobeError) else str(error)
        return replace(chosen, interval=None, no_interval=text.rstrip("."))


def _interval(spec: TableSpec, chosen: ChosenCell, predictions: KeptPredictions) -> ChoiceInterval:
    sides: dict[str, tuple[list[AnyStatistic], tuple[Hashable, ...]]] = {}
    units: list[Samples] = []
    for split in ("val", "test"):
        found = [predictions.statistic(spec.metric, entry.sources, split) for entry in chosen.candidates]
        samples = found[0][1]
        for entry, (_, others) in zip(chosen.candidates, found, strict=True):
            if (others.keys, others.group) != (samples.keys, samples.group):
                raise RunFailed(
                    f"cells {chosen.candidates[0].cell} and {entry.cell} were not scored on the same samples of {split}"
                )
        units.append(samples)
        sides[split] = [statistic for statistic, _ in found], samples.clusters
    if units[0].group != units[1].group:
        raise RunFailed(f"val has the groups '{units[0].group}', test the groups '{units[1].group}'")
    marks = spec.marks
    selected = selected_interval(
        *sides["val"], *sides["test"], higher_is_better=spec.higher_is_better, n_resamples=marks.resamples,
        level=marks.level, seed=marks.seed,
    )  # fmt: skip
    if chosen.candidates[selected.chosen] is not chosen.val:
        raise RunFailed(
            f"the kept predictions of val choose {chosen.candidates[selected.chosen].cell} by a difference that is "
            "within their rounding"
        )
    interval = selected.interval
    return ChoiceInterval(
        low=interval.low, high=interval.high, level=interval.level, n_resamples=interval.n_resamples,
        unit=units[0].unit, n_groups=interval.n_clusters,
        optimism=selected.optimism if spec.higher_is_better else -selected.optimism,
        share=selected.shares[selected.chosen],
    )  # fmt: skip
