"""Dependencies in pyproject.toml are those that the package imports, and each has an exact version."""

import ast
import re
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_IMPORTED = {"accelerate": "diffusers needs it to load weights without a second copy in memory"}
"""Declared package that no file of diffprobe imports -> why it is needed."""
MODULES = {
    "pillow": "PIL", "pyyaml": "yaml", "hydra-core": "hydra", "huggingface-hub": "huggingface_hub",
    "scikit-learn": "sklearn",
}  # fmt: skip
"""Package -> its module, where the names differ."""
OPTIONAL = {
    "sae_lens", "dictionary_learning", "sparsify", "overcomplete", "torchvision", "wandb_workspaces",
    "datasets", "torchao",
}  # fmt: skip
"""Modules of the extras `peers`, `wandb`, `hub`, `quantize` and `dev`, which a command imports if they are there and
else names."""


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in requirements}


@cache
def imported() -> dict[str, str]:
    """Return the top-level modules that files of diffprobe import, each with one of the files."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "diffprobe").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {module.partition(".")[0]: path.relative_to(ROOT).as_posix() for module in modules}
    return {module: file for module, file in found.items() if module not in {*sys.stdlib_module_names, "diffprobe"}}


def test_what_is_imported_is_declared() -> None:
    declared = {MODULES.get(name, name) for name in names(PROJECT["dependencies"])}
    missing = {module: file for module, file in imported().items() if module not in declared | OPTIONAL}
    assert not missing, f"add to dependencies: {missing}"


def test_what_is_declared_is_imported() -> None:
    declared = names(PROJECT["dependencies"])
    unused = {name for name in declared if MODULES.get(name, name) not in imported()}
    assert unused == set(NOT_IMPORTED), f"drop from dependencies, or add to NOT_IMPORTED with the reason: {unused}"


@pytest.mark.parametrize("extra", ["", "dev", "docs", "hub"])
def test_what_make_installs_has_an_exact_version(extra: str) -> None:
    requirements = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    pinned = [line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    canonical = {re.sub(r"[-_.]+", "-", name).lower() for name in pinned}
    assert not {re.sub(r"[-_.]+", "-", name).lower() for name in names(requirements)} - canonical
