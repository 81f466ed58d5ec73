"""What `diffprobe table` and `build_table` are asked for: a table by its name, or folders of results without one."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.result import RESULT_FILE, RunResult
from diffprobe.report.collect import read_results, require_results
from diffprobe.report.default_table import default_tables
from diffprobe.report.query import matches
from diffprobe.report.table_spec import TableSpec, find_spec, has_spec, load_specs

RESULTS = "runs"
"""Folder of results, if none is named."""


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """Specs, and the results that fill them."""

    specs: tuple[TableSpec, ...]
    """The tables, in order."""
    results: tuple[RunResult, ...]
    """The results that were read."""
    choices: tuple[str, ...] = ()
    """What was chosen for want of a `table.yaml`; empty with one."""
    folder: str = RESULTS
    """Folder that contains all results, as `--results` names it."""
    paths: tuple[Path, ...] = ()
    """Path of each of the results, in their order."""


def resolve_request(
    names: Sequence[str],
    *,
    results: str | None = None,
    where: Mapping[str, Any] | None = None,
    exploratory: bool = False,
) -> TableRequest:
    """Find the specs and read the results of a request.

    Args:
        names: the name of one table; or folders below which results are, runs, and `result.json` files; or the name
            of an experiment without a table. Nothing stands for the folder of results. A name comes before a folder;
            `./NAME` is always a folder.
        results: folder of results, for a table or an experiment by name; None for "runs".
        where: field -> value; narrows the filter of the tables.
        exploratory: whether tables may compare many cells on test.
    Raises: ConfigError for what is neither; RunFailed if nothing is there; SchemaError for results that cannot be read.
    """
    folder, narrow = results or RESULTS, dict(where or {})
    if len(names) == 1 and has_spec(names[0]):
        specs = tuple(spec.narrowed(narrow) for spec in load_specs(find_spec(names[0])))
        if exploratory:
            specs = tuple(replace(spec, exploratory=True) if spec.reads_test() else spec for spec in specs)
        found = _Found.below(folder)
        return TableRequest(specs=specs, results=found.results, folder=folder, paths=found.paths)
    if not names:
        return _default(_Found.below(folder), narrow, folder=folder, exploratory=exploratory)
    if len(names) == 1 and not os.path.exists(names[0]):  # pathlib's raises for a name that is too long
        return _of_experiment(names[0], folder, narrow, exploratory)
    if results is not None:
        raise ConfigError(
            f"--results {results} goes with the name of a table or an experiment; {', '.join(names)} are folders.",
            fix="leave --results out",
        )
    found = _Found.at(result_paths(names))
    if len(names) == 1 and Path(names[0]).is_dir():
        return _default(found, narrow, folder=names[0], exploratory=exploratory)
    runs = {"run": sorted({run.run for run in found.results})}
    common = os.path.commonpath([Path(name) if Path(name).is_dir() else Path(name).parent for name in names])
    made = _default(found, narrow, folder=common or ".", exploratory=exploratory)
    return replace(made, specs=tuple(spec.narrowed({**runs, **narrow}) for spec in made.specs))


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Results and their paths."""

    results: tuple[RunResult, ...] = ()
    paths: tuple[Path, ...] = ()

    @classmethod
    def at(cls, paths: Sequence[Path]) -> "_Found":
        return cls(results=tuple(read_results(paths)), paths=tuple(paths))

    @classmethod
    def below(cls, folder: str) -> "_Found":
        return cls.at(require_results(folder))


def result_paths(names: Sequence[str | Path]) -> list[Path]:
    """Return every `result.json` of some runs, folders and result files, each once, in order of the arguments.

    Raises: ConfigError for a path that is neither; RunFailed for a folder without results.
    """
    paths: dict[Path, Path] = {}
    for name in map(Path, names):
        if os.path.isdir(name):
            found = require_results(name)
        elif name.name == RESULT_FILE and os.path.isfile(name):
            found = [name]
        else:
            known = "is not a result file" if os.path.exists(name) else "does not exist"
            raise ConfigError(
                f"'{name}' {known}.", f"expected: folders of runs, or files named {RESULT_FILE}",
                fix="use the folders that `diffprobe train` printed",
            )  # fmt: skip
        for path in found:
            paths.setdefault(path.resolve(), path)
    return list(paths.values())


def _of_experiment(name: str, folder: str, where: dict[str, Any], exploratory: bool) -> TableRequest:
    """Return the default tables of one experiment; without results of it, the error names the known tables."""
    wanted = {"experiment": name}
    try:
        found = _Found.below(folder)
    except RunFailed:
        found = _Found()
    if not any(matches(run, record, wanted) for run in found.results for record in run.metrics):
        try:
            find_spec(name)
        except ConfigError as error:
            known = ", ".join(sorted({run.experiment for run in found.results if run.experiment})) or "(none)"
            raise ConfigError(
                f"'{name}' is neither a table, nor a folder, nor an experiment with results.",
                *error.details,
                f"experiments below '{folder}': {known}",
                fix="name the folder of the results: --results DIR, or diffprobe table FOLDER",
            ) from error
    return _default(found, {**wanted, **where}, folder=folder, exploratory=exploratory)


def _default(found: _Found, where: dict[str, Any], *, folder: str, exploratory: bool) -> TableRequest:
    made = default_tables(found.results, where, exploratory=exploratory)
    return TableRequest(specs=made.specs, results=found.results, choices=made.choices, folder=folder, paths=found.paths)
