"""`diffprobe report`: refusals; the page itself is in tests/evaluation/test_run_report.py."""

from pathlib import Path

import pytest

from diffprobe.cli.main import main

RECORDED = Path(__file__).parents[2] / "docs" / "results" / "demo"


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["nowhere"], ["ConfigError", "'nowhere' does not exist", "diffprobe train"]),
        ([str(RECORDED), "--out", "page.pdf"], ["ConfigError", "'page.pdf'", ".html, .htm"]),
        ([str(RECORDED), "--latents", "0"], ["ConfigError", "n_latents=0", "at least 1"]),
        ([str(RECORDED), "--table", "emojo"], ["ConfigError", "'emojo'", "nearest: emoji"]),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_written(arguments, facts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *arguments]) == 2
    err = capsys.readouterr().err
    assert all(fact in err for fact in facts) and list(tmp_path.iterdir()) == []


def test_a_run_that_failed_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "sae" / "0123"
    run.mkdir(parents=True)
    (run / "inputs.json").write_text("{}")
    assert main(["report", str(run)]) == 2
    assert "RunFailed: the run" in (err := capsys.readouterr().err) and "has no result.json" in err
