"""A table of a paper against golden files: inside and outside the tolerance, missing, failed, two digests."""

import dataclasses
from pathlib import Path

import pytest

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import RunFailed
from diffprobe.core.failure import Failure, note_failure
from diffprobe.core.result import MetricRecord, RunResult, write_result
from diffprobe.report.failed_runs import with_failures
from diffprobe.report.table import FORMATS, build_table
from diffprobe.report.table_data import fill_table

GOLDEN = Path(__file__).parent / "golden"
SUFFIXES = {"markdown": "md", "csv": "csv", "latex": "tex"}
NAMES = ("inside", "outside", "missing", "failed", "unpublished")
PUBLISHED = {"inside": 0.82, "outside": 0.82, "missing": 0.5, "failed": 0.4}
TABLE = f"""\
title: A table of a paper
caption: Every way in which a row can end.
metric: accuracy
filter: {{experiment: paper, kind: classifier, split: test}}
rows:
  - {{field: experiment, title: row, values: [{", ".join(f"paper/{name}" for name in NAMES)}]}}
columns: {{field: target, values: [label]}}
number: {{scale: 100, decimals: 1, unit: "%"}}
published:
""" + "".join(
    f"""\
  - where: {{experiment: paper/{name}, target: label}}
    value: {value}
    tolerance: 0.02
    source: Nobody et al. 2025, Table {i}
    provenance: "{"read in the paper" if i < 3 else "second hand: a later paper names it"}"
"""
    for i, (name, value) in enumerate(PUBLISHED.items(), 1)
)
CONFIG = {
    "control": "none", "seed": 0, "backbone": {"path": "toy"}, "data": {"path": "toy", "batch_size": 8},
    "features": {"taps": ["mid_block"], "timesteps": [25], "condition": "empty"},
    "probe": {"kind": "classifier", "name": "linear", "cell": None, "targets": ["label"], "grid": {}},
}  # fmt: skip


def result(name: str, value: float, run: str | None = None, **data) -> RunResult:
    record = MetricRecord(
        name="accuracy",
        value=value,
        split="test",
        n=100,
        cell="mid_block@t25:empty:mean",
        target="label",
        probe="linear",
    )
    config = {**CONFIG, "experiment": f"paper/{name}", "data": {**CONFIG["data"], **data}}
    return RunResult(
        run=run or f"run-{name}", experiment=f"paper/{name}", kind="classifier",
        config=config, config_digest=digest_json(config),
        git_commit=None, versions={}, seeds={"run": 0}, hardware={}, started="2026-11-01T12:00:00+00:00",
        wall_time_s=2.0, metrics=(record,), artifacts={}, wandb_run_id=None,
    )  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Folder of results of the table `paper`, which is on the search path."""
    folder = tmp_path / "experiments" / "paper"
    folder.mkdir(parents=True)
    (folder / "table.yaml").write_text(TABLE)
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    runs = tmp_path / "runs"
    for name, value in (("inside", 0.83), ("outside", 0.7), ("unpublished", 0.6)):
        write(runs, result(name, value))
    note_failure(
        runs / "paper/failed/run-failed",
        {**CONFIG, "experiment": "paper/failed"},
        ArithmeticError("loss is <nan> & 5%"),
    )
    return runs


def write(runs: Path, made: RunResult) -> None:
    folder = runs / made.experiment / made.run
    folder.mkdir(parents=True)
    write_result(made, folder / "result.json")


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_of_a_paper_equals_the_golden_file(study, format):
    assert build_table("paper", study).render(format) == (GOLDEN / f"paper.{SUFFIXES[format]}").read_text()


def test_a_run_that_succeeds_after_all_is_not_failed(study):
    write(study, result("failed", 0.41, run="again"))
    text = build_table("paper", study).to_markdown()
    assert "failed:" not in text and "41.0 (40.0 \\[d\\], +1.0)" in text.replace("[d]", "\\[d\\]")


def test_two_runs_of_one_entry_with_different_digests_are_refused_and_both_named(study):
    write(study, result("inside", 0.5, run="other", batch_size=16))
    with pytest.raises(RunFailed) as found:
        build_table("paper", study)
    message = str(found.value)
    assert "run-inside" in message and "other" in message and "config.data.batch_size: " in message
    assert "8" in message and "16" in message and "paper/inside" in message


def failure(**changes) -> Failure:
    probe = {**CONFIG["probe"], **changes.pop("probe", {})}
    features = {**CONFIG["features"], **changes.pop("features", {})}
    config = {**CONFIG, "probe": probe, "features": features, **changes}
    return Failure(run="r", experiment="toy/new", config=config, error="NonFinite", message="nan")


@pytest.mark.parametrize(
    ("changes", "marked"),
    [
        ({"probe": {"targets": ["label"]}, "features": {"taps": ["up_blocks.1"], "timesteps": [200]}}, True),
        ({"probe": {"targets": ["label"]}, "features": {"taps": ["up_blocks.*"], "timesteps": [25, 200]}}, True),
        ({"probe": {"targets": ["label"], "cell": "up_blocks.1@t200"}, "features": {"taps": ["mid_block"]}}, True),
        ({"probe": {"targets": ["group"]}, "features": {"taps": ["up_blocks.*"], "timesteps": [200]}}, False),
        ({"probe": {"targets": ["label"], "cell": "up_blocks.1@t25"}}, False),
        ({"probe": {"targets": ["label"], "name": "mlp"}, "features": {"taps": ["up_ft1"], "timesteps": [200]}}, False),
        ({"probe": {"targets": ["label"], "kind": "sae"}, "features": {"taps": ["up_ft1"], "timesteps": [200]}}, False),
    ],
)
def test_the_entries_of_a_failed_run_are_those_of_its_configuration(results, spec, changes, marked):
    table = fill_table(results, spec)  # its only empty entry: target label, up_blocks.1, t = 200
    found = with_failures(table, [failure(**changes)])
    assert [entry.failure is not None for entry in found.entries()] == [False] * 11 + [marked]
    other = dataclasses.replace(failure(**changes), experiment="another")
    assert with_failures(table, [other]) == table
