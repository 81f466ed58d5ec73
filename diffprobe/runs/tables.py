"""Tables of results with what only kept predictions show: tests against controls, and intervals of chosen cells."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffprobe.core.result import RunResult, is_predictions
from diffprobe.report import table as report_table
from diffprobe.report.cell_choice import without_predictions
from diffprobe.report.entry_tests import NO_PREDICTIONS
from diffprobe.report.filled_table import TableData
from diffprobe.report.table import Table
from diffprobe.report.table_request import TableRequest


def build_table(
    name: str | Path | Sequence[str | Path] = (),
    results: Path | str | None = None,
    *,
    where: Mapping[str, Any] | None = None,
    exploratory: bool = False,
) -> Table:
    """Build tables from result files: the table of an experiment, or the default one of any runs.

    Args:
        name: folder below `experiments/` that contains a `table.yaml`, for example "emoji"; or one or several folders
            of runs, or an experiment without a table: then it is the primary metric by layer and timestep, and
            `choices` says what was chosen. Nothing stands for all runs of `results`.
        results: folder whose `result.json` files are read, for a name; None for "runs".
        where: field -> value; narrows the filter of the table.
        exploratory: whether the tables may compare many cells on test; they then say that they are exploratory.
    Raises: SelectionOnTest for many cells on test in a table that is not exploratory; ConfigError for an unknown table
        or field; RunFailed if no result fits, or if an entry would mix results of different settings; SchemaError for
        result files that cannot be read.
    """
    return report_table.build_table(name, results, where=where, exploratory=exploratory, finish=_with_predictions)


def _with_predictions(table: TableData, request: TableRequest) -> TableData:
    return with_predictions(table, request.results, [path.parent for path in request.paths])


def with_predictions(table: TableData, results: Sequence[RunResult], folders: Sequence[Path]) -> TableData:
    """Add to a table what only kept predictions show, or the reason why they show nothing.

    These are the tests of its entries against their controls, and the intervals of its chosen cells on test.

    Args:
        table: a table that was filled from the results.
        results: these results.
        folders: the folder of each, which has its predictions.
    """
    if not any(is_predictions(name) for run in results for name in run.artifacts):
        return without_predictions(table, NO_PREDICTIONS)
    from diffprobe.runs.choice_interval import with_intervals  # these need torch
    from diffprobe.runs.kept_statistics import KeptPredictions
    from diffprobe.runs.table_tests import with_tests

    predictions = KeptPredictions({id(run): folder for run, folder in zip(results, folders, strict=True)})
    return with_tests(with_intervals(table, predictions), predictions)
