"""The wheel, in an environment without diffprobe and outside of the checkout: the demo, and the six commands.

`make wheel` builds it first and names its folder in DIFFPROBE_WHEEL_DIR; without that, the test builds one. The new
environment holds diffprobe alone and sees the other packages of this one: test_dependencies.py checks that all of them
are declared.
"""

import json
import os
import random
import shlex
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from tests.docs.markdown import blocks

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
    assert "17 runs, 5 stores" in run(python.with_name("diffprobe"), "demo", "--check", cwd=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_batch_script_is_rendered(python: Path, tmp_path: Path) -> None:
    command = ["submit", "doctor", "cluster=local", "--dry-run"]
    assert "arguments=(doctor)" in run(python.with_name("diffprobe"), *command, cwd=tmp_path)


def test_the_demo_runs(python: Path, tmp_path: Path) -> None:
    printed = run(python.with_name("diffprobe"), "demo", *SMALL, "output=out", "features.store=stores", cwd=tmp_path)
    assert "raw pixels" in printed
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "out").rglob("result.json"))) == 18


CLASSES = ("beach", "city", "field", "forest", "snow")
PAGE = ROOT / "docs/users/six-commands.md"


def make_photos(folder: Path, n: int = 40) -> None:
    """Write n JPEGs of each class: a shape and its colours, with noise in both."""
    rng = random.Random(0)
    for number, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            shade = tuple(rng.randrange(170, 256) for _ in range(3))
            image = Image.new("RGB", (120, 90), shade)
            box = (x := rng.randrange(10, 40), y := rng.randrange(5, 25), x + rng.randrange(40, 70), y + 55)
            draw = ImageDraw.Draw(image)
            ink = tuple(rng.randrange(0, 140) for _ in range(3))
            shapes = (draw.ellipse, draw.rectangle, draw.line, draw.ellipse, draw.line)
            options = ({"fill": ink}, {"fill": ink}, {"fill": ink, "width": 8}, {"outline": ink, "width": 6},
                       {"fill": ink, "width": 30})  # fmt: skip
            shapes[number](box, **options[number])
            image.save(folder / name / f"{i:04d}.jpg", quality=90)


def test_six_commands_make_heat_map_table_report_and_notebook(python: Path, tmp_path: Path) -> None:
    """The commands of the page, as they stand there, in an empty folder with 200 JPEGs in five classes."""
    make_photos(tmp_path / "photos")
    commands = [block.code for block in blocks(PAGE) if block.language == "" and block.code.startswith("diffprobe ")]
    assert len(commands) == 6
    for command in commands:
        words, _, target = command.partition(" > ")
        printed = run(python.with_name("diffprobe"), *shlex.split(words)[1:], cwd=tmp_path)
        if target:
            (tmp_path / target).write_text(printed)
    assert (tmp_path / "heat-map.pdf").read_bytes().startswith(b"%PDF")
    latex = (tmp_path / "table.tex").read_text()
    assert "\\toprule" in latex and "\\label{" in latex and "up\\_blocks.2" in latex and "shuffled labels" in latex
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "mid_block" in page and "<svg" in page
    (result,) = (tmp_path / "runs").glob("classifier/*/result.json")
    scores = [m for m in json.loads(result.read_text())["metrics"] if (m["name"], m["split"]) == ("accuracy", "test")]
    assert len(scores) == 12 and max(score["value"] for score in scores) > 0.6  # of five classes
    run(python, "-c", EXECUTE, "look.ipynb", cwd=tmp_path)
    cells = json.loads((tmp_path / "look.ipynb").read_text())["cells"]
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    assert any("image/png" in shown for shown in data) and any("text/markdown" in shown for shown in data)


EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""
"""Executes a notebook with this interpreter, which has diffprobe from the wheel alone."""


def test_ten_lines_of_python_make_heat_map_and_grid(python: Path, tmp_path: Path) -> None:
    """The two snippets of the page, one after the other, as a script."""
    make_photos(tmp_path / "photos")
    snippets = [block.code for block in blocks(PAGE) if block.language == "python"]
    assert len(snippets) == 2 and all(len(code.splitlines()) <= 10 for code in snippets)
    code = "\n".join(snippets)
    for last in ("run.heat_map()", "sae.latent_grid()"):
        assert last in code
        code = code.replace(last, f"{last}.savefig('{last.partition('.')[0]}.png')")
    run(python, "-c", code, cwd=tmp_path)
    for name in ("run.png", "sae.png"):
        assert Image.open(tmp_path / name).width > 400
