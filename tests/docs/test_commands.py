"""Every `diffprobe` command of README, docs, notebooks, cards and demos parses, and its settings compose."""

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from diffprobe.cli.demo import split_name
from diffprobe.cli.main import VERBS
from diffprobe.config import search_path
from diffprobe.config.compose import compose, kind_of, load, split_experiment, validate
from diffprobe.config.kinds import kinds_of
from diffprobe.evaluation.use_settings import load_generations, load_use
from diffprobe.runs.ladder import each_rung
from diffprobe.runs.seeds import each_seed
from tests.docs.markdown import ROOT, Block, blocks, notebooks, pages, text_of

EXPERIMENTS = {"extract": None, "train": None, "demo": None, "config": None}
"""Verbs whose settings are composed alone -> the experiment that they take if none is named."""
DEMOS = [name for name in search_path.experiments() if kind_of(name) in kinds_of("demo")]
GUIDE = ROOT / "docs/users/guide.md"


def shell_commands() -> list[tuple[str, str]]:
    """Return (place, command) of every command that stands in a block of its own."""
    found = []
    for path in pages():
        for block in blocks(path):
            if block.language in ("", "bash", "sh", "console"):
                for line in block.code.splitlines():
                    if line.strip().startswith("diffprobe "):
                        found.append((str(block), line.strip()))
    return found


def inline_commands() -> list[tuple[str, str]]:
    """Return (place, command) of every command in a code span, with placeholders as they are."""
    found = []
    for path in (*pages(), *notebooks()):
        for span in re.findall(r"`(diffprobe [^`]+)`", text_of(path)):
            found.append((path.relative_to(ROOT).as_posix(), " ".join(span.split())))
    return list(dict.fromkeys(found))


def commands_of_demos() -> list[tuple[str, str]]:
    return [(name, command) for name in DEMOS for command in validate(compose(name)).next_steps]


def guide_files() -> dict[str, str]:
    """Return the YAML files that the guide lets its reader write: path -> content."""
    text, files = GUIDE.read_text("utf-8"), {}
    for match in re.finditer(r"^```yaml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        names = re.findall(r"`(experiments/[\w/.-]+\.yaml)`", text[: match.start()])
        files[names[-1]] = match[1]
    return files


def cluster_files() -> dict[str, str]:
    """Return the cluster file that slurm/README lets its reader write: path -> content."""
    (block,) = [block for block in blocks(ROOT / "slurm/README.md") if block.language == "yaml"]
    return {"configs/cluster/lab.yaml": block.code}


@pytest.fixture(autouse=True)
def _guide_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in {**guide_files(), **cluster_files()}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def parse(command: str) -> tuple[str, argparse.Namespace]:
    _, verb, *rest = shlex.split(command.partition(" > ")[0], comments=True)
    parser = argparse.ArgumentParser(prog=f"diffprobe {verb}", exit_on_error=False)
    VERBS.load(verb.replace("-", "_")).add_arguments(parser)
    return verb, parser.parse_args(rest)


def check_submit(arguments: argparse.Namespace) -> None:
    """Validate a command that is submitted as well as its cluster; `lab` is the one that slurm/README describes."""
    from diffprobe.cli.main import main
    from diffprobe.config.cluster import split_cluster

    words = arguments.command
    if "VERB" in words or "..." in words:
        return
    assert split_cluster(words)[0], "no cluster is named"
    assert main(["submit", *words, *([] if "--dry-run" in words else ["--dry-run"])]) == 0


def check(command: str) -> None:
    verb, arguments = parse(command)
    settings = list(getattr(arguments, "settings", ()))
    if verb in EXPERIMENTS:
        name, settings = split_name(settings) if verb == "demo" else (None, settings)
        experiment, settings = split_experiment(EXPERIMENTS[verb] if name is None else f"{name}/demo", settings)
        for rung in each_rung(compose(experiment, settings)):
            for composed in each_seed(rung):
                validate(composed)
    elif verb == "eval" and arguments.what in ("use", "generations"):
        {"use": load_use, "generations": load_generations}[arguments.what](
            [word for word in settings if word != "RUN_FOLDER"]
        )
    elif verb == "eval" and arguments.what != "selectors":  # takes folders of runs only
        of_runs = ("sae", "labels", "granularity", "lifetimes", "latents", "steering", "clusters", "joint")
        name = "run" if arguments.what in of_runs else "model"
        experiment, settings = split_experiment(None, settings)
        defaults = {
            "sae": "emoji/evaluate_sae", "backbone": "emoji/evaluate", "rates": "scenes/rates",
            "directions": "scenes/directions", "labels": "emoji/labels/evaluate",
            "granularity": "emoji/labels/granularity", "lifetimes": "emoji/lifetimes", "steering": "scenes/steering",
            "correspondence": "scenes/correspondence", "latents": "emoji/latent_use",
            "segmentation": "scenes/segmentation", "depth": "scenes/depth", "concepts": "scenes/concepts",
            "long-tail": "scenes/long_tail/evaluate", "clusters": "scenes/clusters",
            "joint": "scenes/diffdis_joint/evaluate",
        }  # fmt: skip
        default = defaults[arguments.what]
        subject = [] if arguments.what in ("correspondence", "segmentation", "depth", "concepts") else [f"{name}=x"]
        load(experiment or default, [*subject, *settings])
    elif verb == "submit":
        check_submit(arguments)
    elif verb == "run":
        from diffprobe.runs.table_rows import find_rows, table_name

        paths = [setting for setting in settings if "FOLDER" not in setting]
        assert find_rows(table_name(arguments.name), [setting for setting in paths if setting != "control=ladder"])
    elif verb == "table":
        from diffprobe.report import table_spec

        for name in arguments.what:  # a table, or folders of runs, which are there after other commands
            assert table_spec.has_spec(name) or name.split("/")[0] == "runs", name


def cases() -> list[Any]:
    """Return all commands; the tables among them, which compose dozens of experiments each, are slow."""
    tables = ("diffprobe run ", "diffprobe submit table ")
    return [
        pytest.param(*case, marks=[pytest.mark.slow] if case[1].startswith(tables) else [])
        for case in [*shell_commands(), *commands_of_demos()]
    ]


@pytest.mark.parametrize(("place", "command"), cases(), ids=lambda value: value)
def test_a_command_parses_and_composes(place: str, command: str) -> None:
    check(command)


@pytest.mark.parametrize(("place", "command"), inline_commands(), ids=lambda value: value)
def test_an_inline_command_names_what_exists(place: str, command: str) -> None:
    """A code span may leave arguments out; what it names has to exist: verb, subcommand, options."""
    verb, *rest = shlex.split(command)[1:]
    if verb == "VERB" or verb.startswith("-") or verb == "...":
        return
    parser = argparse.ArgumentParser(exit_on_error=False)
    VERBS.load(verb.replace("-", "_")).add_arguments(parser)
    known = set(parser._option_string_actions) | {"--traceback"}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction) and rest and not rest[0].startswith("-"):
            sub = rest[0]
            if not re.search(r"[A-Z|.<]", sub):
                assert sub in action.choices
                known |= set(action.choices[sub]._option_string_actions)
                for inner in action.choices[sub]._actions:
                    if isinstance(inner, argparse._SubParsersAction):
                        known |= {o for choice in inner.choices.values() for o in choice._option_string_actions}
    assert {word for word in rest if word.startswith("--")} <= known
    for word in rest:
        if word.startswith("experiment=") and word != "experiment=NAME" and "<" not in word:
            assert word.removeprefix("experiment=") in search_path.experiments()


def test_there_are_commands_to_test() -> None:
    assert len([place for place, _ in shell_commands() if place.startswith("README.md")]) >= 4
    assert len([place for place, _ in shell_commands() if place.startswith("docs/users/guide.md")]) >= 10
    assert len([place for place, _ in shell_commands() if "assets" in place]) >= 4
    assert len(inline_commands()) >= 15 and len(commands_of_demos()) >= 5
    assert set(guide_files()) == {"experiments/pets/classifier.yaml", "experiments/pets/table.yaml"}


@pytest.mark.parametrize(
    "command",
    ["diffprobe trian", "diffprobe table emojo", "diffprobe train trainer.max_epoch=3", "diffprobe extract --part 0/2"],
)
def test_a_wrong_command_would_be_found(command: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(command)


def test_block_names_its_place() -> None:
    assert str(Block("README.md", 3, "", "x")) == "README.md:3"
