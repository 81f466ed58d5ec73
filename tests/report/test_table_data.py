"""Results to entries: seeds, controls, missing entries, and what must never be mixed."""

import dataclasses
import random
import sys

import pytest

from diffprobe.core.errors import ConfigError, NonFinite, RunFailed
from diffprobe.report.aggregation import control_of
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import TableAxis


def entry_at(table, **where):
    return next(entry for entry in table.entries() if entry.where == where)


def changed(base, config=None, value=None, **changes):
    """A copy of a run with some config sections or all values replaced."""
    metrics = base.metrics
    if value is not None:
        metrics = tuple(dataclasses.replace(record, value=value) for record in metrics)
    return dataclasses.replace(base, config={**base.config, **(config or {})}, metrics=metrics, **changes)


def test_means_over_seeds_with_spread(results, spec):
    entry = entry_at(fill_table(results, spec), target="group", tap="mid_block", timestep=25)
    assert entry.value == (0.5 + 0.53125) / 2 and entry.n_seeds == 2 and entry.n == 50
    assert entry.spread == pytest.approx(0.03125 / 2**0.5)


def test_controls_come_from_records_and_from_control_runs(results, spec):
    table = fill_table(results, spec)
    controls = {"chance": 0.25, "shuffled_labels": 0.26, "random_weights": 0.4375, "raw_pixels": 0.4375}
    assert entry_at(table, target="group", tap="up_blocks.0", timestep=200).controls == controls
    assert table.rows[1].controls == (0.4375, 0.5, 0.26, 0.25)  # the strictest of the row, in the order of the spec
    assert [control_of(run) for run in results] == ["raw_pixels", None, None]


def test_a_missing_entry_keeps_its_place(results, spec):
    entry = entry_at(fill_table(results, spec), target="label", tap="up_blocks.1", timestep=200)
    assert entry.value is None and entry.n_seeds == 0 and entry.comparison.delta is None


def test_the_order_of_results_does_not_matter(results, spec):
    expected = fill_table(results, spec)
    for _ in range(3):
        random.shuffle(results)
        assert fill_table(results, spec) == expected


def test_values_of_an_axis_are_found_in_natural_order(results, spec):
    run = results[1]
    more = [dataclasses.replace(run.metrics[0], cell=f"up_blocks.{i}@t25") for i in (10, 2)]
    results[1] = dataclasses.replace(run, metrics=(*run.metrics, *more))
    axis = dataclasses.replace(spec.rows[1], values=())
    table = fill_table(results, dataclasses.replace(spec, rows=(spec.rows[0], axis)))
    taps = ["mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2", "up_blocks.10"]
    assert [row.values[1] for row in table.rows][:5] == taps


@pytest.mark.parametrize("change", [{"features": {"seed": 9, "draws": 4}}, {"data": {"path": "toy", "limit": 10}}])
def test_different_settings_are_never_averaged(results, spec, change):
    with pytest.raises(RunFailed) as error:
        fill_table([*results, changed(results[1], change, run="other", seeds={"run": 5})], spec)
    key = "config.features.draws" if "features" in change else "config.data.limit"
    assert key in str(error.value) and "runs: bank-0, other" in str(error.value) and "--where" in str(error.value)


def test_where_it_ran_is_no_difference(results, spec):
    moved = changed(results[1], {"backbone": {"path": "toy", "device": "cuda"}}, run="a-copy")
    assert fill_table([*results, moved], spec) == fill_table(results, spec)


def test_a_repeated_run_that_disagrees_is_refused(results, spec):
    with pytest.raises(RunFailed, match="disagree"):
        fill_table([*results, changed(results[1], value=0.9, run="bank-0-again")], spec)


def test_a_control_measured_twice_must_agree(results, spec):
    rival = changed(results[1], {"control": "random_weights"}, value=0.99, run="rw")
    with pytest.raises(RunFailed, match="control 'random_weights'"):
        fill_table([*results, rival], spec)


def test_a_control_run_serves_its_own_cell_only(results, spec):
    run = changed(results[1], {"control": "untrained_vae"}, value=0.1)
    run = dataclasses.replace(run, metrics=run.metrics[:1])
    table = fill_table([*results, run], spec)
    assert entry_at(table, target="group", tap="mid_block", timestep=25).controls["untrained_vae"] == 0.1
    assert "untrained_vae" not in entry_at(table, target="group", tap="mid_block", timestep=200).controls


def control_run(results, value=None, config=None, **changes):
    """The run of seed 0 again as a control that no shipped result has measured."""
    config = {"control": "untrained_vae", **(config or {})}
    return changed(results[1], config, value, run="control-0", **changes)


def control_value(table):
    return entry_at(table, target="group", tap="mid_block", timestep=25).controls["untrained_vae"]


def test_a_control_is_averaged_over_seeds_and_counted_once(results, spec):
    one, again = control_run(results, 0.25), control_run(results, 0.25)
    other = control_run(results, 0.75, seeds={"run": 7})
    assert control_value(fill_table([*results, one, again, other], spec)) == 0.5
    with pytest.raises(RunFailed, match="disagree"):
        fill_table([*results, one, control_run(results, 0.3)], spec)


def test_a_control_of_other_settings_is_refused_with_what_differs(results, spec):
    with pytest.raises(RunFailed, match=r"(?s)'untrained_vae'.*data.limit"):
        fill_table([*results, control_run(results, config={"data": {"path": "toy", "limit": 10}})], spec)


def test_what_a_control_is_about_may_differ(results, spec):
    features = {**results[1].config["features"], "taps": ["mid_block"]}
    backbone = {**results[1].config["backbone"], "random_weights": True, "random_seed": 4}
    probe = {**results[1].config.get("probe", {}), "params": {"controls": []}}
    run = control_run(results, 0.25, {"features": features, "backbone": backbone, "probe": probe})
    measured = changed(results[1], {"probe": {**probe, "params": {}}})
    assert control_value(fill_table([results[0], measured, run], spec)) == 0.25


def test_a_control_serves_its_own_place_on_an_axis_of_settings(results, spec):
    here, there = ({"data": {**results[1].config["data"], "path": path}} for path in ("here", "there"))
    runs = [changed(results[1], here, run="a"), changed(results[1], there, run="b")]
    controls = [control_run(results, value, config) for value, config in ((0.25, here), (0.75, there))]
    axis = dataclasses.replace(spec.rows[0], field="config.data.path", values=("here", "there"))
    table = fill_table([*runs, *controls], dataclasses.replace(
        spec, rows=(axis, spec.rows[1]), filter={**spec.filter, "target": "group"}, published=()
    ))  # fmt: skip
    found = {
        entry.where["config.data.path"]: entry.controls["untrained_vae"] for entry in table.entries() if entry.controls
    }
    assert found == {"here": 0.25, "there": 0.75}


@pytest.mark.parametrize(
    "condition",
    [
        {"timestep": 200}, {"tap": ["mid_block", "up_blocks.0"]}, {"cell": "up_blocks.0@t200:empty:mean"},
        {"condition": "empty"}, {"config.backbone.path": "toy"}, {"config.features.seed": 0}, {"run": "bank-0"},
    ],
    ids=lambda condition: next(iter(condition)),
)  # fmt: skip
def test_a_filter_on_what_pixels_do_not_have_keeps_their_control_and_its_mark(results, spec, condition):
    pixels = changed(results[0], {"backbone": {"path": "pixels"}, "features": {"seed": 5}}, value=0.8)
    pixels = dataclasses.replace(
        pixels, metrics=tuple(dataclasses.replace(m, cell="pixels@t0:clean:max") for m in pixels.metrics)
    )
    table = fill_table([pixels, *results[1:]], dataclasses.replace(spec, filter={**spec.filter, **condition}))
    found = entry_at(table, target="group", tap="up_blocks.0", timestep=200)
    assert found.controls["raw_pixels"] == 0.8
    low = [entry for entry in table.entries() if entry.value is not None and entry.value <= 0.8]
    assert low and all(table.beats_controls(entry) is False for entry in low)


def one_cell_run(results, control, config=None, value=0.8):
    """A run of a control with one cell of its own: of the checkpoint of the measured runs, on other features."""
    cell = {"vae_latents": "latents@t0:empty:mean", "text_encoder": "text@t0:caption:mean"}[control]
    run = changed(results[0], {**results[1].config, "control": control, **(config or {})}, value, run=control)
    return dataclasses.replace(run, metrics=tuple(dataclasses.replace(m, cell=cell) for m in run.metrics))


@pytest.mark.parametrize("control", ["vae_latents", "text_encoder"])
def test_one_part_of_the_checkpoint_is_a_control_of_every_cell(results, spec, control):
    part = one_cell_run(results, control, {"features": {"seed": 5, "pool": "grid2"}})
    table = fill_table([part, *results], spec)
    for tap in ("mid_block", "up_blocks.0"):
        assert entry_at(table, target="group", tap=tap, timestep=25).controls[control] == 0.8


@pytest.mark.parametrize("control", ["vae_latents", "text_encoder"])
def test_a_part_of_another_checkpoint_is_no_control(results, spec, control):
    with pytest.raises(RunFailed, match=rf"'{control}'(.|\n)*config.backbone.path: .*'other'"):
        fill_table([one_cell_run(results, control, {"backbone": {"path": "other"}}), *results], spec)


def test_a_text_encoder_that_was_given_another_text_is_no_control(results, spec):
    prompt = {"features": {"condition": "template", "prompt": "a {class_name}"}}
    with pytest.raises(RunFailed, match=r"'text_encoder'(.|\n)*config.features.prompt"):
        fill_table([one_cell_run(results, "text_encoder", prompt), *results], spec)


def test_of_several_raw_pixels_those_that_meet_the_condition_are_taken(results, spec):
    """Two backbones in one folder, each with its pixels: a filter on the backbone selects one of them."""
    runs = []
    for path, value in (("small", 0.25), ("large", 0.75)):
        backbone = {"backbone": {"path": path}}
        runs += [changed(results[1], backbone, run=path), changed(results[0], backbone, value, run=f"{path}-pixels")]
    for path, value in (("small", 0.25), ("large", 0.75)):
        narrowed = dataclasses.replace(spec, filter={**spec.filter, "config.backbone.path": path})
        assert entry_at(fill_table(runs, narrowed), target="group", tap="mid_block", timestep=25).controls[
            "raw_pixels"
        ] == value  # fmt: skip
    axis = dataclasses.replace(spec.rows[0], field="config.backbone.path", values=("small", "large"))
    table = fill_table(runs, dataclasses.replace(
        spec, rows=(axis, spec.rows[1]), filter={**spec.filter, "target": "group"}, published=()
    ))  # fmt: skip
    found = {entry.where["config.backbone.path"]: entry.controls["raw_pixels"] for entry in table.entries()}
    assert found == {"small": 0.25, "large": 0.75}


def test_a_control_serves_its_own_split(results, spec):
    """A run records its control on every split, as the measured one does."""

    def on_val(run, value):
        metrics = [dataclasses.replace(m, split="val", value=value) for m in run.metrics if m.split == "test"]
        return dataclasses.replace(run, metrics=(*run.metrics, *metrics))

    runs = [on_val(results[0], 0.125), on_val(results[1], 0.875), on_val(control_run(results, 0.25), 0.75)]
    filter = {key: value for key, value in spec.filter.items() if key != "split"} | {"target": "group"}
    axis = dataclasses.replace(spec.rows[0], field="split", values=("val", "test"))
    spec = dataclasses.replace(spec, rows=(axis, spec.rows[1]), filter=filter, published=())
    controls = {entry.where["split"]: entry.controls for entry in fill_table(runs, spec).entries()}
    assert (controls["val"]["raw_pixels"], controls["test"]["raw_pixels"]) == (0.125, 0.4375)
    assert (controls["val"]["untrained_vae"], controls["test"]["untrained_vae"]) == (0.75, 0.25)


def test_a_condition_that_a_control_could_meet_still_binds_it(results, spec):
    other = changed(results[1], {"data": {"path": "other"}}, run="other")
    pixels = changed(results[0], {"data": {"path": "other"}}, value=0.8, run="other-pixels")
    narrowed = dataclasses.replace(spec, filter={**spec.filter, "config.data.path": "other"})
    table = fill_table([*results, other, pixels], narrowed)
    assert entry_at(table, target="group", tap="mid_block", timestep=25).controls["raw_pixels"] == 0.8


def test_beating_the_controls_follows_the_direction_of_the_metric(results, spec):
    table = fill_table(results, spec)
    below = entry_at(table, target="group", tap="up_blocks.1", timestep=200)
    assert table.beats_controls(below) is False
    lower = fill_table(results, dataclasses.replace(spec, higher_is_better=False))
    assert lower.beats_controls(entry_at(lower, target="group", tap="up_blocks.0", timestep=25)) is False
    assert lower.best(lower.rows) == min(e.value for e in lower.entries() if e.value is not None)


def test_a_control_that_is_not_compared_is_shown_and_marks_nothing(results, spec):
    place = {"target": "group", "tap": "up_blocks.1", "timestep": 200}
    plain = entry_at(fill_table(results, spec), **place)
    above = {name for name, value in plain.controls.items() if value >= plain.value}
    assert above and above < set(plain.controls)
    columns = tuple(dataclasses.replace(one, compare=one.name not in above) for one in spec.controls)
    table = fill_table(results, dataclasses.replace(spec, controls=columns))
    entry = entry_at(table, **place)
    assert entry.controls == plain.controls and set(entry.compared) == set(plain.controls) - above
    assert table.beats_controls(entry) is True


def test_no_match_lists_the_values_of_the_results(results, spec):
    with pytest.raises(RunFailed) as error:
        fill_table(results, dataclasses.replace(spec, filter={**spec.filter, "split": "val"}))
    assert "split: expected val, results have test, train" in str(error.value)


def test_names_of_any_digits_can_be_sorted(results, spec):
    run = results[1]
    names = ["x²", "x2", "x10", "x٣", "x02", "x" + "7" * 5000]
    more = [dataclasses.replace(run.metrics[0], target=name) for name in names]
    results[1] = dataclasses.replace(run, metrics=(*more,))
    axis = dataclasses.replace(spec.rows[0], values=())
    table = fill_table(results[1:2], dataclasses.replace(spec, rows=(axis, spec.rows[1]), published=()))
    found = list(dict.fromkeys(row.values[0] for row in table.rows))
    assert sorted(found) == sorted(names)
    assert [name for name in found if name.isascii()] == ["x02", "x2", "x10", "x" + "7" * 5000]


@pytest.mark.parametrize("taps", [["a"], {"a": 1}])
def test_an_axis_of_lists_is_refused(results, spec, taps):
    results[1] = changed(results[1], config={"features": {"taps": taps}})
    axis = TableAxis(field="config.features.taps")
    with pytest.raises(ConfigError, match="'config.features.taps' is a (list|block) in run 'bank-0'"):
        fill_table(results, dataclasses.replace(spec, columns=axis, published=()))


def test_a_table_without_end_is_refused_before_it_is_made(results, spec):
    axes = [dataclasses.replace(spec.rows[i], values=tuple(range(1000))) for i in (0, 1)]
    with pytest.raises(RunFailed, match=r"2,000,000 entries; at most 100,000(.|\n)*target: 1,000 values"):
        fill_table(results, dataclasses.replace(spec, rows=tuple(axes), published=()))


@pytest.mark.parametrize("value", [1e308, -1e308])
def test_a_number_too_large_to_print_is_refused(results, spec, value):
    with pytest.raises(NonFinite, match="'mid_block'.*too large"):
        fill_table([changed(run, value=value) for run in results], spec)
    with pytest.raises(NonFinite, match="too large"):
        fill_table([changed(results[1], value=value)], spec)  # times 100 %


def test_an_experiment_on_an_axis_stands_for_its_folder(results, spec):
    axis = TableAxis(field="experiment", values=("toy", "toy/classifier", "toy/class"))
    spec = dataclasses.replace(spec, rows=(axis, spec.rows[1]), published=(), filter={**spec.filter, "target": "group"})
    values = [[entry.value for entry in row.entries] for row in fill_table(results, spec).rows]
    assert values[0:3] == values[3:6] and None not in values[0] and values[6:] == [[None, None]] * 3


def test_work_grows_with_the_number_of_results(results, spec):
    """Four times the results take about four times as many calls; an entry does not search all results."""
    base = results[1]
    axis = TableAxis(field="config.probe.params.k")

    metrics = tuple(dataclasses.replace(record, controls={}) for record in base.metrics)

    def calls(n):
        runs = []
        for k in range(n):
            for control in ("none", "random_weights"):
                config = {"control": control, "probe": {**base.config["probe"], "params": {"k": k}}}
                run = changed(base, config=config, run=f"{control}{k}")
                runs.append(dataclasses.replace(run, metrics=metrics))
        counted = 0

        def count(frame, event, argument):
            nonlocal counted
            counted += event == "call"

        sys.setprofile(count)
        try:
            table = fill_table(runs, dataclasses.replace(spec, rows=(axis, *spec.rows), published=()))
        finally:
            sys.setprofile(None)
        assert len(table.rows) == 6 * n and table.rows[0].entries[0].controls == {"random_weights": 0.5}
        return counted

    calls(1)
    assert calls(80) < 5 * calls(20)


def test_a_head_on_several_cells_has_a_row_that_names_them(results, spec):
    base = next(run for run in results if run.run == "bank-0")
    first = next(record for record in base.metrics if (record.name, record.split) == (spec.metric, "test"))
    cells = ["mid_block@t25:empty:mean", "up_blocks.0@t25:empty:mean"]
    joint = dataclasses.replace(first, cell=None, probe="difformer", value=0.9, detail={"cells": cells})
    run = dataclasses.replace(base, run="joint-0", config_digest="e" * 64, metrics=(joint,))
    rows = (TableAxis(field="probe"), TableAxis(field="tap"))
    open_spec = dataclasses.replace(spec, rows=rows, columns=TableAxis(field="timestep"), published=())
    narrow = {**spec.filter, "probe": ["linear", "difformer"], "target": joint.target}
    open_spec = dataclasses.replace(open_spec, filter=narrow, controls=())
    table = fill_table([*results, run], open_spec)
    where = {"probe": "difformer", "tap": "mid_block + up_blocks.0", "timestep": 25}
    assert entry_at(table, **where).value == 0.9
    assert [row.values for row in table.rows if row.values[0] == "difformer"] == [("difformer", where["tap"])]
