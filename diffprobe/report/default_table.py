"""The tables of results for which nobody wrote a `table.yaml`: layer x timestep, apart by whatever else differs.

What is chosen is returned as ordinary specs, so that it can be written as a `table.yaml` and changed there.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from diffprobe.config.controls import LADDER
from diffprobe.core.digest import canonical_json
from diffprobe.core.errors import RunFailed
from diffprobe.core.result import RunResult
from diffprobe.metrics import described
from diffprobe.metrics.headline import is_higher_better
from diffprobe.report.aggregation import Found, control_of, differing_inputs, differing_settings
from diffprobe.report.cell_choice import COVERAGE, compares_cells
from diffprobe.report.query import cells_of, config_value, field_of, matches
from diffprobe.report.table_spec import ControlColumn, NumberFormat, TableAxis, TableSpec

_PRIMARY = {
    "classifier": ("balanced_accuracy", "accuracy"), "direction": ("auroc",), "sae": ("fvu",),
    "caption": ("r2", "caption_recall_10"),
    "sae_eval": ("loss_recovered",), "sae_labels": ("purity_described", "purity_released"),
    "sae_granularity": ("granularity_described", "granularity_released"),
    "use": ("relative_delta_mse",), "generations": ("delta_attribute_share",),
    "correspondence": ("pck@0.1_per_point_box", "pck@0.1_per_point_image"),
}  # fmt: skip
"""Kind of run -> its metrics by which it is read, the first that was measured."""
_UNRANKED = ("sae", "use", "generations")
"""Kinds whose values are not better or worse from layer to layer: features of a low fvu may just be simple, and that a
layer is used much does not make it better."""
_SPLITS = ("test", "val")
"""Splits in the order in which one is chosen; several cells are compared on val."""
_WITHIN_A_RUN = ("split", "probe", "condition", "pool")
"""Fields besides layer, timestep and target in which records of one run may differ."""
_SHARED_WITH_CONTROLS = ("kind", "experiment", "metric", "split", "target", "probe")
"""Fields in which a control run equals the run that it is a control of."""
_CONTROLS = (*LADDER, "shuffled_labels", "random_direction", "pca", "raw_neurons",
    "random_dictionary", "mean_prediction", "chance")  # fmt: skip
"""Controls in the order of their columns."""
_SHARES = ("accuracy", "balanced_accuracy")
"""Metrics that are printed in percent."""


@dataclass(frozen=True, kw_only=True)
class DefaultTables:
    """The specs for some results, and what was chosen."""

    specs: tuple[TableSpec, ...]
    """One per kind of run, metric and target."""
    choices: tuple[str, ...]
    """Sentences: which rows, columns, metrics and splits, and what has no place in these tables."""


def default_tables(
    results: Sequence[RunResult], where: Mapping[str, Any] | None = None, *, exploratory: bool = False
) -> DefaultTables:
    """Choose the tables of some results: for each kind of run and target, the primary metric by layer and timestep.

    Whatever else differs between the runs becomes an axis of the rows: `probe`, `condition`, `pool`, settings
    (`config.KEY`), or the name of the run where no setting distinguishes them. Seeds are averaged. Several cells are
    compared on val, where it was measured, and the best of them is scored on test; a single one is read on test.

    Args:
        results: the results of any runs.
        where: field -> value; narrows what is shown. `metric` and `split` replace what would be chosen.
        exploratory: whether tables may compare many cells on test.
    Raises: RunFailed if no result has a number of a cell; ConfigError for an unknown field.
    """
    wanted = dict(where or {})
    metrics = wanted.pop("metric", None)
    narrow = wanted if metrics is None else {**wanted, "metric": metrics}
    for_controls = {name: value for name, value in narrow.items() if name in _SHARED_WITH_CONTROLS}
    pairs = [(run, record) for run in results for record in run.metrics]
    found = [one for one in pairs if matches(*one, narrow if control_of(one[0]) is None else for_controls)]
    placed = [one for one in found if cells_of(one[1])]
    measured = [one for one in placed if control_of(one[0]) is None]
    if not measured:
        raise _nothing(results, found, placed)
    specs: list[TableSpec] = []
    choices: list[str] = []
    for kind in dict.fromkeys(run.kind for run, _ in measured):
        of_kind = [one for one in measured if one[0].kind == kind]
        metric_names = dict.fromkeys(record.name for _, record in of_kind)
        chosen = list(metric_names) if metrics is not None else [_primary(kind, metric_names)]
        for metric in chosen:
            made, lines = _tables_of(kind, metric, of_kind, placed, wanted, exploratory)
            specs += made
            choices += lines
        others = [name for name in metric_names if name not in chosen]
        if others:
            choices.append(f"{kind}: not shown: {', '.join(others)} (--where metric=NAME)")
    without = sorted({run.kind for run, record in found if not cells_of(record)})
    if without:
        choices.append(f"numbers without a cell are not in these tables: runs of kind {', '.join(without)}")
    return DefaultTables(specs=tuple(specs), choices=tuple(choices))


def spec_yaml(specs: Sequence[TableSpec]) -> str:
    """Return the `table.yaml` of some tables, without the keys that have their defaults."""
    trees = [_tree(spec) for spec in specs]
    if len(trees) == 1:
        tree: dict[str, Any] = trees[0]
    else:
        shared = {key: value for key, value in trees[0].items() if all(part.get(key) == value for part in trees)}
        own = [{key: value for key, value in part.items() if key not in shared} for part in trees]
        tree = {**shared, "tables": own}
    order = [*(key for key in ("title", "caption") if key in tree), *tree]
    ordered = {key: tree[key] for key in order}
    return str(
        yaml.dump(ordered, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    )


class _Dumper(yaml.SafeDumper):
    """Writes no aliases, which `table.yaml` does not take."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _tree(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {}
        for field in dataclasses.fields(value):
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
            if getattr(value, field.name) != default:
                fields[field.name] = _tree(getattr(value, field.name))
        return fields
    if isinstance(value, Mapping):
        return {str(key): _tree(item) for key, item in value.items()}
    return [_tree(item) for item in value] if isinstance(value, (list, tuple)) else value


def _tables_of(
    kind: str, metric: str, of_kind: Found, placed: Found, wanted: Mapping[str, Any], exploratory: bool
) -> tuple[list[TableSpec], list[str]]:
    """Return the tables of one kind and metric, one per target, and what was chosen."""
    found = [one for one in of_kind if one[1].name == metric]
    split, found, axes, lines = _on_split(found, wanted)
    several = compares_cells(found, [axis.field for axis in axes])
    heading = f"{kind}: {metric} on {split if isinstance(split, str) else ', '.join(map(str, split))}"
    layer = TableAxis(field="tap", title="layer")
    one_layer = len({field_of(*one, "tap") for one in found}) == 1
    rows = (layer, *axes) if one_layer else (*axes, layer)  # a block is layers by timesteps, or what differs in one
    chosen = [f"{heading}; rows: {', '.join(axis.field for axis in rows)}; columns: timestep", *lines]
    filters: dict[str, Any] = {"kind": kind, **wanted, "split": split}
    higher = is_higher_better(metric)
    ranked = kind not in _UNRANKED and higher is not None
    selects = split == "val" and several and ranked
    if selects:
        chosen.append(f"{kind}: cells are compared on val, and the best is scored on test (all on test: "
                      "--where split=test --exploratory)")  # fmt: skip
    specs = []
    for target in dict.fromkeys(record.target for _, record in found):
        of_target = {} if target is None else {"target": target}
        of_split = [
            one for one in placed if one[0].kind == kind and one[1].name == metric and one[1].target == target
            and one[1].split in ([split] if isinstance(split, str) else split)
        ]  # fmt: skip
        specs.append(
            TableSpec(
                title=f"{metric.replace('_', ' ')}{'' if target is None else f' of {target}'} by layer and timestep",
                metric=metric,
                filter={**filters, **of_target},
                rows=rows,
                columns=TableAxis(field="timestep", title="timestep", heading="t = {value}"),
                controls=_control_columns(of_split, higher=higher is not False),
                number=NumberFormat(scale=100, decimals=1, unit="%") if metric in _SHARES else NumberFormat(),
                higher_is_better=higher is not False,
                ranked=ranked,
                select="val" if selects else "none",
                exploratory=exploratory and several and split != "val",
            )
        )
    return specs, chosen


def _primary(kind: str, measured: Iterable[str]) -> str:
    """Return the metric that a kind of run is read by: of its list, or else the first of the registry, or of all."""
    names = list(measured)
    return next((name for name in (*_PRIMARY.get(kind, ()), *described()) if name in names), names[0])


def _on_split(found: Found, wanted: Mapping[str, Any]) -> tuple[Any, Found, tuple[TableAxis, ...], list[str]]:
    """Return the split that is shown, its records, and what `_distinct` finds of them.

    Several cells are shown on val, a single one on test, as far as these were measured.
    """
    measured = {record.split for _, record in found}
    names = [name for name in _SPLITS if name in measured] or [min(measured)]
    for split in [wanted["split"]] if "split" in wanted else names:
        records = [one for one in found if matches(*one, {"split": split})]
        axes, lines = _distinct(records)
        if split != "test" or not compares_cells(records, [axis.field for axis in axes]) or "val" not in measured:
            break
    return split, records, axes, lines


def _control_columns(records: Found, *, higher: bool) -> tuple[ControlColumn, ...]:
    """Return a column for each control of the entries; of several in a row, the strictest."""
    names = {name for _, record in records for name in record.controls}
    names |= {str(control_of(run)) for run, _ in records if control_of(run) is not None}
    ordered = [name for name in _CONTROLS if name in names] + sorted(names - set(_CONTROLS))
    pick: Literal["max", "min"] = "max" if higher else "min"
    return tuple(ControlColumn(name=name, title=_title(name), pick=pick) for name in ordered)


def _title(control: str) -> str:
    return control.replace("_", " ").replace("vae", "VAE").replace("pca", "PCA")


def _distinct(found: Found) -> tuple[tuple[TableAxis, ...], list[str]]:
    """Return the axes that keep different measurements apart, and what was chosen beyond the obvious.

    A key is taken if it parts runs that the keys before it leave together. Runs of one content differ in seeds alone.
    """
    lines: list[str] = []
    fields = [name for name in _WITHIN_A_RUN if len({str(field_of(*one, name)) for one in found}) > 1]
    runs = list({id(run): run for run, _ in found}.values())
    settings = dict.fromkeys(key for run in runs[1:] for key, _, _ in differing_settings(runs[0], run))
    inputs = dict.fromkeys(name for run in runs[1:] for name, _, _ in differing_inputs(runs[0], run))
    content_keys = [key for key in settings if not key.startswith(COVERAGE)]
    content = {id(run): _content(run, content_keys, inputs) for run in runs}
    places: dict[int, set[str]] = {id(run): set() for run in runs}
    for run, record in found:
        places[id(run)].add(canonical_json([field_of(run, record, name) for name in fields]))
    groups = {run: canonical_json(sorted(place)) for run, place in places.items()}
    for key in content_keys:
        values = {id(run): config_value(run.config, key) for run in runs}
        if all(isinstance(value, (str, int, float)) for value in values.values()) and _parts(groups, content, values):
            fields.append(f"config.{key}")
            groups = {run: canonical_json([group, values[run]]) for run, group in groups.items()}
    if _mixed(groups, content) or _overlap(found, groups, fields):
        fields.append("run")
        keys = [*(f"config.{key}" for key in settings if f"config.{key}" not in fields), *inputs]
        lines.append(f"runs are apart by name, since these cannot be an axis: {', '.join(keys)}")
    else:
        also = [f"config.{key}" for key in settings if f"config.{key}" not in fields]
        if also or inputs:
            lines.append(f"differ too, together with the rows: {', '.join([*also, *inputs])}")
    return tuple(map(_axis, fields)), lines


def _axis(field: str) -> TableAxis:
    """Return an axis whose values can be understood where they are the heading of a block: "k = 16"."""
    title = field.removeprefix("config.").rpartition(".")[2]
    bare = field in ("probe", "run", "split")
    return TableAxis(field=field, title=title, heading="{value}" if bare else f"{title} = {{value}}")


def _content(run: RunResult, keys: Iterable[str], inputs: Iterable[str]) -> str:
    settings = [config_value(run.config, key) for key in keys]
    return canonical_json([settings, [run.artifacts.get(name) for name in inputs]])


def _parts(groups: dict[int, str], content: dict[int, str], values: dict[int, Any]) -> bool:
    """Return whether a key parts runs of different content that are still together."""
    together: dict[str, dict[str, set[str]]] = {}
    for run, group in groups.items():
        together.setdefault(group, {}).setdefault(content[run], set()).add(canonical_json(values[run]))
    return any(len(contents) > 1 and len(set().union(*contents.values())) > 1 for contents in together.values())


def _mixed(groups: dict[int, str], content: dict[int, str]) -> bool:
    return len(set(groups.values())) < len({(group, content[run]) for run, group in groups.items()})


def _overlap(found: Found, groups: dict[int, str], fields: Sequence[str]) -> bool:
    """Return whether two runs that cover different cells measured one of them both: they are not one measurement."""
    places: dict[tuple[Any, ...], list[RunResult]] = {}
    for run, record in found:
        place = (groups[id(run)], record.cell, record.target, record.probe, record.split)
        places.setdefault(place, []).append(run)
    return any(differing_settings(runs[0], run) for runs in places.values() for run in runs[1:])


def _nothing(results: Sequence[RunResult], found: Found, placed: Found) -> RunFailed:
    """Return the error for results without a number to show, with the cause."""
    n = len(results)
    if placed and all(control_of(run) is not None for run in results):
        names = sorted({str(control_of(run)) for run, _ in placed})
        return RunFailed(
            f"all of {n} result file(s) are controls ({', '.join(names)}); a table needs what they are controls of.",
            fix="name the folder of the run too",
        )
    cellless = [run.kind for run, _ in found if control_of(run) is None]
    if cellless:
        kinds = ", ".join(sorted(set(cellless)))
        return RunFailed(
            f"no number of {n} result file(s) belongs to a cell; a table by layer and timestep needs cells.",
            f"kinds: {kinds}",
            fix="write a table.yaml with other axes, for example rows: [{field: run}]",
        )
    return RunFailed(f"no number of {n} result file(s) passes --where, or the runs measured none.")
