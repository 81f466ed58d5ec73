"""House rules that no linter checks: file length, documented public names, a test file for every module.

Each rule is one test that reports every violation. ruff checks line length.
"""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "diffprobe").rglob("*.py"))
FILES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]
MAX_LINES = 500

TESTED_ELSEWHERE = {
    "diffprobe/shards/hub_source.py": "tests/shards/datasets/test_hub.py",  # read by one data set only
    "diffprobe/__main__.py": "tests/cli/test_main.py",  # one call
    "diffprobe/demo/types.py": "tests/demo/test_run.py",
    "diffprobe/demo/config.py": "tests/demo/test_run.py",  # one demo, taken apart in one file
    "diffprobe/demo/console.py": "tests/demo/test_run.py",
    "diffprobe/demo/page.py": "tests/demo/test_run.py",
    "diffprobe/demo/panels.py": "tests/demo/test_run.py",
    "diffprobe/metrics/accuracy.py": "tests/metrics/test_confusion.py",  # functions of the confusion counts
    "diffprobe/metrics/balanced_accuracy.py": "tests/metrics/test_confusion.py",
    "diffprobe/probes/classifier/bank.py": "tests/training/test_classifier.py",  # a bank in training
    "diffprobe/probes/full_batch.py": "tests/probes/classifier/test_base.py",  # through the probes that it fits
    "diffprobe/runs/rescore_metrics.py": "tests/runs/test_rescore.py",  # through the verb's function
    "diffprobe/training/classifier_pass.py": "tests/training/test_classifier.py",  # the pass of that module
    "diffprobe/training/kinds/caption.py": "tests/runs/test_contract.py",  # the contract over all kinds
    "diffprobe/training/kinds/classifier.py": "tests/runs/test_contract.py",  # the contract over all kinds
    "diffprobe/training/kinds/direction.py": "tests/runs/test_contract.py",
    "diffprobe/training/kinds/sae.py": "tests/runs/test_contract.py",
    "diffprobe/training/kinds/types.py": "tests/runs/test_contract.py",
}
"""Modules with logic that no test file of their name covers -> the test file that does, with the reason."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def report(violations: list[str], what: str) -> None:
    assert not violations, f"{len(violations)} {what}:\n  " + "\n  ".join(violations)


def has_logic(path: Path) -> bool:
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(ast.parse(path.read_text()))
    )


def test_file_of(path: Path) -> Path:
    folder = ROOT / "tests" / path.relative_to(ROOT / "diffprobe").parent
    return folder / (f"test_{path.parent.name}.py" if path.name == "__init__.py" else f"test_{path.name}")


test_file_of.__test__ = False  # type: ignore[attr-defined]


def test_files_have_at_most_500_lines() -> None:
    lengths = {name(path): len(path.read_text().splitlines()) for path in FILES}
    report(
        [f"{file}: {n} lines" for file, n in lengths.items() if n > MAX_LINES], f"files of more than {MAX_LINES} lines"
    )


def test_public_names_are_documented() -> None:
    found = [f"{name(path)}: {entry}" for path in MODULES for entry in undocumented(ast.parse(path.read_text()))]
    report(found, "public names without a docstring")


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Yield what lacks a docstring: the module, its public functions and classes, their public methods.

    A method of a class with bases may belong to the contract of a base class, whose docstring counts.
    """
    if not ast.get_docstring(tree):
        yield "the module"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for owner in (tree, *classes):
        for node in owner.body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            inherited = isinstance(owner, ast.ClassDef) and bool(owner.bases) and isinstance(node, ast.FunctionDef)
            if not ast.get_docstring(node) and not inherited:
                yield f"{node.name}, line {node.lineno}"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("def f(): ...", ["the module", "f, line 1"]),
        ("'''A module.'''\nclass A:\n  '''A class.'''\n  def f(self): ...\n  def _g(self): ...", ["f, line 4"]),
        ("'''A module.'''\nclass A(B):\n  '''A class.'''\n  def f(self): ...", []),
        ("'''A module.'''\nclass A(B): ...", ["A, line 2"]),
    ],
)
def test_a_missing_docstring_is_found(source: str, found: list[str]) -> None:
    assert list(undocumented(ast.parse(source))) == found


def test_modules_with_logic_have_a_test_file() -> None:
    modules = [path for path in MODULES if has_logic(path) and name(path) not in TESTED_ELSEWHERE]
    missing = [
        f"{name(path)}: write {name(test_file_of(path))}" for path in modules if not test_file_of(path).is_file()
    ]
    report(missing, "modules without a test file")


def test_exemptions_are_still_needed() -> None:
    assert not [
        entry for entry in TESTED_ELSEWHERE if not (ROOT / entry).is_file() or test_file_of(ROOT / entry).is_file()
    ]
    assert not [cover for cover in TESTED_ELSEWHERE.values() if not (ROOT / cover).is_file()]


def test_no_module_collects_leftovers() -> None:
    names = {part for path in FILES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_every_package_has_an_init_file() -> None:
    folders = {path.parent for path in MODULES}
    assert not [name(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_nothing_unpickles() -> None:
    """Files from others are read as safetensors, JSON or plain tensors: no loader that runs code."""
    found = [f"{name(path)}, line {line}" for path in MODULES for line in unpickling(ast.parse(path.read_text()))]
    report(found, "places that can run code on loading")


def unpickling(tree: ast.Module) -> Iterator[int]:
    """Yield the lines that import a pickle library or load tensors or arrays without refusing pickled objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
            if names & {"pickle", "cloudpickle", "joblib", "dill"}:
                yield node.lineno
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            safe = words.get("weights_only") == "True" or (
                ast.unparse(node.func) != "torch.load" and words.get("allow_pickle", "False") == "False"
            )
            if not safe:
                yield node.lineno


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import pickle", [1]),
        ("\nfrom joblib import load", [2]),
        ("torch.load(path)", [1]),
        ("torch.load(path, weights_only=True)", []),
        ("np.load(path)\nnp.load(path, allow_pickle=True)", [2]),
    ],
)
def test_unpickling_is_found(source: str, lines: list[int]) -> None:
    assert list(unpickling(ast.parse(source))) == lines


def test_no_absolute_path_or_machine_is_named() -> None:
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / entry for entry in tracked.stdout.splitlines()]
    suffixes = (".py", ".md", ".yaml", ".yml", ".cff", ".toml", ".txt", ".j2", ".ipynb", "")
    texts = {
        name(path): path.read_text(errors="ignore")
        for path in paths
        if path.suffix in suffixes and path.is_file() and path != Path(__file__)
    }
    words = ("/home/", "/root/", "/work/", "/Users/", "/tmp/venv")
    report([f"{file}: {word}" for file, text in texts.items() for word in words if word in text], "absolute paths")
