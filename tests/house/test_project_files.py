"""CONTRIBUTING, CHANGELOG, CITATION, the hooks, the workflow and the Makefile agree with what is in the repository."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import diffprobe
from diffprobe.cli.main import verbs

ROOT = Path(__file__).resolve().parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
CODE = re.findall(r"`([^`\n]+)`", CONTRIBUTING) + re.findall(r"^    (.+)$", CONTRIBUTING, re.MULTILINE)
ADDITIONS = ("family", "probe", "data set", "metric", "objective", "table")


def targets() -> set[str]:
    """Return the targets of the Makefile."""
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def paths_in(texts: list[str]) -> set[str]:
    """Return what looks like a path in the repository: a known file name, or with a slash and no space or option."""
    found = {re.sub(r"::.*", "", text) for text in texts if re.fullmatch(r"\.?[\w./<>*-]+(::\w+)?", text)}
    return {text for text in found if "/" in text or re.search(r"\.(md|txt|toml|yaml|cff)$", text)}


def test_paths_in_contributing_exist() -> None:
    """A path with a placeholder, as in `folder/<name>.py`, stands for a file that a contributor adds to the folder."""
    folders = {path: path.partition("<")[0].rpartition("/")[0] if "<" in path else path for path in paths_in(CODE)}
    missing = {path for path, folder in folders.items() if not (ROOT / folder).exists()}
    assert missing <= {"table.yaml"}, missing  # next to the rows of any table


def test_a_path_is_told_from_other_code() -> None:
    texts = ["tests/a.py", "tests/a.py::test_b", "configs/<x>.yaml", "a.md", "make test", "match=", "slow", "-m slow"]
    assert paths_in(texts) == {"tests/a.py", "configs/<x>.yaml", "a.md"}


@pytest.mark.parametrize("addition", ADDITIONS)
def test_contributing_names_a_test_for_each_addition(addition: str) -> None:
    (row,) = [line for line in CONTRIBUTING.splitlines() if re.match(rf"\| an? (\w+ )?{addition} \|", line)]
    test = ROOT / row.split("|")[4].strip().strip("`")
    assert test.is_file() and "def test_" in test.read_text("utf-8")


def test_commands_in_contributing_exist() -> None:
    lines = [line.partition("#")[0].strip() for line in CODE]
    assert {line.split()[-1] for line in lines if re.match(r"(\w+=\w+ )?make ", line)} <= targets()
    assert {line.split()[1] for line in lines if line.startswith("diffprobe ")} <= set(verbs())


def test_the_changelog_has_this_version_first() -> None:
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert versions[0] == diffprobe.__version__ and versions[-1] == "0.1.0"
    assert versions == sorted(versions, key=lambda version: [*map(int, version.split("."))], reverse=True)


def test_the_citation_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # required by version 1.2.0
    assert citation["cff-version"] == "1.2.0" and citation["type"] in ("software", "dataset")
    assert all({"name"} <= author.keys() or {"family-names"} <= author.keys() for author in citation["authors"])
    assert citation["version"] == diffprobe.__version__
    assert citation["license"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]


def test_the_hooks_are_local() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    assert repo["repo"] == "local"
    assert {hook["id"] for hook in repo["hooks"]} == {"ruff", "ruff-format", "mypy", "lint-imports"}


def test_the_workflow_runs_ci_and_keeps_the_wheel() -> None:
    (job,) = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))["jobs"].values()
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert "dist/*.whl" in [step.get("with", {}).get("path") for step in job["steps"]]


def test_ci_runs_every_check() -> None:
    script = ROOT / ".ci/run"
    assert script.stat().st_mode & 0o111
    lines = re.findall(r"^(?:in_turn|beside) (.+)$", script.read_text("utf-8"), re.MULTILINE)
    listed = [target for line in lines for target in line.replace('"', "").split()]
    (of_make,) = re.findall(r"^ci: (.+)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(listed) == {"setup", *of_make.split()} <= targets() and len(listed) == len(set(listed))
    assert {"lint", "types", "docs", "test", "slow", "slurm", "notebooks", "wheel"} <= set(listed)


@pytest.mark.parametrize("failing", ["", "types", "test", "slurm", "wheel"])
def test_ci_stops_at_a_failing_target_and_says_so(failing: str, tmp_path: Path) -> None:
    fake = tmp_path / "bin/make"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "made $1"\n[ "$1" != "{failing}" ]\n')
    fake.chmod(0o755)
    folder = tmp_path / "clone/.ci"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / ".ci/run", folder / "run")
    path = os.pathsep.join([str(fake.parent), os.environ["PATH"]])
    done = subprocess.run(
        [str(folder / "run")], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert (done.returncode == 0) == (not failing), done.stdout
    made = re.findall(r"^made (\w+)$", done.stdout, re.MULTILINE)
    assert failing in ("", *made) and ("slow" in made) == (failing not in ("types", "test"))
    assert done.stdout.count("made ") == len(made) and (failing or made[-2:] == ["notebooks", "wheel"])


def test_every_test_belongs_to_a_target() -> None:
    """`make test` runs what is not slow, `make slow` the slow tests but for what has a target of its own."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert '-m "not slow"' in makefile
    for file in re.findall(r"--ignore (\S+)", makefile):
        assert re.search(rf"-m slow (?:\S+ )*{re.escape(file)}(?: \S+)*$", makefile, re.MULTILINE), file


def test_the_source_distribution_lists_what_git_holds() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {f"/{file.partition('/')[0]}" for file in listed.stdout.splitlines()}
    assert set(build["sdist"]["include"]) == top
