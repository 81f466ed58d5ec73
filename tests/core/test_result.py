import dataclasses
import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from diffprobe import __version__
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import NonFinite, SchemaError
from diffprobe.core.result import MetricRecord, RunResult, StartTime, make_result, read_result, write_result
from tests.artifacts import edit

GOLDEN = Path(__file__).with_name("result_v2.json")


def record(**changes: object) -> MetricRecord:
    fields = {"name": "accuracy", "value": 0.5, "split": "val", "n": 8, "cell": "mid_block@t100:empty:mean"}
    return MetricRecord(**{**fields, **changes})  # type: ignore[arg-type]


def result(*metrics: MetricRecord) -> RunResult:
    return make_result(
        run="a",
        experiment="emoji/classifier",
        kind="classifier",
        config={"taps": ("mid_block",), "seed": 0},
        seeds={"seed": 0},
        metrics=metrics or (record(controls={"chance": 0.125}, detail={"captions": ["x"]}),),
        started_at=StartTime(time.time() - 5, time.monotonic() - 5),
        artifacts={"store": "ab" * 32},
    )


def test_a_result_comes_back_equal(tmp_path: Path) -> None:
    made = result()
    write_result(made, tmp_path / "deep" / "result.json")
    assert read_result(tmp_path / "deep" / "result.json") == made


def test_facts_about_the_machine_and_code_are_filled_in() -> None:
    made = result()
    assert made.config == {"taps": ["mid_block"], "seed": 0} and made.config_digest == digest_json(made.config)
    assert made.versions["diffprobe"] == __version__ and {"python", "torch"} <= set(made.versions)
    assert made.hardware["cores"] >= 1
    assert 5 <= made.wall_time_s < 600 and made.started.endswith("+00:00")
    assert made.git_commit is None or len(made.git_commit.removesuffix("+dirty")) == 40


def test_the_wall_time_does_not_follow_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    start = StartTime.now()
    now, wall = time.monotonic(), time.time()
    monkeypatch.setattr(time, "monotonic", lambda: now + 7)
    monkeypatch.setattr(time, "time", lambda: wall - 3600)
    made = make_result(run="a", experiment="", kind="sae", config={}, seeds={}, metrics=(), started_at=start)
    assert 7 <= made.wall_time_s < 8
    assert datetime.fromisoformat(made.started).timestamp() == pytest.approx(wall, abs=2)


@pytest.mark.parametrize(
    "bad", [{"value": float("nan")}, {"controls": {"chance": float("inf")}}, {"spread": float("nan")}], ids=str
)
def test_nan_is_never_written(tmp_path: Path, bad: dict) -> None:
    with pytest.raises(NonFinite, match=r"metrics\[0\]"):
        write_result(result(record(**bad)), tmp_path / "result.json")
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": 3}, "no list 'metrics'"),
        ({"metrics": [{"name": "x"}]}, "missing key 'value'"),
        ({"metrics": [3]}, "expected an object, found int"),
        ({"metrics": [{"name": "x", "value": "0.5", "split": "val", "n": 1}]}, "expected a number"),
        ({"metrics": [{"name": "x", "valeu": 1, "value": 1, "split": "val", "n": 1}]}, "nearest: value"),
        ({"wall_time": 3}, "unknown key 'wall_time', nearest: wall_time_s"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_broken_result_is_refused_by_file_and_key(tmp_path: Path, changes: dict, message: str) -> None:
    path = tmp_path / "result.json"
    write_result(result(), path)
    edit(path, **changes)
    with pytest.raises(SchemaError, match=message) as caught:
        read_result(path)
    assert str(path) in str(caught.value)


MEASURED = {"name": "x", "value": 1, "split": "val", "n": 1}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("value", True, "value is True, expected a number"),
        ("value", 10**30, "value is 1000000000000000000000000000000, expected a number"),
        ("value", None, "value is None, expected a number"),
        ("n", 1.5, "n is 1.5, expected a whole number"),
        ("n", -1, "n is -1, expected a number of samples"),
        ("n", 10**1000, "n is 1000.*, expected a whole number"),
        ("n_seeds", 0, "n_seeds is 0, expected at least 1"),
        ("spread", -0.5, "spread is -0.5, expected at least 0"),
        ("name", "", "name is '', expected a name"),
        ("name", ["x"], "name is ..x.., expected text"),
        ("cell", 3, "cell is 3, expected text"),
        ("controls", [0.5], "controls is .0.5., expected an object"),
        ("controls", {"chance": "0.5"}, "controls.chance is '0.5', expected a number"),
        ("controls", {"chance": None}, "controls.chance is None, expected a number"),
        ("detail", {"interval": [0.5]}, "detail is .*, expected an interval"),
        ("detail", {"interval": [0.5, 0.4]}, "detail is .*, expected an interval"),
        ("detail", {"interval": "01"}, "detail is .*, expected an interval"),
        ("detail", {"control_spread": {"random_direction": "x"}}, "detail.control_spread.random_direction is 'x'"),
        ("detail", {"n_classes_held": "8"}, "detail.n_classes_held is '8', expected a whole number"),
        ("detail", 7, "detail is 7, expected an object"),
    ],
    ids=ascii,
)
def test_every_field_of_a_metric_has_its_type_and_range(tmp_path: Path, key: str, value: object, expected: str) -> None:
    path = tmp_path / "result.json"
    write_result(result(), path)
    edit(path, metrics=[{**MEASURED, key: value}])
    with pytest.raises(SchemaError, match=rf"metrics\[0\]': {expected}"):
        read_result(path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"run": 3}, "run is 3, expected text"),
        ({"config": []}, r"config is \[\], expected an object"),
        ({"seeds": {"run": "0"}}, "seeds.run is '0', expected a whole number"),
        ({"versions": {"torch": 2.1}}, "versions.torch is 2.1, expected text"),
        ({"artifacts": {"store": 1}}, "artifacts.store is 1, expected text"),
        ({"wall_time_s": -1}, "wall_time_s is -1.0, expected at least 0"),
        ({"git_commit": 1}, "git_commit is 1, expected text"),
        ({"schema_version": 1}, "'schema_version' does not match"),
    ],
    ids=ascii,
)
def test_every_field_of_a_run_has_its_type(tmp_path: Path, changes: dict, expected: str) -> None:
    path = tmp_path / "result.json"
    write_result(result(), path)
    edit(path, **changes)
    with pytest.raises(SchemaError, match=expected):
        read_result(path)


def test_an_edited_result_is_refused_wherever_the_edit_is(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(result(), path)
    text = path.read_text()
    for old, new in (
        ('"value": 0.5', '"value": 0.9'),
        ('"chance": 0.125', '"chance": 0.025'),
        ('"n": 8', '"n": 80'),
        (f'"store": "{"ab" * 32}"', f'"store": "{"cd" * 32}"'),
        ('"mid_block"', '"up_blocks.0"'),
    ):
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(SchemaError, match=r"result\.json' was modified after it was written"):
            read_result(path)
    tree = json.loads(text)
    tree["header"]["inputs"] = {"store": "cd" * 32}  # the digest does not cover the header
    path.write_text(json.dumps(tree))
    with pytest.raises(SchemaError, match="'artifacts' does not match"):
        read_result(path)


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_numbers_that_json_does_not_have_are_refused_when_read(tmp_path: Path, number: str) -> None:
    path = tmp_path / "result.json"
    write_result(result(), path)
    path.write_text(path.read_text().replace('"value": 0.5', f'"value": {number}'))
    with pytest.raises(SchemaError, match=r"result\.json' is not a readable JSON file: .*number"):
        read_result(path)


def test_the_command_that_repeats_a_run_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_result(result(), path)
    edit(path, experiment="x; touch $HOME/y", header={**json.loads(path.read_text())["header"], "schema_version": 1})
    with pytest.raises(SchemaError, match=r"diffprobe train 'experiment=x; touch \$HOME/y', then"):
        read_result(path)


def test_results_of_schema_version_1_are_refused_with_the_command_that_makes_them_anew() -> None:
    with pytest.raises(SchemaError, match=r"(?s)schema version 1 .*diffprobe train experiment=emoji/classifier"):
        read_result(Path(__file__).with_name("result_v1.json"))


def test_results_of_schema_version_2_are_read() -> None:
    stored = read_result(GOLDEN)
    assert stored.metrics[0] == record(controls={"chance": 0.125}, detail={"captions": ["x"]})
    assert stored.config_digest == digest_json(stored.config)
    assert {f.name for f in dataclasses.fields(RunResult)} | {"header"} == set(json.loads(GOLDEN.read_text()))


def test_reading_results_needs_no_torch() -> None:
    read = f"from diffprobe.core.result import read_result; read_result({str(GOLDEN)!r})"
    code = f"import sys; {read}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
