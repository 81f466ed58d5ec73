"""Hostile result files, tables, published numbers, filters and run folders: refused in a few lines, or shown as text.

About 320 inputs. Each runs in a process of its own, with bounds on time and memory (`harness.py`).
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffprobe.core.terminal import printable
from tests.artifacts import seal
from tests.hostile.harness import MEMORY_MB, REFUSED, Canary, Outcome, attempt, attempt_cli, canary

__all__ = ["canary"]  # a fixture

pytestmark = pytest.mark.slow

REPORT = Path(__file__).parents[1] / "report"
RESULT = json.loads((REPORT / "results/seed0/result.json").read_text())
TABLE = (REPORT / "table.yaml").read_text()
CODES = "\x1b[2J\x1b]0;owned\x07\u202egpj.exe\x9b31m\r\u200b\u2066"
FORMULA = '=HYPERLINK("http://evil.example")'
DEEP = 100_000


def check(outcome: Outcome, *names: str, may_work: bool = False) -> None:
    """Check that an attempt was refused in printable lines, or (`may_work`) that its output is printable."""
    said = outcome.stderr[-3000:]
    assert "Traceback" not in said, said
    assert outcome.status == REFUSED or (may_work and outcome.status == 0), f"status {outcome.status}:\n{said}"
    for text in (outcome.stdout, outcome.stderr):
        assert printable(text) == text
    for name in names if outcome.status else ():
        assert name in outcome.stderr, f"the message lacks {name!r}:\n{said}"
    if outcome.status:
        first, *details = outcome.stderr.splitlines()
        assert first.partition(":")[0].isidentifier() and all(line.startswith("  ") for line in details), said
        assert max(map(len, (first, *details))) < 2200 and len(details) < 200
    assert outcome.peak_mb < MEMORY_MB and outcome.seconds < 30


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two results in `runs`, and the table that shows them in `configs`."""
    (tmp_path / "configs/experiments/toy").mkdir(parents=True)
    (tmp_path / "configs/experiments/toy/table.yaml").write_text(TABLE)
    shutil.copytree(REPORT / "results", tmp_path / "runs")
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path / "configs"))
    return tmp_path


def table(folder: Path, *words: str) -> Outcome:
    return attempt_cli(["table", "toy", "--results", str(folder / "runs"), *words], cwd=folder)


# ---- files that cannot be read as results


def text_of(**changes: Any) -> bytes:
    return json.dumps({**RESULT, **changes}).encode()


BYTES: dict[str, bytes] = {
    "empty": b"",
    "brace": b"{",
    "null": b"null",
    "list": b"[]",
    "number": b"1",
    "nul": b"\0" * 1000,
    "bom": b"\xef\xbb\xbf" + text_of(),
    "utf16": json.dumps(RESULT).encode("utf-16"),
    "latin1": text_of(run="x").replace(b'"x"', b'"\xe4"'),
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1\n",
    "deep list": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP,
    "deep inside": text_of().replace(b'"config"', b'"x": ' + b"[" * 2000 + b"]" * 2000 + b', "config"', 1),
    "twice": text_of().replace(b'"run"', b'"run": "a", "run"', 1),
    "long number": text_of(wall_time_s=0.125).replace(b"0.125", b"9" * 100_000),
    "long exponent": text_of(wall_time_s=0.125).replace(b"0.125", b"1e" + b"9" * 5000),
    "infinity": text_of(wall_time_s=float("inf")),
    "minus infinity": text_of(wall_time_s=float("-inf")),
    "nan": text_of(wall_time_s=float("nan")),
    "overflow": text_of(wall_time_s=0.125).replace(b"0.125", b"1e999"),
    "surrogate": text_of(run="\ud800"),
    "trailing": text_of() + b"{}",
    "comment": b"// x\n" + text_of(),
    "header null": text_of(header=None),
    "header list": text_of(header=["result"]),
    "header kind": text_of(header={"kind": {"a": 1}}),
    "header codes": text_of(header={"kind": CODES}),
    "header version": text_of(header={"kind": "result", "schema_version": 1}, experiment=f"$(touch x); {CODES}"),
    "header bool": text_of(header={"kind": "result", "schema_version": True}),
    "header huge": text_of(header={"kind": "result", "schema_version": 10**4000}),
    "no digest": text_of(header={**RESULT["header"], "digest": None}),
    "edited value": text_of().replace(b'"value": 0.8125', b'"value": 0.9999'),
    "edited control": text_of().replace(b'"chance": 0.25', b'"chance": 0.01'),
    "edited n": text_of().replace(b'"n": 50', b'"n": 5000'),
    "edited config": text_of().replace(b'"path": "toy"', b'"path": "tox"'),
    "edited inputs": text_of(header={**RESULT["header"], "inputs": {"input/shards": "00"}}),
    "many keys": json.dumps({f"k{i}": i for i in range(200_000)}).encode(),
    "one key often": b"{" + b",".join(b'"a":%d' % i for i in range(200_000)) + b"}",
}  # fmt: skip


@pytest.mark.parametrize("name", BYTES)
def test_a_file_that_is_no_result_is_named(folder: Path, name: str) -> None:
    (folder / "runs/seed0/result.json").write_bytes(BYTES[name])
    check(table(folder), "SchemaError", "seed0/result.json")


@pytest.mark.parametrize("seed", range(15))
def test_a_result_with_a_changed_byte_is_refused(folder: Path, seed: int) -> None:
    path, rng = folder / "runs/seed0/result.json", random.Random(seed)
    content = bytearray(path.read_bytes())
    places = [i for i, byte in enumerate(content) if chr(byte).isalnum()]
    place = rng.choice(places)
    content[place] ^= 1 << rng.randrange(7)
    path.write_bytes(content)
    made_by = json.dumps({"made_by": RESULT["header"]["made_by"]})[1:-1].encode()
    is_other = made_by not in content  # who wrote it is the one part that no digest covers
    check(table(folder), *(() if is_other else ("SchemaError", "seed0/result.json")), may_work=is_other)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.75, 0.99])
def test_a_truncated_result_is_refused(folder: Path, share: float) -> None:
    path = folder / "runs/seed0/result.json"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    check(table(folder), "SchemaError", "seed0/result.json")


def test_code_in_a_result_is_not_executed(folder: Path, canary: Canary) -> None:
    for content in (canary.pickle(), canary.torch_file(), canary.source().encode()):
        (folder / "runs/seed0/result.json").write_bytes(content)
        check(table(folder), "SchemaError", "seed0/result.json")


@pytest.mark.parametrize("kind", ["fifo", "folder", "zero", "endless", "loop", "gone", "sparse"])
def test_a_place_that_is_no_file_is_refused(folder: Path, kind: str) -> None:
    path = folder / "runs/seed0/result.json"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(64 * 2**30)
    else:
        path.symlink_to({"zero": "/dev/zero", "endless": "/dev/random", "loop": path, "gone": "nowhere"}[kind])
    check(table(folder), "seed0/result.json")


# ---- results with a digest that fits

METRIC = RESULT["metrics"][0]
VALUES: list[Any] = [None, True, "0.5", [], {}, 10**400, -(10**400), 1e308, -1e308, 5e-324]
FIELDS = ("value", "n", "split", "cell", "controls", "detail", "spread", "n_seeds")


@pytest.mark.parametrize("key", FIELDS)
def test_a_metric_of_any_type_is_refused_or_printed(folder: Path, key: str) -> None:
    for value in VALUES:
        put(folder, metrics=[{**METRIC, key: value}])
        check(table(folder), may_work=True)


def put(folder: Path, **changes: Any) -> None:
    (folder / "runs/seed0/result.json").write_text(json.dumps(seal({**RESULT, **changes})))


RUNS: dict[str, dict[str, Any]] = {
    "run is a list": {"run": ["x"]},
    "config is text": {"config": "x"},
    "config is empty": {"config": {}},
    "config with codes": {"config": {**RESULT["config"], CODES: CODES}},
    "control is a list": {"config": {**RESULT["config"], "control": ["random_weights"]}},
    "control is new": {"config": {**RESULT["config"], "control": CODES}},
    "deep config": {"config": {"a": json.loads("[" * 30 + "]" * 30)}},
    "seeds": {"seeds": {"run": 10**30}},
    "started": {"started": CODES},
    "metrics is an object": {"metrics": {"0": METRIC}},
    "metrics of numbers": {"metrics": [1, 2]},
    "no metric": {"metrics": []},
    "cell without end": {"metrics": [{**METRIC, "cell": "mid_block@t" + "9" * 5000}]},
    "cell with codes": {"metrics": [{**METRIC, "cell": f"{CODES}@t25:empty:mean"}]},
    "cell of nothing": {"metrics": [{**METRIC, "cell": ""}]},
    "target with codes": {"metrics": [{**METRIC, "target": CODES}]},
    "control with codes": {"metrics": [{**METRIC, "controls": {CODES: 0.5}}]},
    "control too large": {"metrics": [{**METRIC, "controls": {"chance": 1e308}}]},
    "interval": {"metrics": [{**METRIC, "detail": {"interval": [0.1, None]}}]},
    "classes": {"metrics": [{**METRIC, "detail": {"n_classes_held": "8"}}]},
    "many metrics": {"metrics": [METRIC] * 20_000},
    "unknown key": {CODES: 1},
    "artifacts": {"artifacts": {CODES: CODES}},
    "artifacts of numbers": {"artifacts": {"input/shards": 1}},
    "wall time": {"wall_time_s": -1},
    "experiment": {"experiment": f"toy/{CODES}"},
    "kind": {"kind": CODES},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("format", ["markdown", "csv", "latex"])
def test_a_result_of_any_content_is_refused_or_printed_as_text(folder: Path, name: str, format: str) -> None:
    put(folder, **RUNS[name])
    check(table(folder, "--format", format), may_work=True)


PUBLISHED: dict[str, Any] = {
    "is a list": [1],
    "is text": CODES,
    "empty": {},
    "value is text": {"metric": "accuracy", "value": "0.5", "tolerance": 0.1, "source": "s", "provenance": "p"},
    "value is huge": {"metric": "accuracy", "value": 10**400, "tolerance": 0.1, "source": "s", "provenance": "p"},
    "value overflows": {"metric": "accuracy", "value": -1.7e308, "tolerance": 0.1, "source": "s", "provenance": "p"},
    "tolerance": {"metric": "accuracy", "value": 0.5, "tolerance": -1, "source": "s", "provenance": "p"},
    "source": {"metric": "accuracy", "value": 0.5, "tolerance": 0.1, "source": CODES, "provenance": FORMULA},
    "where": {"metric": "accuracy", "value": 0.5, "tolerance": 0.1, "source": "s", "provenance": "p", "where": {}},
    "key": {"metric": "accuracy", CODES: 1},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_number_of_a_run_is_refused_or_printed(folder: Path, name: str) -> None:
    put(folder, config={**RESULT["config"], "published": PUBLISHED[name]})
    for format in ("markdown", "csv"):
        check(table(folder, "--format", format), may_work=True)


# ---- tables

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
SPECS: dict[str, str] = {
    "bomb": BOMB,
    "loop": "title: &a [*a]",
    "merge": "x: &x {title: t}\n<<: *x",
    "deep": "title: " + "[" * DEEP,
    "deep keys": "".join(f"{' ' * i}a:\n" for i in range(900)),
    "python": "title: !!python/object/apply:os.system [touch owned]",
    "binary": "title: !!binary aGVsbG8=",
    "set": "title: !!set {a, b}",
    "date": "title: 2020-13-45",
    "long number": TABLE.replace("value: 0.83", "value: " + "9" * 5000),
    "large number": TABLE.replace("value: 0.83", "value: " + "9" * 400),
    "nan": TABLE.replace("value: 0.83", "value: .nan"),
    "infinite tolerance": TABLE.replace("tolerance: 0.02", "tolerance: .inf"),
    "negative tolerance": TABLE.replace("tolerance: 0.02", "tolerance: -1"),
    "elsewhere": TABLE.replace("timestep: 200}", "timestep: 201}"),
    "scale": TABLE.replace("scale: 100", "scale: 1.0e+308"),
    "zero scale": TABLE.replace("scale: 100", "scale: 0"),
    "decimals": TABLE.replace("decimals: 1", "decimals: 10000000"),
    "endless axes": TABLE.replace("values: [25, 200]", f"values: {list(range(100_000))}"),
    "no axis": TABLE.replace("field: target", "field: nothing"),
    "axis of lists": TABLE.replace("{field: timestep", "{field: config.backbone"),
    "codes": TABLE.replace("Toy accuracy", json.dumps(CODES)[1:-1]),
    "labels": TABLE.replace('"sub_group | 20 & more"', json.dumps(f"{CODES}{FORMULA}")),
    "heading": TABLE.replace('"t = {value}"', json.dumps(f"{CODES} {{value}} {{0.__class__}} %s")),
    "formula": TABLE.replace("Nobody et al. 2025, Table 1", f"'{FORMULA}'"),
    "null": "null",
    "text": "x",
    "tables": TABLE + "tables: 3\n",
    "many tables": TABLE + "tables:\n" + "  - {title: x}\n" * 2000,
    "nul": "title: \0",
    "tab": "title:\n\t- x",
}


@pytest.mark.parametrize("name", SPECS)
def test_a_table_of_any_content_is_refused_or_printed_as_text(folder: Path, name: str) -> None:
    (folder / "configs/experiments/toy/table.yaml").write_text(SPECS[name])
    for format in ("markdown", "csv", "latex"):
        outcome = table(folder, "--format", format)
        check(outcome, may_work=True)
        assert f"\n{FORMULA}" not in outcome.stdout and f",{FORMULA}" not in outcome.stdout
    assert not (folder / "owned").exists()


def test_a_table_that_is_no_file_is_refused(folder: Path) -> None:
    path = folder / "configs/experiments/toy/table.yaml"
    for make in (
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.write_bytes(b"\xff\xfe\0"),
    ):
        path.unlink(missing_ok=True)
        make()
        check(table(folder), "table.yaml")


@pytest.mark.parametrize(
    "where",
    [
        "timestep=" + "[" * DEEP, "timestep=&a [*a]", "timestep=.nan", "timestep=" + "9" * 5000, "timestep=2020-13-45",
        f"{CODES}=1", f"tap={CODES}", "=1", "timestep", "tap={a: {b: c}}", "config.=1", "config." + "a." * 2000 + "=1",
        "tap=!!python/object/apply:os.system [touch owned]", "run=", "experiment=[]", "cell=x",
    ],
    ids=lambda text: ascii(text)[:30],
)  # fmt: skip
def test_a_filter_of_any_content_is_refused_or_finds_something(folder: Path, where: str) -> None:
    check(table(folder, f"--where={where}"), may_work=True)
    assert not (folder / "owned").exists()


@pytest.mark.parametrize("name", ["../../etc", CODES, "", "toy/../toy", "/etc", "x" * 5000, "toy\0"], ids=ascii)
def test_a_table_of_any_name_is_refused(folder: Path, name: str) -> None:
    check(attempt_cli(["table", "--results", str(folder / "runs"), "--", name], cwd=folder), "ConfigError")


# ---- run folders


def open_run(folder: str) -> None:
    """Open a trained run as `diffprobe eval sae` does."""
    from diffprobe.evaluation.load_sae_run import open_runs

    for run in open_runs(folder):
        for sae in run.saes().values():
            run.cells(sae)


def sae_result() -> dict[str, Any]:
    """Return a result that `open_run` reads: a valid configuration of an autoencoder without weights."""
    from diffprobe.config.compose import load_run
    from diffprobe.config.parse import to_tree

    tree = {key: value for key, value in to_tree(load_run("emoji/sae")).items() if key != "output"}
    return {**RESULT, "kind": "sae", "config": tree, "artifacts": {"probes/sae": "00" * 32}}


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    return sae_result()


Change = Callable[[dict[str, Any]], dict[str, Any]]
RUN_FOLDERS: dict[str, Change] = {
    "no weights": lambda tree: tree,
    "kind": lambda tree: {**tree, "kind": CODES},
    "no autoencoder": lambda tree: {**tree, "artifacts": {}},
    "outside": lambda tree: {**tree, "artifacts": {"../../../etc/passwd": "00"}},
    "absolute": lambda tree: {**tree, "artifacts": {"/etc/passwd": "00"}},
    "empty name": lambda tree: {**tree, "artifacts": {"": "00"}},
    "nul": lambda tree: {**tree, "artifacts": {"a\0b": "00"}},
    "long name": lambda tree: {**tree, "artifacts": {"x" * 5000: "00"}},
    "members": lambda tree: {**tree, "artifacts": {"members": "00", "members/..": "00"}},
    "member gone": lambda tree: {**tree, "artifacts": {f"members/{CODES}/probes/sae": "00"}},
    "config": lambda tree: {**tree, "config": {"probe": CODES}},
    "config codes": lambda tree: {**tree, "config": {**tree["config"], CODES: 1}},
    "config list": lambda tree: {**tree, "config": {**tree["config"], "features": [CODES]}},
    "config number": lambda tree: {**tree, "config": {**tree["config"], "seed": 1e300}},
}


@pytest.mark.parametrize("name", RUN_FOLDERS)
def test_a_run_folder_of_any_content_is_refused(tmp_path: Path, trained: dict[str, Any], name: str) -> None:
    (tmp_path / "result.json").write_text(json.dumps(seal(RUN_FOLDERS[name](trained))))
    check(attempt(open_run, tmp_path))


SETTINGS: dict[str, bytes] = {
    "no object": b"[]",
    "no settings": b"{}",
    "settings text": b'{"settings": "x"}',
    "cell list": b'{"settings": {"cell": ["x"]}}',
    "cell codes": json.dumps({"settings": {"cell": CODES}}).encode(),
    "cell without end": json.dumps({"settings": {"cell": "a@t" + "9" * 5000}}).encode(),
    "deep": b"[" * DEEP,
    "binary": b"\xff\xfe",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_a_probe_of_any_content_are_refused(tmp_path: Path, trained: dict[str, Any], name: str) -> None:
    from diffprobe.core.digest import digest_file

    probe = tmp_path / "probes/sae"
    probe.mkdir(parents=True)
    (probe / "probe.safetensors").write_bytes(b"x")
    (probe / "probe.json").write_bytes(SETTINGS[name])
    digest = digest_file(probe / "probe.safetensors")
    (tmp_path / "result.json").write_text(json.dumps(seal({**trained, "artifacts": {"probes/sae": digest}})))
    check(attempt(open_run, tmp_path))


# ---- what a demo finds and shows


def render(folder: str) -> None:
    """Render the report page of the results in a folder, and check that it is text."""
    from diffprobe.core.terminal import printable
    from diffprobe.report.collect import collect
    from diffprobe.report.pages.page import Page, render_page
    from diffprobe.report.table_spec import load_spec

    spec = load_spec(Path(folder) / "configs/experiments/toy/table.yaml")
    page = Page(title="t", lead="l", facts=(), results=tuple(collect(Path(folder) / "runs")), tables=(spec,))
    html = render_page(page)
    assert printable(html) == html and "<script" not in html and "owned\x07" not in html


@pytest.mark.parametrize("name", RUNS)
def test_the_page_of_any_result_is_refused_or_text(folder: Path, name: str) -> None:
    put(folder, **RUNS[name])
    check(attempt(render, folder), may_work=True)


@pytest.mark.parametrize("name", ["x", CODES, "$(touch owned)", "a\nb"], ids=ascii)
def test_a_folder_of_a_demo_with_foreign_results_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / name / "result.json").write_bytes(b"{")
    outcome = attempt_cli(["demo", "--check", f"output={tmp_path / 'out'}"], cwd=tmp_path)
    check(outcome, "ConfigError", "1 result(s) of other settings")
    assert not (tmp_path / "owned").exists()
