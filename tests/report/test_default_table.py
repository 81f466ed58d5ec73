"""Tables without a `table.yaml`: what is chosen, what is kept apart, what is said, and the file that makes the same."""

import dataclasses

import pytest

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.result import MetricRecord
from diffprobe.report.default_table import default_tables, spec_yaml
from diffprobe.report.table import render
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import load_specs


def fields(spec):
    return [axis.field for axis in (*spec.rows, spec.columns)]


def changed(run, name, *, config=None, records=None, **fields):
    """Return a run of another name and other settings (dotted keys), with each record changed by `records`."""
    tree = {key: dict(value) if isinstance(value, dict) else value for key, value in run.config.items()}
    for key, value in (config or {}).items():
        section, _, last = key.partition(".")
        tree.setdefault(section, {})[last] = value
    metrics = tuple(dataclasses.replace(record, **(records or {})) for record in run.metrics)
    return dataclasses.replace(run, run=name, config=tree, metrics=metrics, **fields)


def test_each_target_is_a_table_of_layers_by_timesteps_with_seeds_averaged(results, spec):
    made = default_tables(results, exploratory=True)
    assert [spec.filter["target"] for spec in made.specs] == ["group", "label"]
    assert all(fields(one) == ["tap", "timestep"] and one.filter["split"] == "test" for one in made.specs)
    known = {tuple(sorted(entry.where.items())): entry for entry in fill_table(results, spec).entries()}
    for one in made.specs:
        for entry in fill_table(results, one).entries():
            same = known[tuple(sorted({**entry.where, "target": one.filter["target"]}.items()))]
            assert (entry.value, entry.spread, entry.controls) == (same.value, same.spread, same.controls)
    assert [control.name for control in made.specs[0].controls] == [
        "raw_pixels", "random_weights", "shuffled_labels", "chance",
    ]  # fmt: skip
    assert "classifier: accuracy on test; rows: tap; columns: timestep" in made.choices


def test_the_controls_stand_in_the_order_of_the_ladder(results):
    pixels = next(run for run in results if run.run == "pixels")
    rungs = [
        dataclasses.replace(pixels, run=name, config={**pixels.config, "control": name})
        for name in ("text_encoder", "vae_latents")
    ]
    assert [control.title for control in default_tables([*rungs, *results]).specs[0].controls] == [
        "raw pixels", "VAE latents", "random weights", "text encoder", "shuffled labels", "chance",
    ]  # fmt: skip


def test_the_controls_of_autoencoders_come_before_the_mean(results):
    controls = {"mean_prediction": 1.0, "random_dictionary": 0.9, "raw_neurons": 0.4, "pca": 0.3}
    record = MetricRecord(name="fvu", value=0.2, split="test", n=9, cell="mid_block@t5:empty:mean", controls=controls)
    run = dataclasses.replace(results[0], run="sae", kind="sae", config={"control": "none"}, metrics=(record,))
    (spec,) = default_tables([run]).specs
    assert [one.title for one in spec.controls] == ["PCA", "raw neurons", "random dictionary", "mean prediction"]
    assert {one.pick for one in spec.controls} == {"min"}  # the strictest of a row: of fvu the smallest


def test_a_setting_in_which_runs_differ_is_an_axis(results):
    seeds = [run for run in results if run.run.startswith("bank")]
    wider = [changed(run, f"{run.run}-wide", config={"probe.width": 64}) for run in seeds]
    narrow = [changed(run, run.run, config={"probe.width": 8}) for run in seeds]
    made = default_tables([*wider, *narrow], exploratory=True)
    assert {tuple(fields(one)) for one in made.specs} == {("config.probe.width", "tap", "timestep")}
    assert {entry.n_seeds for entry in fill_table([*wider, *narrow], made.specs[0]).entries()} == {2}


def test_settings_that_change_together_are_one_axis_and_named(results):
    one = next(run for run in results if run.run == "bank-0")
    both = [
        changed(one, "a", config={"probe.name": "linear", "probe.width": 1}, records={"probe": "linear"}),
        changed(one, "b", config={"probe.name": "deep", "probe.width": 2}, records={"probe": "deep"}),
    ]
    made = default_tables(both)
    assert fields(made.specs[0]) == ["probe", "tap", "timestep"]
    (said,) = [line for line in made.choices if "differ too" in line]
    assert "config.probe.name" in said and "config.probe.width" in said


@pytest.mark.parametrize(
    ("config", "artifacts", "key"),
    [({"data.limit": 5}, {}, "config.data.limit"), ({}, {"input/shards": "e" * 64}, "input/shards")],
    ids=["a setting that one run lacks", "another data set of the same path"],
)
def test_what_cannot_be_an_axis_keeps_runs_apart_by_name(results, config, artifacts, key):
    one = next(run for run in results if run.run == "bank-0")
    both = [one, changed(one, "other", config=config, artifacts={**one.artifacts, **artifacts})]
    made = default_tables(both, exploratory=True)
    assert fields(made.specs[0]) == ["run", "tap", "timestep"]
    assert any("by name" in line and key in line for line in made.choices)
    assert {entry.n_seeds for entry in fill_table(both, made.specs[0]).entries() if entry.value} == {1}


def test_runs_of_other_layers_share_a_table_unless_they_measured_one_twice(results):
    one = next(run for run in results if run.run == "bank-0")
    halves = [
        changed(
            dataclasses.replace(one, metrics=tuple(r for r in one.metrics if ("mid" in r.cell) == mid)), f"half-{mid}",
            config={"features.taps": [f"tap-{mid}"]},
        )
        for mid in (True, False)
    ]  # fmt: skip
    assert fields(default_tables(halves).specs[0]) == ["tap", "timestep"]
    again = [one, changed(one, "again", config={"features.taps": ["mid_block"]})]
    assert fields(default_tables(again).specs[0]) == ["run", "tap", "timestep"]


def test_where_narrows_and_chooses_metric_and_split(results):
    made = default_tables(results, {"metric": "fvu"})
    assert {one.metric for one in made.specs} == {"fvu"}
    one = next(run for run in results if run.run == "bank-0")
    both = [one, changed(one, "v", records={"split": "val"})]
    assert default_tables(both, {"split": "test"}).specs[0].filter["split"] == "test"
    assert default_tables(both, {"split": "val"}).specs[0].filter["split"] == "val"
    assert "split" in fields(default_tables(both, {"split": ["val", "test"]}).specs[0])
    with pytest.raises(ConfigError, match="unknown field 'tpa'.*\n.*nearest: tap"):
        default_tables(results, {"tpa": "mid_block"})


def test_an_autoencoder_is_read_by_fvu_and_not_ranked(sae_run):
    (spec,) = default_tables([sae_run(0.25), sae_run(0.5, control="random_weights")]).specs
    assert (spec.metric, spec.ranked, spec.higher_is_better) == ("fvu", False, False)
    assert [control.name for control in spec.controls] == ["random_weights"] and "target" not in spec.filter


def test_an_unknown_metric_is_not_ranked(sae_run):
    run = sae_run(0.25, kind="new")
    run = dataclasses.replace(run, metrics=(dataclasses.replace(run.metrics[0], name="swirl"),))
    assert default_tables([run]).specs[0].ranked is False


def test_what_has_no_place_is_said_and_nothing_at_all_is_refused(results, sae_run):
    cellless = sae_run(0.5, kind="train_denoiser", metrics=(MetricRecord(name="loss", value=1.0, split="val", n=2),))
    assert any("train_denoiser" in line for line in default_tables([*results, cellless]).choices)
    with pytest.raises(RunFailed, match="belongs to a cell(.|\n)*train_denoiser(.|\n)*table.yaml"):
        default_tables([cellless])
    with pytest.raises(RunFailed, match="controls .random_weights."):
        default_tables([sae_run(0.5, control="random_weights")])
    with pytest.raises(RunFailed, match="passes --where"):
        default_tables(results, {"tap": "nowhere"})


def test_the_file_that_is_written_makes_the_same_tables(results, sae_run, tmp_path):
    everything = [*results, sae_run(0.25)]
    made = default_tables(everything, exploratory=True)
    path = tmp_path / "table.yaml"
    for specs in (made.specs, made.specs[:1]):
        path.write_text(spec_yaml(specs))
        assert load_specs(path) == specs
    assert render(everything, load_specs(path)[0]) == render(everything, made.specs[0])


def test_a_head_on_several_cells_is_in_a_table(results):
    base = next(run for run in results if run.run == "bank-0")
    cells = ["mid_block@t25:empty:mean", "up_blocks.0@t25:empty:mean"]
    joint = {"cell": None, "probe": "difformer", "detail": {"cells": cells}}
    run = changed(base, "joint-0", config={"probe.name": "difformer"}, records=joint, config_digest="e" * 64)
    run = dataclasses.replace(run, metrics=run.metrics[:1])
    made = default_tables([run], exploratory=True)
    (spec,) = made.specs
    (entry,) = [entry for entry in fill_table([run], spec).entries() if entry.value is not None]
    assert "mid_block + up_blocks.0" in {*entry.where.values(), *spec.filter.values()}
    assert not any("without a cell" in line for line in made.choices)
