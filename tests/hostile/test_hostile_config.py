"""Hostile experiment files, presets and settings: refused in a few lines, and no secret of the machine is printed.

Each case is tried with `config`, `extract` and `train`. A word in the environment and a file stand for the secrets.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.harness import Canary, Outcome, assert_ended, attempt_cli, canary

__all__ = ["canary"]  # a fixture

pytestmark = pytest.mark.slow

SECRET = "hunter2-7f3a9c"
CODES = "\x1b[2J\x1b]0;owned\x07\u202egpj.exe\x9b31m\u200b\u2066"
VERBS = (["config"], ["extract", "--quiet", "data.path=nowhere"], ["train"])
"""Without images, so that an extraction ends even where it has no use for what is hostile."""
DEEP = 100_000


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `experiments` and `configs`, and a secret in the environment and in a file."""
    for name in ("experiments", "configs/probe"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    monkeypatch.setenv("SECRET", SECRET)
    (tmp_path / "secret.txt").write_text(SECRET)
    return tmp_path


def run(root: Path, verb: list[str], *words: str) -> Outcome:
    return attempt_cli([*verb, *words], cwd=root)


def refused(root: Path, *words: str, names: tuple[str, ...] = ()) -> None:
    """Check that each verb refuses, prints no secret, and writes nothing."""
    before = sorted(root.rglob("*"))
    for verb in VERBS:
        outcome = run(root, verb, *words)
        assert_ended(outcome, *names)
        hides(outcome, root)
    assert sorted(root.rglob("*")) == before


def shown(root: Path, *words: str) -> None:
    """Check that a configuration is refused, or printed as text without secrets."""
    outcome = run(root, ["config"], *words)
    assert_ended(outcome, statuses=(0, 2))
    hides(outcome, root)


def hides(outcome: Outcome, root: Path) -> None:
    assert SECRET not in outcome.stdout + outcome.stderr
    for path in root.rglob("*"):
        assert not path.is_file() or path.name == "secret.txt" or SECRET.encode() not in path.read_bytes(), path


# ---- resolvers

RESOLVERS = [
    "${oc.env:SECRET}", "${oc.env:SECRET,x}", "${oc.decode:${oc.env:SECRET}}", "${oc.decode:'${oc.env:SECRET}'}",
    "${oc.create:{a: 1}}", "${oc.select:seed}", "${oc.deprecated:seed}", "${oc.dict.keys:backbone}",
    "${hydra:runtime.cwd}", "${hydra:job.name}", "${now:%Y}", "${python_version:}", "${ oc.env : SECRET }",
    "a${oc.env:SECRET}b", "${${seed}:SECRET}", "${oc.env:SEC${seed}RET}", "${oc.env:'SECRET'}", "${oc.env:SECRET",
    "\\\\${oc.env:SECRET}", "$${oc.env:SECRET}", "${oc\n.env:SECRET}", "${oc.env\u200b:SECRET}",
]  # fmt: skip


@pytest.mark.parametrize("text", RESOLVERS, ids=ascii)
@pytest.mark.parametrize("key", ["output", "paper", "probe.params.k", "data.path"])
def test_a_resolver_in_a_file_is_refused(root: Path, text: str, key: str) -> None:
    outer, _, inner = key.rpartition(".")
    value = json.dumps(text)
    block = (
        f"{outer.replace('.', ': {')}: {{{inner}: {value}}}" + "}" * outer.count(".") if outer else f"{key}: {value}"
    )
    (root / "experiments/x.yaml").write_text(f"{block}\n")
    refused(root, "experiment=x")


@pytest.mark.parametrize("text", RESOLVERS, ids=ascii)
def test_a_resolver_on_the_command_line_is_refused(root: Path, text: str) -> None:
    for setting in (f"output={text}", f"output='{text}'", f'paper="{text}"', f"logger.tags=[{text}]"):
        refused(root, setting)


PLACES: dict[str, tuple[str, str]] = {
    "key": ("experiments/x.yaml", '"${oc.env:SECRET}": 1\n'),
    "inner key": ("experiments/x.yaml", 'probe: {params: {"${oc.env:SECRET}": 1}}\n'),
    "defaults": ("experiments/x.yaml", "defaults:\n  - override /probe: ${oc.env:SECRET}\n"),
    "defaults group": ("experiments/x.yaml", "defaults:\n  - ${oc.env:SECRET}: x\n"),
    "defaults name": ("experiments/x.yaml", "defaults: ['${oc.env:SECRET}']\n"),
    "list": ("experiments/x.yaml", "features: {taps: ['${oc.env:SECRET}']}\n"),
    "kind": ("experiments/x.yaml", "kind: ${oc.env:SECRET}\n"),
    "preset": ("configs/probe/mine.yaml", "kind: ${oc.env:SECRET}\n"),
    "base": ("configs/base/run.yaml", "paper: ${oc.env:SECRET}\n"),
    "anchor": ("experiments/x.yaml", "paper: &a '${oc.env:SECRET}'\ntable: *a\n"),
    "folded": ("experiments/x.yaml", "paper: >\n  ${oc.env:\n  SECRET}\n"),
    "escaped": ("experiments/x.yaml", 'paper: "\\x24{oc.env:SECRET}"\n'),
    "escaped brace": ("experiments/x.yaml", 'paper: "$\\u007boc.env\\x3aSECRET}"\n'),
    "shared file": ("experiments/_shared.yaml", "paper: ${oc.env:SECRET}\n"),
    "split over keys": ("experiments/x.yaml", "table: oc.env\npaper: '${${table}:SECRET}'\n"),
    "merge key": ("experiments/x.yaml", "probe: {<<: {name: '${oc.env:SECRET}'}}\n"),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_resolver_in_any_place_is_refused(root: Path, place: str) -> None:
    file, text = PLACES[place]
    (root / "experiments/x.yaml").write_text("defaults: [_shared]\n" if "_shared" in file else "seed: 1\n")
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(text)
    refused(root, "experiment=x", *(["probe=mine"] if "mine" in file else []))


# ---- files that cannot be experiments

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
FILES: dict[str, str | bytes | Callable[[], bytes]] = {
    "alias bomb": BOMB,
    "alias bomb in a block": BOMB.replace("a: &a", "probe:\n  params:\n    a: &a", 1).replace("\n", "\n    "),
    "merge bomb": "a: &a {x: 1}\n" + "".join(f"k{i}: &k{i} {{<<: [{', '.join(['*a'] * 2000)}]}}\n" for i in range(20)),
    "alias of itself": "probe: &a {params: *a}",
    "list of itself": "probe: &a [*a]",
    "deep list": "paper: " + "[" * DEEP,
    "deep closed list": "paper: " + "[" * 900 + "]" * 900,
    "deep blocks": "".join(f"{' ' * i}a:\n" for i in range(900)),
    "deep flow": "{a: " * 1000 + "1" + "}" * 1000,
    "50 MB": lambda: b"paper: " + b"x" * (50 * 2**20),
    "50 MB of keys": lambda: b"".join(b"k%d: 1\n" % i for i in range(4_500_000)),
    "50 MB of one line": lambda: b"[" + b"a," * (25 * 2**20) + b"]",
    "python object": "paper: !!python/object/apply:builtins.open ['{canary}', 'w']",
    "python new": "paper: !!python/object/new:os.system ['touch {canary}']",
    "python name": "paper: !!python/name:os.system",
    "python module": "paper: !!python/module:os",
    "python tuple": "features: {taps: !!python/tuple [mid_block]}",
    "own tag": "paper: !secret x",
    "long tag": "paper: !" + "x" * 5000 + " y",
    "tag of codes": "paper: !<\u200b\u2066> y",
    "binary": "paper: !!binary aGVsbG8=",
    "set": "paper: !!set {a, b}",
    "omap": "paper: !!omap [a: 1]",
    "target": "probe: {params: {_target_: os.system, _args_: ['touch {canary}']}}",
    "hydra": "hydra: {run: {dir: /tmp/x}}",
    "hydra search path": "hydra: {searchpath: ['file:///etc']}",
    "hydra callbacks": "hydra: {callbacks: {a: {_target_: os.system}}}",
    "hydra in defaults": "defaults:\n  - override hydra/job_logging: colorlog\n",
    "defaults outside": "defaults: [../../../etc/passwd]",
    "defaults absolute": "defaults: [/etc/passwd]",
    "defaults of itself": "defaults: [x]",
    "defaults package": "defaults: [/probe@backbone: topk]",
    "defaults a text": "defaults: x",
    "defaults of numbers": "defaults: [1, {2: 3}]",
    "defaults unknown group": "defaults:\n  - override /nothing: x\n",
    "defaults unknown choice": "defaults:\n  - override /probe: nothing\n",
    "package header": "# @package hydra\nrun: {dir: x}\n",
    "package of codes": "# @package a.b.\x85c\nx: 1\n",
    "empty list": "[]",
    "text": "x",
    "number": "1",
    "nul": "paper: \0",
    "control code": "paper: \x1b[2J",
    "bell": "paper: x\x07",
    "not utf8": b"paper: \xff\xfe",
    "utf16 without mark": "paper: x".encode("utf-16-le"),
    "tab": "paper:\n\t- x",
    "two documents": "paper: x\n---\npaper: y\n",
    "unknown kind": "kind: nothing",
    "kind of codes": f"kind: {json.dumps(CODES)}",
    "kind a list": "kind: [x]",
    "unknown key": "papre: x",
    "key of codes": f"{json.dumps(CODES)}: 1",
    "key true": "on: 1",
    "key null": "null: 1",
    "key number": "1: 1",
    "key list": "? [a, b]\n: 1",
    "key mapping": "? {a: b}\n: 1",
    "key nested codes": f"probe: {{{json.dumps(CODES)}: 1}}",
    "key twice": "seed: 1\nseed: 2",
    "inner key twice": "probe: {name: a, name: b}",
    "seed text": "seed: x",
    "seed float": "seed: 1.5",
    "seed true": "seed: true",
    "seed null": "seed: null",
    "seed long": "seed: " + "9" * 5000,
    "seed list empty": "seed: []",
    "seed list twice": "seed: [1, 1]",
    "seed list of lists": "seed: [[0], 1]",
    "seed list long": "seed: [" + "9" * 5000 + "]",
    "seed date": "seed: 2020-13-45",
    "seed base 60": "seed: 1:2:3",
    "block as text": "backbone: emoji-sd",
    "block as list": "backbone: [x]",
    "block null": "backbone: null",
    "rate nan": "trainer: {learning_rate: .nan}",
    "rate infinite": "trainer: {learning_rate: .inf}",
    "rate overflow": "trainer: {learning_rate: 1.0e+999}",
    "rate long": "trainer: {learning_rate: " + "9" * 400 + "}",
    "decay infinite": "trainer: {weight_decay: -.inf}",
    "snr nan": "features: {snr: [.nan]}",
    "seed octal": "seed: 010",
    "timestep endless": "features: {timesteps: [" + "9" * 4000 + "]}",
    "timesteps many": "features: {timesteps: [" + ",".join(map(str, range(30_000))) + "]}",
    "batch zero": "data: {batch_size: 0}",
    "cap zero": "data: {caps: {label: 0}}",
    "published": "published: {metric: m, value: .nan, tolerance: 1.0, source: s, provenance: p}",
    "interpolation of itself": "paper: ${paper}",
    "interpolation cycle": "paper: ${table}\ntable: ${paper}",
    "interpolation growing": "paper: ${table}${table}\ntable: ${row}${row}\nrow: " + "x" * 1000,
    "interpolation of a block": "probe: {params: {a: '${probe}'}}",
    "interpolation unknown": "paper: ${nothing.here}",
    "interpolation relative": "probe: {params: {k: '${..name}'}}",
    "interpolation open": "paper: ${",
    "interpolation empty": "paper: ${}",
    "interpolation deep": "paper: " + "${" * 5000 + "}" * 5000,
    "interpolation many": "paper: '" + "${seed}" * 30_000 + "'",
    "missing": "paper: ???",
    "experiment": "experiment: other",
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_experiment_is_refused(root: Path, name: str, canary: Canary) -> None:
    content = FILES[name]
    if isinstance(content, str):
        content = content.replace("{canary}", str(canary.path)).encode()
    (root / "experiments/x.yaml").write_bytes(content if isinstance(content, bytes) else content())
    refused(root, "experiment=x")


@pytest.mark.parametrize("place", ["experiments/x.yaml", "configs/probe/mine.yaml", "configs/base/run.yaml"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "zeros", "loop", "secret", "sparse"])
def test_a_place_that_is_no_file_is_refused(root: Path, place: str, kind: str) -> None:
    (root / "experiments/x.yaml").write_text("seed: 1\n")
    path = root / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    makes: dict[str, Callable[[], object]] = {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "zeros": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path),
        "secret": lambda: path.symlink_to(root / "secret.txt"),
        "sparse": lambda: (path.touch(), os.truncate(path, 64 * 2**30)),
    }
    makes[kind]()
    is_replaced = "base" in place and kind not in ("secret", "sparse")  # by the shipped base, which is then found
    for verb in VERBS:
        outcome = run(root, verb, "experiment=x", "probe=mine" if "probe" in place else "seed=2")
        assert_ended(outcome, statuses=(0, 2) if is_replaced else (2,))
    assert not (root / "runs").exists() or is_replaced


# ---- settings

SETTINGS: list[str] = [
    "hydra.run.dir=x", "hydra/launcher=x", "hydra=x", "hydra.searchpath=[file:///etc]", "+hydra.run.dir=x",
    "--hydra-help", "~probe", "~seed=0", "+seed=1", "++seed=1", "seed=", "seed=x", "seed=1.5", "seed=true",
    "seed=null", "seed=nan", "seed=[0,1]", "seed=0,1", "seed=range(0,3)", "seed=choice(1,2)", "seed=glob(*)",
    "seed=" + "9" * 5000, "seed=1e999", "seed={a: 1}", "seed=[" + "[" * 3000, "seed={" * 500, "seed='x", 'seed="x',
    "trainer.learning_rate=inf", "trainer.learning_rate=nan", "trainer.learning_rate=-1", "trainer.max_epochs=0",
    "trainer.learning_rate=1e999", "features.timesteps=[nan]", "features.taps=[]", "features.taps=mid_block",
    "features.taps=[[mid_block]]", "features.timesteps=[" + "9" * 400 + "]", "features.timesteps=[-1]",
    "features.timesteps=[99999999]", "features.taps=[../../x]", f"features.taps=[{CODES}]", "features.pool=gridx",
    "features.snr=[-1.0]",
    "features.pool=grid99999999999", "probe=nothing", "probe=../../../etc/passwd", "probe=", f"probe={CODES}",
    "nothing=x", "nothing.at.all=1", "backbone=x/y", "backbone.path=", f"backbone.path={CODES}",
    "backbone.path=a\nb", "backbone.path=/dev/zero", "backbone.path=/proc/self/mem", "backbone.path=../" * 3,
    "data.path=a\nb", f"data.path={CODES}", "data.path=/dev/zero", "data.path=/etc/passwd", "data.path=",
    "data.path=" + "x" * 5000, "data.limit=-1", "data.limit=" + "9" * 30, "data.fields.image=[]",
    "data.fields.json=JSON",
    "data.caps.label=-1", "experiment=nothing", "experiment=../../secret", f"experiment={CODES}", "experiment=",
    "experiment=a\nb", "experiment=" + "x" * 5000, "experiment=/etc/passwd", "=1", "=", "", "a.b", f"{CODES}=1",
    "a\nb=1", "a" * 5000 + "=1", "a." * 3000 + "a=1", "probe.params.k=" + "(" * 3000, "probe.params.__class__=1",
    "probe.params={_target_: os.system}", "probe.name=../../../tmp/x", "probe.name=__init__", f"probe.name={CODES}",
    "probe.kind=os", "logger=wandb.x", "backbone.device=cuda:99999999999999999999", f"backbone.device={CODES}",
    "backbone.device=meta", "features.store=/dev/null/x", "seed=${paper}", "paper=${paper}", "paper=${", "paper=${}",
    "seed=${..x}", "paper='${" + "x" * 3000 + "}'",
]  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda text: ascii(text)[:40])
def test_a_hostile_setting_is_refused(root: Path, setting: str) -> None:
    """`config` may accept what only the data or the model show to be wrong; then the other verbs refuse it."""
    shown(root, "--", setting)
    for verb in VERBS[1:]:
        outcome = run(root, verb, "--", setting)
        assert_ended(outcome)
        hides(outcome, root)
    assert {path.name for path in root.iterdir()} <= {"experiments", "configs", "secret.txt", "runs"}


HARMLESS = ["paper=a\nb", f"paper={CODES}", "paper='\x1b[31m'", "output=a\nb", "output=~/x", "paper=$(touch owned)",
            "paper=`touch owned`", "paper=;touch owned", "paper=" + "x" * 100_000, "paper=<script>", "paper=%s{0}",
            "paper=\u202e", "paper=\ud800", "table=../../etc/passwd", "logger.tags=[a]"]  # fmt: skip


@pytest.mark.parametrize("setting", HARMLESS, ids=lambda text: ascii(text)[:40])
def test_any_text_is_printed_as_text_or_refused(root: Path, setting: str) -> None:
    shown(root, "--", setting)
    outcome = run(root, ["train", "--check"], "--", setting)
    assert_ended(outcome, statuses=(0, 2))
    assert not list(root.rglob("owned")) and not (root / "runs").exists()


def test_a_secret_does_not_reach_a_result(root: Path, tiny_sd: Path, tiny_shards: Path) -> None:
    """Also where a run is complete: the environment is kept out of results, stores and logs."""
    words = [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}", "features.taps=[mid_block]",
        "features.timesteps=[20]", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "paper=$SECRET",
    ]  # fmt: skip
    for verb in (["extract", "--quiet"], ["train"]):
        outcome = run(root, verb, *words)
        assert outcome.status == 0, outcome.stderr
        hides(outcome, root)
    assert list(root.rglob("result.json"))
