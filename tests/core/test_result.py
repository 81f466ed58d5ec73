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
        started_at=time.time() - 5,
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


def edit(path: Path, **changes: object) -> None:
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, **changes}))


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
