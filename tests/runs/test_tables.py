"""Tables with intervals from kept predictions, from Python and from the command line."""

import dataclasses
import shutil

import pytest

import diffprobe
from diffprobe.cli.main import main
from diffprobe.core.errors import SelectionOnTest
from diffprobe.core.result import read_result, write_result
from diffprobe.runs.tables import build_table
from tests.runs.test_rescore import classifier, trained
from tests.toy import WIDTHS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds of a classifier of two cells, with their predictions."""
    root = tmp_path_factory.mktemp("tables")
    for seed in (0, 1):
        run = trained(classifier(seed), root / f"run-{seed}", "classifier")
        result = read_result(run / "result.json")
        write_result(dataclasses.replace(result, seeds={"run": seed}), run / "result.json")
    return root


def test_the_chosen_cell_has_an_interval_that_chooses_again(folder, capsys):
    table = diffprobe.build_table(folder)
    for part in table.parts:
        (chosen,) = part.chosen
        assert part.spec.filter["split"] == "val" and len(chosen.candidates) == len(WIDTHS)
        found = chosen.interval
        assert chosen.no_interval == "" and found.n_resamples == 1000 and found.unit == "single samples"
        assert found.low <= chosen.test.value <= found.high and 0 < found.share <= 1 and chosen.test.n_seeds == 2
    assert main(["table", str(folder)]) == 0
    out, err = capsys.readouterr()
    last = " ".join(out.split("\n\n")[-1].split())
    assert "Chosen on val: " in last and "95% interval, chosen again in each of 1,000 resamples of 21" in last
    assert "cells are compared on val" in err
    for format in ("csv", "latex"):
        assert main(["table", str(folder), "--format", format]) == 0
        text = capsys.readouterr().out
        assert ("test_low" if format == "csv" else "Chosen on val") in text


def test_test_for_many_cells_needs_the_word(folder, capsys):
    assert main(["table", str(folder), "--where", "split=test"]) == 2
    assert "--exploratory" in capsys.readouterr().err
    with pytest.raises(SelectionOnTest, match="2 cells on test"):
        build_table(folder, where={"split": "test"})
    assert main(["table", str(folder), "--where", "split=test", "--exploratory"]) == 0
    out = capsys.readouterr().out
    assert "(exploratory)**" in out and "Chosen on val" not in out
    assert not build_table(folder, exploratory=True).parts[0].spec.exploratory  # val is shown


def test_without_predictions_the_line_gives_the_reason(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "runs")
    lost = tmp_path / "runs" / "run-1" / "predictions-val.safetensors"
    lost.unlink()
    (chosen,) = build_table(tmp_path / "runs").parts[0].chosen
    assert chosen.interval is None and "run-1" in chosen.no_interval and "missing" in chosen.no_interval
    assert str(tmp_path) not in chosen.no_interval  # a table does not depend on where its results are
    for run in (tmp_path / "runs").iterdir():
        result = read_result(run / "result.json")
        write_result(dataclasses.replace(result, artifacts={}), run / "result.json")
    table = build_table(tmp_path / "runs")
    assert "No interval: there are no kept predictions" in " ".join(table.to_markdown().split())
