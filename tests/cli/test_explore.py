"""`diffprobe explore`; what it computes is tested in tests/evaluation/test_explore.py."""

import sys
from types import SimpleNamespace

import pytest

from diffprobe.cli.explore import split_words
from diffprobe.cli.main import main
from diffprobe.evaluation import explore as explore_module


@pytest.fixture
def calls(monkeypatch):
    """Replace the writer and what fills it; return the arguments of each call."""
    found = []

    class Writer:
        def __init__(self, folder):
            self.folder = folder

    def explore(runs, config, writer, **more):
        writer.folder.mkdir(parents=True, exist_ok=True)
        page = writer.folder / "index.html"
        page.write_text("x" * 1500)
        found.append((runs, config, writer.folder))
        return page

    monkeypatch.setattr(explore_module, "explore", explore)
    monkeypatch.setitem(
        sys.modules, "diffprobe.report.explorer.writer", SimpleNamespace(ExplorerWriter=Writer)
    )  # fmt: skip
    return found


def test_path_and_size_are_printed(calls, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["explore", str(run), "n_top=4", "seeds=[a,b]"]) == 0
    out = capsys.readouterr().out
    assert f"page: {run / 'explorer' / 'index.html'}" in out and "0.0 MB in 1 files" in out
    ((runs, config, folder),) = calls
    assert runs == [str(run)] and folder == run / "explorer"
    assert config.n_top == 4 and config.seeds == ("a", "b")
    assert main(["explore", str(run), "other", "--out", str(tmp_path / "pages")]) == 0
    assert calls[1][0] == [str(run), "other"] and calls[1][2] == tmp_path / "pages"


def test_a_folder_with_an_equals_sign_is_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed=1").mkdir()
    assert split_words(["seed=1", "n_top=3", "runs/a"]) == (["seed=1", "runs/a"], ["n_top=3"])


def test_bad_words_are_refused_before_anything_is_read(calls, capsys):
    for words, fact in ((["n_topp=4"], "n_top"), (["b", "c"], "a, b, c"), (["n_top=0"], "n_top=0")):
        assert main(["explore", "a", *words]) == 2
        assert fact in capsys.readouterr().err
    assert main(["explore", "a", "n_top=4", "--check"]) == 0
    assert "valid" in capsys.readouterr().out and calls == []
