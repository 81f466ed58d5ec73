"""The house rules that no linter knows: short files, documented public names, a test twin for every module."""

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "diffprobe").rglob("*.py"))
FILES = [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]
MAX_LINES = 300

NO_TWIN = {
    "diffprobe/__main__.py": "tests/cli/test_main.py",  # one call
    "diffprobe/demo/types.py": "tests/demo/test_run.py",
    "diffprobe/demo/config.py": "tests/demo/test_run.py",  # one demo, taken apart in one file
    "diffprobe/demo/console.py": "tests/demo/test_run.py",
    "diffprobe/demo/page.py": "tests/demo/test_run.py",
    "diffprobe/demo/panels.py": "tests/demo/test_run.py",
}
"""Modules with logic that no test file of their name covers -> the test file that does, with the reason."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def has_logic(path: Path) -> bool:
    tree = ast.parse(path.read_text())
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in ast.walk(tree))


def twin(path: Path) -> Path:
    folder = ROOT / "tests" / path.relative_to(ROOT / "diffprobe").parent
    return folder / (f"test_{path.parent.name}.py" if path.name == "__init__.py" else f"test_{path.name}")


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_short_enough_to_be_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_public_names_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    missing = [] if ast.get_docstring(tree) else ["the module"]
    public = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))]
    for owner in public:
        for node in owner.body:  # type: ignore[attr-defined]
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith(
                "_"
            ):
                missing += (
                    [] if ast.get_docstring(node) or _overrides(node, owner) else [f"{node.name}, line {node.lineno}"]
                )
    assert not missing, f"no docstring: {', '.join(missing)}"


def _overrides(node: ast.AST, owner: ast.AST) -> bool:
    """Whether a method belongs to the contract of a base class, whose docstring is the one that counts."""
    return isinstance(owner, ast.ClassDef) and bool(owner.bases) and isinstance(node, ast.FunctionDef)


@pytest.mark.parametrize("path", [path for path in MODULES if has_logic(path)], ids=name)
def test_a_module_with_logic_has_a_test_twin(path: Path) -> None:
    assert twin(path).is_file() or name(path) in NO_TWIN, f"write {name(twin(path))}"


def test_exemptions_are_still_needed() -> None:
    assert not [entry for entry in NO_TWIN if not (ROOT / entry).is_file() or twin(ROOT / entry).is_file()]
    assert not [cover for cover in NO_TWIN.values() if not (ROOT / cover).is_file()]


def test_no_module_is_a_drawer_for_leftovers() -> None:
    names = {part for path in FILES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_every_package_says_what_it_owns() -> None:
    folders = {path.parent for path in MODULES}
    assert not [name(folder) for folder in folders if not (folder / "__init__.py").is_file()]


def test_nothing_unpickles() -> None:
    """What comes from others is read as safetensors, JSON or tensors alone; nothing that runs code on loading."""
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                found += [
                    f"{name(path)}, line {node.lineno}" for bad in names & {"pickle", "cloudpickle", "joblib", "dill"}
                ]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                safe = words.get("weights_only") == "True" or (
                    ast.unparse(node.func) != "torch.load" and words.get("allow_pickle", "False") == "False"
                )
                found += [] if safe else [f"{name(path)}, line {node.lineno}"]
    assert not found


def test_no_absolute_path_or_machine_is_named() -> None:
    tracked = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    bad = []
    for entry in tracked.stdout.splitlines():
        path = ROOT / entry
        if (
            path.suffix in (".py", ".md", ".yaml", ".toml", ".txt", ".j2", "")
            and path.is_file()
            and path != Path(__file__)
        ):
            text = path.read_text(errors="ignore")
            bad += [
                f"{entry}: {word}" for word in ("/home/", "/root/", "/work/", "/Users/", "/tmp/venv") if word in text
            ]
    assert not bad
