"""The notebook of runs: valid, its code runs where it was written for, and what is refused."""

import json

import pytest

from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.notebook import written_notebook
from diffprobe.notebook.written_notebook import write_notebook

pytestmark = pytest.mark.slow


def code(path):
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def execute(path, monkeypatch):
    """Run the cells in the folder of the notebook, and return the value of the last line of each."""
    monkeypatch.chdir(path.parent)
    names, values = {}, []
    for source in code(path):
        lines = [line for line in source.splitlines() if not line.startswith("%")]
        exec("\n".join(lines[:-1]), names)
        try:
            values.append(eval(lines[-1], names))
        except SyntaxError:
            exec(lines[-1], names)
    return values


@pytest.mark.slow
def test_its_cells_show_the_runs(linear, sae, tmp_path, monkeypatch):
    path = tmp_path / "look" / "runs.ipynb"
    monkeypatch.chdir(tmp_path)
    assert write_notebook([linear.folder, sae.folder], path) == ()
    values = execute(path, monkeypatch)
    kinds = [type(value).__name__ for value in values]
    assert kinds == ["Table", "FinishedRun", "HeatMapFigure", "FinishedRun", "HeatMapFigure", "TopK"]
    assert "os.chdir('..')" in code(path)[0]


def test_it_is_a_valid_notebook(linear, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="extra `docs`")
    write_notebook([linear.folder], tmp_path / "runs.ipynb")
    nbformat.validate(nbformat.read(tmp_path / "runs.ipynb", as_version=4))


def test_runs_without_cells_are_named(linear, sae, tmp_path, monkeypatch):
    monkeypatch.setattr(written_notebook, "MAX_RUNS", 1)
    assert write_notebook([linear.folder, sae.folder], tmp_path / "runs.ipynb") == (sae.folder,)


def test_a_control_alone_is_refused(study, tmp_path):
    control = study.train("linear", ["control=raw_pixels", "probe.params.controls=[]"])
    with pytest.raises(RunFailed, match="1 runs are controls"):
        write_notebook([control.folder], tmp_path / "runs.ipynb")
    assert not list(tmp_path.iterdir())


def test_an_existing_file_and_another_ending_are_refused(linear, tmp_path):
    (tmp_path / "mine.ipynb").write_text("edited")
    with pytest.raises(ConfigError, match="mine.ipynb' exists"):
        write_notebook([linear.folder], tmp_path / "mine.ipynb")
    with pytest.raises(ConfigError, match="allowed: .ipynb"):
        write_notebook([linear.folder], tmp_path / "mine.html")
    assert (tmp_path / "mine.ipynb").read_text() == "edited"


def test_the_verb_prints_its_path(linear, tmp_path, capsys):
    assert main(["notebook", str(linear.folder), "--out", str(tmp_path / "a.ipynb")]) == 0
    assert capsys.readouterr().out == f"notebook: {tmp_path / 'a.ipynb'}\n"
