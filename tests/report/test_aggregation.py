"""Which results are one measurement, and what of them may differ."""

import csv
import dataclasses
import io
from typing import get_type_hints

import pytest

from diffprobe.config.controls import LADDER
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import RunFailed
from diffprobe.report import aggregation
from diffprobe.report.aggregation import BACKBONE, SHARDS, control_of, differing_inputs, varied
from diffprobe.report.table import render
from diffprobe.report.table_data import fill_table
from diffprobe.runs import provenance


def made(run, *, shards="s1", weights="b1", seed=0, control="none", value=None, name=None, **sections):
    """A copy of a run with other inputs, seeds, sections of its configuration or values."""
    metrics = run.metrics if value is None else tuple(dataclasses.replace(m, value=value) for m in run.metrics)
    return dataclasses.replace(
        run, run=name or f"run-{shards}-{weights}-{seed}-{control}", artifacts={SHARDS: shards, BACKBONE: weights},
        seeds={"run": seed}, config={**run.config, "seed": seed, "control": control, **sections}, metrics=metrics,
    )  # fmt: skip


@pytest.fixture
def base(results):
    return results[1]


def test_the_inputs_have_the_names_under_which_runs_record_them():
    assert (SHARDS, BACKBONE) == (provenance.SHARDS, provenance.BACKBONE)


@pytest.mark.parametrize(("changed", "key"), [({"shards": "s2"}, SHARDS), ({"weights": "b2"}, BACKBONE)])
def test_seeds_of_other_weights_or_data_are_never_averaged(base, spec, changed, key):
    runs = [made(base), made(base, seed=1, **changed)]
    with pytest.raises(RunFailed) as error:
        fill_table(runs, spec)
    assert key in str(error.value) and runs[1].run in str(error.value) and "--where run=" in str(error.value)


def test_seeds_of_the_same_weights_and_data_are(base, spec):
    (entry, *_) = fill_table([made(base), made(base, seed=1)], spec).entries()
    assert entry.n_seeds == 2


def test_a_run_that_recorded_no_inputs_is_not_taken_for_one_that_did(base, spec):
    with pytest.raises(RunFailed, match="None"):
        fill_table([made(base), dataclasses.replace(made(base, seed=1), artifacts={})], spec)


@pytest.mark.parametrize("control", [*LADDER, "shuffled_labels"])
def test_a_control_of_other_data_is_no_control(base, control):
    assert differing_inputs(made(base), made(base, control=control, shards="s2")) == [(SHARDS, "s1", "s2")]


def test_a_control_on_other_data_is_refused_in_a_table(base, spec):
    record = dataclasses.replace(base.metrics[0], controls={})
    run = dataclasses.replace(base, metrics=(record,))
    with pytest.raises(RunFailed, match=r"(?s)'random_weights'.*input/shards"):
        fill_table([made(run), made(run, control="random_weights", shards="s2", weights="b9")], spec)


def test_a_control_has_the_weights_that_its_kind_has(base):
    run = made(base)
    for control in LADDER:
        assert differing_inputs(run, made(base, control=control, weights="b9")) == []
    assert differing_inputs(run, made(base, control="shuffled_labels", weights="b9")) == [(BACKBONE, "b1", "b9")]


def test_random_weights_of_two_seeds_are_two_draws_of_one_control(base):
    draw = [made(base, control="random_weights", weights=f"b{i}") for i in (1, 2)]
    drawn = [
        dataclasses.replace(run, config={**run.config, "backbone": {"path": "toy", "random_seed": i}})
        for i, run in enumerate(draw)
    ]
    assert differing_inputs(*drawn) == []
    assert differing_inputs(*draw) == [(BACKBONE, "b1", "b2")]  # of one seed: two networks


@pytest.mark.parametrize(
    "section",
    [
        {"features": {"placement": "memory", "latent_cache": "kept", "source": "live", "store": "x", "seed": 3}},
        {"backbone": {"path": "toy", "max_rows_per_pass": 8, "compile": True, "channels_last": False}},
        {"backbone": {"path": "toy", "cpu_kernels": "auto"}},
        {"backbone": {"path": "toy", "device": "cuda"}},
        {"trainer": {"log_every_steps": 5, "strategy": "ddp", "accelerator": "gpu", "resume": False}},
        {"probe": {"kind": "classifier", "name": "linear", "grid": {"seed": [1]}}},  # a member of a grid of seeds
        {"probe": {"kind": "classifier", "name": "linear", "batched": True}, "data": {"path": "toy", "num_workers": 4}},
    ],
    ids=str,
)  # fmt: skip
def test_where_and_how_fast_a_run_ran_keeps_no_seeds_apart(base, spec, section):
    (entry, *_) = fill_table([made(base), made(base, seed=1, **section)], spec).entries()
    assert entry.n_seeds == 2


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"backbone": {"path": "toy", "dtype": "bfloat16"}}, "config.backbone.dtype"),
        ({"trainer": {"precision": "bf16-mixed"}}, "config.trainer.precision"),
        ({"features": {"shuffle": "rows"}}, "config.features.shuffle"),
        ({"probe": {"kind": "classifier", "name": "linear", "params": {"rows": 4}}}, "config.probe.params.rows"),
    ],
)
def test_what_changes_numbers_keeps_results_apart(base, spec, section, key):
    """A key of a probe is its own, whatever other sections call theirs."""
    with pytest.raises(RunFailed, match=key):
        fill_table([made(base), made(base, seed=1, **section)], spec)


def test_every_setting_that_is_left_out_exists():
    for key in aggregation._NOT_CONTENT:
        section, name, *_ = key.split(".")
        assert name in {field.name for field in dataclasses.fields(get_type_hints(RunConfig)[section])}, key


def test_control_of_a_run(base):
    assert control_of(base) is None and control_of(made(base, control="raw_pixels")) == "raw_pixels"
    assert control_of(dataclasses.replace(base, config={})) is None


def named(run, seed, **seeds):
    return dataclasses.replace(made(run, seed=seed), seeds={"run": seed, **seeds})


def test_what_the_seeds_vary_is_what_differs_between_results(base):
    def of(*runs):
        return varied([(run, run.metrics[0]) for run in runs])

    assert of(named(base, 0, start=0, order=0, noise=0), named(base, 1, start=1, order=1, noise=0)) == (
        "start",
        "order",
    )
    assert of(named(base, 0, start=0, order=0), named(base, 1, start=1, order=0)) == ("start",)  # a grid of seeds
    assert of(named(base, 0, noise=0), named(base, 0, noise=1)) == ("noise",)
    assert of(named(base, 0), named(base, 1)) == () and of(named(base, 0, random_weights=0)) == ()
    assert of(named(base, 0, random_weights=0), named(base, 0, random_weights=1)) == ()  # the weights were trained


def test_a_result_that_names_its_seeds_is_the_same_measurement_as_one_that_does_not(base, spec):
    both = [named(base, 0), named(base, 0, start=0, order=0)]
    assert fill_table(both, spec).entries()[0].n_seeds == 1
    apart = [named(base, 1), named(base, 1, start=1, order=0)]  # a member of a grid: another order
    assert fill_table(apart, spec).entries()[0].n_seeds == 2


def test_tables_say_what_seeds_vary_and_leave_out_a_spread_of_nothing(base, spec):
    runs = [named(base, 0, start=0), named(base, 1, start=1)]
    text, lines = render(runs, spec), list(csv.DictReader(io.StringIO(render(runs, spec, "csv"))))
    measured = [line for line in lines if line["status"] == "measured"]
    assert {(line["spread"], line["seeds_vary"]) for line in measured} == {("", "nothing: all seeds give one value")}
    assert "no ± where they change nothing" in " ".join(text.split())
    runs[1] = dataclasses.replace(runs[1], metrics=made(base, value=0.1234).metrics)
    text, lines = render(runs, spec), list(csv.DictReader(io.StringIO(render(runs, spec, "csv"))))
    assert {line["seeds_vary"] for line in lines if line["status"] == "measured"} == {"initial weights"}
    assert all(float(line["spread"]) > 0 for line in lines if line["status"] == "measured")
    assert "± standard deviation over seeds (they vary: initial weights)" in " ".join(text.split())
