"""Selection without labels beside that of val: on made-up scores, and on tiny runs and their stores."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.label_free import cknna, high_frequency_share, rank_me
from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError, SchemaError, UnknownName
from diffprobe.evaluation.page_features import open_features
from diffprobe.evaluation.selectors import Case, Selection, compare_selectors
from diffprobe.features.reader import FeatureStore
from tests.evaluation.page_runs import opened

CELLS = ("features.taps=[mid_block,up_blocks.0]", "probe.cell=null", "probe=linear", "probe.targets=[label,style]")


@pytest.fixture(scope="module")
def folder(train_tiny):
    return train_tiny(*CELLS)


def test_agreement_and_loss_are_counted():
    cases = [
        Case(name="a", val={"x": 0.9, "y": 0.5}, test={"x": 0.8, "y": 0.6}),
        Case(name="b", val={"x": 0.1, "y": 0.5}, test={"x": 0.2, "y": 0.7}),
    ]
    found = Selection(
        metric="accuracy",
        n=9,
        split="train",
        scores={"S": {"x": 2.0, "y": 1.0}, "T": {"x": 1.0, "y": 1.0}},
        cases=cases,
    )
    assert found.agreement("S") == (1, pytest.approx(0.25))  # 0 and 0.7 - 0.2
    assert found.agreement("T") == (1, pytest.approx(0.25))  # of equal scores the first cell
    assert "| S | 1 of 2 | +0.250 |" in found.lines()


@pytest.mark.slow
def test_a_finished_run_is_read_with_its_store(folder, tmp_path, capsys):
    (run,) = opened(folder)
    table = open_features(run).table("train")
    cells = list(table.features)
    stores = [path.parent for path in (folder.parents[2] / "stores").glob("*/manifest.json")]
    store = next(path for path in stores if set(FeatureStore.open(path).cells) == set(cells))
    found = compare_selectors([folder], encoder=str(store), encoder_cell=cells[0], k=3)
    assert [case.name for case in found.cases] == ["label", "style"] and found.n == len(table.keys)
    for cell in cells:
        x = table.features[cell].flatten(1)
        assert found.scores["RankMe"][cell] == pytest.approx(rank_me(x), rel=1e-6)
        expected = cknna(x, table.features[cells[0]].flatten(1), k=3)
        assert found.scores["CKNNA (k=3)"][cell] == pytest.approx(expected, rel=1e-6)
    assert found.scores["CKNNA (k=3)"][cells[0]] == pytest.approx(1, rel=1e-6)
    named = {(r.split, r.target, r.cell): r.value for r in run.result.metrics if r.name == "accuracy"}
    assert all(case.val[cell] == named["val", case.name, cell] for case in found.cases for cell in cells)

    path = tmp_path / "encoder.npz"
    order = torch.randperm(len(table.keys))
    np.savez(path, keys=np.array(table.keys)[order], features=table.features[cells[0]].numpy()[order])
    assert compare_selectors([folder], encoder=str(path), k=3).scores == found.scores
    assert main(["eval", "selectors", str(folder), "--encoder", str(path), "--neighbours", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == found.lines()

    np.savez(path, keys=np.array(table.keys)[1:], features=table.features[cells[0]].numpy()[1:])
    with pytest.raises(ConfigError, match=f"lacks 1 of .*|{table.keys[0]}"):
        compare_selectors([folder], encoder=str(path), k=3)
    np.savez(path, keys=np.array(table.keys))
    with pytest.raises(SchemaError, match="features"):
        compare_selectors([folder], encoder=str(path))
    with pytest.raises(ConfigError, match=f"{len(cells)} cells"):
        compare_selectors([folder], encoder=str(store))
    with pytest.raises(UnknownName, match="nowhere"):
        compare_selectors([folder], encoder=str(store), encoder_cell="nowhere")
    with pytest.raises(ConfigError, match="macro_f1"):
        compare_selectors([folder], metric="macro_f1")


@pytest.mark.slow
def test_members_of_a_grid_that_differ_in_the_cell_are_one_case(train_tiny):
    folder = train_tiny(
        *CELLS, "probe.grid.cell=[mid_block@t20,up_blocks.0@t20]", "probe.grid.learning_rate=[0.01,0.1]"
    )
    found = compare_selectors([folder])
    assert sorted(case.name for case in found.cases) == [
        f"{target} (learning_rate={rate})" for target in ("label", "style") for rate in (0.01, 0.1)
    ]
    assert all(len(case.val) == 2 for case in found.cases) and len(found.scores["RankMe"]) == 2


@pytest.mark.slow
def test_cells_with_places_are_scored_by_their_frequencies(train_tiny):
    folder = train_tiny(*CELLS, "features.pool=none", "probe=diff_c")
    found = compare_selectors([folder])
    (run,) = opened(folder)
    table = open_features(run).table("train")
    assert list(found.scores) == ["RankMe", "high frequencies"]
    for cell, score in found.scores["high frequencies"].items():
        assert score == pytest.approx(high_frequency_share(table.features[cell].float()))
