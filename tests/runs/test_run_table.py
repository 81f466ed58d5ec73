"""A whole table in one process: what is done is kept, what fails does not stop the others."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.core.failure import failures_below
from diffprobe.core.result import RESULT_FILE, read_result
from diffprobe.core.signals import end_on_sigterm
from diffprobe.runs import run_table
from diffprobe.runs.run_table import plan_table, run_rows
from tests.runs.table_of_tiny import settings, write_table


@pytest.fixture
def tiny(tmp_path, monkeypatch, tiny_sd, tiny_shards):
    write_table(tmp_path, {"mid": "mid_block", "odd": "mid_blok", "up": "up_blocks.1"})
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    return settings(tiny_sd, tiny_shards, tmp_path)


def states(rows):
    return {row.name.rpartition("/")[2]: row.state for row in rows}


@pytest.mark.slow
def test_rows_run_once_and_one_that_cannot_run_does_not_stop_the_others(tiny, tmp_path, monkeypatch):
    rows = plan_table("paper/layers", tiny)
    assert states(rows) == {"mid": "missing", "odd": "invalid", "up": "missing"}
    assert "mid_blok" in str(rows[1].error) and rows[0].cost.passes == rows[2].cost.passes == 24
    assert not (tmp_path / "runs").exists() and not (tmp_path / "stores").exists()
    lines = []
    outcomes = run_rows(rows, announce=lines.append, progress=False)
    assert [type(outcome.error).__name__ for outcome in outcomes] == ["NoneType", "UnknownTap", "NoneType"]
    assert [line for line in lines if line.startswith("[")] == [
        f"[1/2] paper/layers/mid: {rows[0].folder}", f"[2/2] paper/layers/up: {rows[2].folder}"
    ]  # fmt: skip
    again = plan_table("paper/layers", tiny)
    assert states(again) == {"mid": "finished", "odd": "invalid", "up": "finished"}
    monkeypatch.setattr(run_table, "train", lambda config: pytest.fail("a finished row was trained"))
    assert [outcome.error is None for outcome in run_rows(again)] == [True, False, True]
    assert states(plan_table("paper/layers", tiny, again=True))["mid"] == "interrupted"  # its checkpoint is there


@pytest.mark.slow
def test_a_row_is_the_run_that_train_makes(tiny, tmp_path):
    from diffprobe.runs.experiment import load_experiment, train

    (tmp_path / "experiments/paper/layers/odd.yaml").unlink()
    rows = plan_table("paper/layers", tiny)
    run_rows(rows, progress=False)
    ours = [read_result(row.folder / RESULT_FILE).metrics for row in rows]
    for row in rows:
        train(load_experiment(None, row.settings))
    assert [read_result(row.folder / RESULT_FILE).metrics for row in rows] == ours


@pytest.mark.slow
def test_a_row_that_fails_is_noted_until_it_succeeds(tiny, tmp_path, monkeypatch):
    real, failing = run_table.train, {"paper/layers/mid"}

    def train(config):
        if config.experiment in failing:
            raise RuntimeError("diverged\nat step 3")
        return real(config)

    monkeypatch.setattr(run_table, "train", train)
    rows = plan_table("paper/layers", tiny)
    outcomes = run_rows(rows, progress=False)
    assert [outcome.error is None for outcome in outcomes] == [False, False, True]
    (failure,) = failures_below(tmp_path / "runs")
    assert (failure.experiment, failure.error, failure.message) == ("paper/layers/mid", "RuntimeError", "diverged")
    failing.clear()
    assert states(plan_table("paper/layers", tiny)) == {"mid": "missing", "odd": "invalid", "up": "finished"}
    run_rows(plan_table("paper/layers", tiny), progress=False)
    assert not list(failures_below(tmp_path / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_ends_all_rows(tiny, monkeypatch, error):
    def train(config):
        raise error

    monkeypatch.setattr(run_table, "train", train)
    with pytest.raises(error):
        run_rows(plan_table("paper/layers", tiny), progress=False)


@pytest.mark.slow
def test_an_interrupt_that_an_error_hides_is_no_failure_of_the_row(tiny, tmp_path, monkeypatch):
    def train(config):
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("a library was stopped halfway")

    monkeypatch.setattr(run_table, "train", train)
    with pytest.raises(KeyboardInterrupt), end_on_sigterm():
        run_rows(plan_table("paper/layers", tiny), progress=False)
    assert not list(failures_below(tmp_path / "runs"))


@pytest.mark.slow
def test_rows_share_the_cost_of_a_store(tiny, tmp_path):
    write_table(tmp_path, {"mid": "mid_block", "odd": "mid_block", "up": "mid_block"})
    rows = plan_table("paper/layers", [*tiny, "trainer.max_epochs=2"])
    assert [row.cost.passes for row in rows] == [24, 0, 0] and [row.cost.steps for row in rows] == [4, 4, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "fact"),
    [
        ("trainer.devices=2", "--submit"),
        ("data.val_split=validation", "validation"),
        ("probe.cell=mid_block@t21", "t21"),
        ("features.condition=template 'features.prompt={nothing}'", "nothing"),
    ],
)
def test_what_training_would_refuse_is_found_before(tiny, setting, fact):
    import shlex

    rows = plan_table("paper/layers", [*tiny, *shlex.split(setting)])
    assert {row.state for row in rows} == {"invalid"} and fact in str(rows[0].error)


def test_an_unknown_table_is_refused(tiny):
    with pytest.raises(ConfigError, match="paper/layers"):
        plan_table("paper/layer", tiny)
