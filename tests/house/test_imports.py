"""What may be imported when: help and `import diffprobe` are light, tables need no torch, no two files need each other.

import-linter checks the layers of pyproject.toml; this file runs it, because its graph holds the imports inside
functions as well, and checks the imports of a running process, which no static graph holds.
"""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from diffprobe.cli.main import VERBS, verbs

ROOT = Path(__file__).resolve().parents[2]
TENSOR_LIBRARIES = {"torch", "diffusers", "transformers", "lightning", "torchmetrics", "wandb"}
HEAVY = TENSOR_LIBRARIES | {"hydra", "matplotlib", "numpy", "scipy", "PIL", "rich", "omegaconf", "yaml"}
MAX_MODULES = 235
"""How many modules `--help` may load, the standard library's included: import time is what start-up consists of."""


def loaded_after(code: str) -> set[str]:
    """Return the modules in a new process after it ran `code`, without the shape checks of the other tests."""
    code = f"import sys\n{code}\nprint('loaded:', *sorted(sys.modules))"
    environment = {**os.environ, "DIFFPROBE_SHAPE_CHECKS": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return set(done.stdout.rpartition("loaded:")[2].split())


def help_of(*verb: str) -> str:
    call = f"try: main([{', '.join(map(repr, verb))}])\nexcept SystemExit as end: assert not end.code"
    return f"from diffprobe.cli.main import main\n{call}"


@pytest.mark.parametrize("arguments", [[], ["--help"], *([verb, "--help"] for verb in verbs())], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    loaded = loaded_after(help_of(*arguments))
    assert not loaded & HEAVY
    assert len(loaded) <= MAX_MODULES


def test_importing_diffprobe_loads_nothing_heavy() -> None:
    assert not loaded_after("import diffprobe") & HEAVY


def test_every_verb_keeps_the_contract() -> None:
    for verb in verbs():
        module = VERBS.load(verb.replace("-", "_"))
        assert module.HELP and "\n" not in module.HELP
        assert callable(module.add_arguments) and callable(module.run)


@pytest.mark.parametrize("package", ["config", "report"])
def test_configurations_and_tables_need_no_torch(package: str) -> None:
    code = (
        f"import importlib, pkgutil, diffprobe.{package} as p\n"
        "for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.'): importlib.import_module(m.name)"
    )
    assert not loaded_after(code) & TENSOR_LIBRARIES


def test_no_module_needs_itself() -> None:
    """The graph is built from the source, so an import inside a function counts like one at the top of a file."""
    graph = grimp.build_graph("diffprobe", cache_dir=None)
    links = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    circles = strongly_connected(links)
    assert not circles, "modules that import each other:\n  " + "\n  ".join(" <-> ".join(circle) for circle in circles)


def test_the_graph_holds_imports_inside_functions() -> None:
    graph = grimp.build_graph("diffprobe", cache_dir=None)
    source = (ROOT / "diffprobe/cli/train.py").read_text()
    assert "    from diffprobe.runs" in source and "\nfrom diffprobe.runs" not in source
    assert any(
        name.startswith("diffprobe.runs") for name in graph.find_modules_directly_imported_by("diffprobe.cli.train")
    )


def test_the_layers_hold() -> None:
    """In a process of its own: import-linter turns off all loggers that exist."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert not done.returncode, done.stdout


def strongly_connected(links: dict[str, set[str]]) -> list[list[str]]:
    """Return the circles of a directed graph: its strongly connected sets of two and more (Tarjan 1972).

    >>> strongly_connected({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})
    [['b', 'c']]
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in links.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            at = stack.index(node)
            circle, stack[at:] = stack[at:], []
            if len(circle) > 1:
                found.append(sorted(circle))

    for node in links:
        if node not in index:
            visit(node)
    return found


def test_modules_named_in_the_contracts_exist() -> None:
    import tomllib

    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    for module in {name for contract in contracts for name in contract.get("source_modules", [])}:
        assert importlib.util.find_spec(module), module
