"""The wheel, installed into an environment without diffprobe and outside of the checkout, runs the demo.

`make wheel` builds it first and names its folder in DIFFPROBE_WHEEL_DIR; without that, the test builds one. The new
environment holds diffprobe alone and sees the other packages of this one: test_dependencies.py checks that all of them
are declared.
"""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "data.limit=192",
    "trainer.max_epochs=1",
    "features.timesteps=[25,200,500]",
    "panels.min_active=1",
    "panels.n_resamples=10",
]
pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command as on a machine that has no checkout, and return what it prints."""
    hidden = ("PYTHONPATH", "DIFFPROBE_CONFIGS", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("DIFFPROBE_WHEEL_DIR") or tmp_path_factory.mktemp("dist")).resolve()
    if not os.environ.get("DIFFPROBE_WHEEL_DIR"):
        pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        run(*pip, "--wheel-dir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("diffprobe-*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter of a new environment with the wheel, which sees the other packages of this environment."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(run(python, "-c", code, cwd=folder).strip())
    # A path in a .pth file is searched last, and .pth files in it (an editable install of diffprobe) are not read.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_it_holds_what_git_holds_of_the_package(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "diffprobe", "configs", "experiments", "slurm"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    tracked = [file for file in listed.stdout.splitlines() if (ROOT / file).is_file()]
    expected = {file if file.startswith("diffprobe/") else f"diffprobe/_presets/{file}" for file in tracked}
    missing = sorted(expected - inside)
    assert not missing, "not in the wheel:\n  " + "\n  ".join(missing)
    assert {"diffprobe/py.typed", "diffprobe/runs/train.py", "diffprobe/shards/PROTOCOL.md"} <= inside
    assert not {file for file in inside if "__pycache__" in file or file.startswith("tests/")}


def test_it_is_what_is_imported(python: Path, tmp_path: Path) -> None:
    code = "import diffprobe as d, importlib.metadata as m; print(d.__file__, m.version('diffprobe'), d.__version__)"
    file, distribution, version = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(file).is_relative_to(python.parents[1]) and distribution == version


def test_the_demo_is_checked(python: Path, tmp_path: Path) -> None:
    assert "11 runs, 3 stores" in run(python.with_name("diffprobe"), "demo", "--check", cwd=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_batch_script_is_rendered(python: Path, tmp_path: Path) -> None:
    command = ["submit", "doctor", "cluster=local", "--dry-run"]
    assert "arguments=(doctor)" in run(python.with_name("diffprobe"), *command, cwd=tmp_path)


def test_the_demo_runs(python: Path, tmp_path: Path) -> None:
    printed = run(python.with_name("diffprobe"), "demo", *SMALL, "output=out", "features.store=stores", cwd=tmp_path)
    assert "raw pixels" in printed
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "out").rglob("result.json"))) == 11
