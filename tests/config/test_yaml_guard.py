"""YAML of others: no resolvers, bounded aliases, depth and numbers, before Hydra reads it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.config.compose import compose, load_run
from diffprobe.config.yaml_guard import check_interpolations, refuse_resolvers
from diffprobe.core.errors import ConfigError

Write = Callable[[str, str], Path]
SECRET = "s3cr3t-of-this-machine"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)


RESOLVERS = [
    "${oc.env:TOKEN}",
    "x${oc.env:TOKEN}y",
    "${oc.env:TOKEN,none}",
    "${oc.decode:${oc.env:TOKEN}}",
    "${oc.env:${name}}",
    "${ oc.env : TOKEN }",
    "${hydra:runtime.cwd}",
    "${now:%Y}",
    "${oc.select:seed}",
    "${oc.create:{a: 1}}",
    "${oc.dict.keys:data}",
    "${python_version:}",
    "${unknown:1}",
    "${${name}:TOKEN}",
]


@pytest.mark.parametrize("resolver", RESOLVERS)
def test_a_resolver_is_refused_in_one_line_wherever_it_is(write: Write, resolver: str) -> None:
    quoted = f"'{resolver}'"
    places = {
        "experiments/row.yaml": f"paper: {quoted}\n",
        "configs/probe/mine.yaml": f"kind: classifier\nname: {quoted}\n",
        "experiments/deep.yaml": f"probe:\n  params: {{a: [1, {quoted}]}}\n",
        "experiments/key.yaml": f"probe:\n  params: {{{quoted}: 1}}\n",
        "experiments/choice.yaml": f"defaults:\n  - override /probe: {quoted}\n",
    }
    for name, text in places.items():
        write(name, text)
    runs = [("row", []), (None, ["probe=mine"]), ("deep", []), ("key", []), ("choice", [])]
    runs += [(None, [f"output={resolver}"]), (None, [f"+output={resolver}"]), (None, [f"logger.tags=[{resolver}]"])]
    for experiment, settings in runs:
        with pytest.raises(ConfigError) as caught:
            compose(experiment, settings)
        assert SECRET not in str(caught.value) and "\n" not in caught.value.what
        if not (settings and settings[0].startswith("+")):
            assert "uses a resolver" in caught.value.what or "interpolation" in caught.value.what


@pytest.mark.parametrize("entry", ["override hydra/job_logging: none", "/hydra/launcher: basic", "override /hydra: x"])
def test_a_group_of_hydra_in_a_defaults_list_is_refused(write: Write, entry: str) -> None:
    write("experiments/row.yaml", f"defaults:\n  - {entry}\n")
    with pytest.raises(ConfigError, match=r"defaults of .*row.yaml.*settings of Hydra have no effect"):
        compose("row", [])


def test_the_line_of_a_resolver_is_named(write: Write) -> None:
    write("experiments/row.yaml", "seed: 3\npaper: ${oc.env:TOKEN}\n")
    with pytest.raises(ConfigError, match=r"experiments/row.yaml, line 2, uses a resolver"):
        load_run("row")
    write("experiments/outer.yaml", "defaults:\n  - /features: mine\n")
    write("configs/features/mine.yaml", "store: ${oc.env:TOKEN}\n")
    with pytest.raises(ConfigError, match=r"configs/features/mine.yaml, line 1, uses a resolver"):
        load_run("outer")


def test_plain_interpolation_stays(write: Write) -> None:
    write("experiments/row.yaml", "seed: 3\npaper: 'a: ${seed}, b'\ntable: ${paper_}\npaper_: x\n")
    tree = compose("row").tree
    assert (tree["paper"], tree["table"]) == ("a: 3, b", "x")
    refuse_resolvers("a photo: {class_name}, $5: ${seed}", "here")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": "${b}${b}", "b": "${c}${c}", "c": "x"}, "interpolated value"),
        ({"a": "${.b}", "b": 1}, "relative"),
        ({"a": "${${b}}", "b": "c"}, "interpolat"),
        ({"a": ["${b}"] * 1000, "b": "x" * 1000}, "insert 1,000,000 characters"),
    ],
)
def test_interpolations_do_not_grow(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_interpolations(tree)


def aliases(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (aliases(9), "values with its aliases expanded, more than 20,000"),
        ("a: &a [*a]\n", "an alias contains itself"),
        ("a: &a {b: *a}\n", "an alias contains itself"),
        ("a: " + "[" * 40 + "]" * 40 + "\n", "nested deeper than 32 levels"),
        ("a: " + "[" * 100_000, "nested too deeply|not readable YAML"),
        ("a: " + "9" * 5000 + "\n", "a number of 5,000 characters"),
        ("a: 0x" + "f" * 5000 + "\n", "a number of"),
        ("a: !!python/object/apply:os.system ['touch canary']\n", "tag .* is not allowed"),
        ("a: !!python/name:os.system\n", "tag .* is not allowed"),
        ("a: !!binary aGVsbG8=\n", "tag .* is not allowed"),
        ("a: !!set {b, c}\n", "tag .* is not allowed"),
        ("x" * 300_000, "300,000 bytes, more than a configuration may have"),
        ("a: *nothing\n", "not readable YAML.*undefined alias"),
        ("a: 1\n---\nb: 2\n", "not readable YAML"),
        ("a: \x00\n", "not readable YAML"),
    ],
    ids=range(15),
)
def test_a_file_that_grows_or_executes_is_refused(write: Write, tmp_path: Path, text: str, message: str) -> None:
    write("experiments/row.yaml", text)
    write("configs/data/bad.yaml", text)
    for experiment, settings in (("row", []), (None, ["data=bad"])):
        with pytest.raises(ConfigError, match=message) as caught:
            compose(experiment, settings)
        assert "\n" not in caught.value.what and len(caught.value.what) < 400
    assert not (tmp_path / "canary").exists()


def test_a_pipe_is_not_waited_for(write: Write, tmp_path: Path) -> None:
    write("experiments/other.yaml", "seed: 1\n")
    os.mkfifo(tmp_path / "experiments" / "row.yaml")
    with pytest.raises(ConfigError, match="experiments/row.yaml is not a regular file"):
        compose("row")


def test_small_aliases_and_merges_stay(write: Write) -> None:
    write("experiments/row.yaml", "probe:\n  params: &p {k: 1}\n  grid: {k: [1, 2]}\nx: &x {seed: 3}\n")
    assert compose("row").tree["probe"]["params"] == {"k": 1}


@pytest.mark.parametrize("number", ["1:2:3", "010", "-1:30", "1:30.5", "+0_7"])
def test_numbers_of_another_base_are_refused(write: Write, number: str) -> None:
    write("experiments/a.yaml", f"seed: {number}\n")
    with pytest.raises(ConfigError, match=r"experiments/a\.yaml, line 1: .*base"):
        load_run("a")


def test_ordinary_numbers_and_texts_with_colons_stay(write: Write) -> None:
    write("experiments/a.yaml", "seed: 1_0\npaper: '010'\ntable: a:1\nrow: \"1:30\"\ntrainer: {weight_decay: 0.05}\n")
    found = load_run("a")
    assert (found.seed, found.paper, found.table, found.row, found.trainer.weight_decay) == (
        10,
        "010",
        "a:1",
        "1:30",
        0.05,
    )
