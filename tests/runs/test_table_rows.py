"""The rows of a table: which experiments it trains, by name and by folder, and what is refused."""

import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.runs.table_rows import InvalidRow, RunRow, control_runs, find_rows, table_name, try_rows
from tests.runs.table_of_tiny import settings, write_table


@pytest.fixture
def tiny(tmp_path, monkeypatch, tiny_sd, tiny_shards):
    write_table(tmp_path, {"mid": "mid_block", "up": "up_blocks.1"})
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    return settings(tiny_sd, tiny_shards, tmp_path)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("emoji", "emoji"),
        ("experiments/emoji/sae_table", "emoji/sae_table"),
        ("/somewhere/experiments/emoji/", "emoji"),
        ("./experiments/emoji/table.yaml", "emoji"),
        ("my/experiments/x", "my/experiments/x"),
    ],
)
def test_a_table_is_named_or_its_folder_is(given, name):
    assert table_name(given) == name


@pytest.mark.slow
def test_rows_are_the_experiments_that_fit_the_filter(tiny):
    rows = find_rows("paper/layers", tiny)
    assert [row.settings[0] for row in rows] == ["experiment=paper/layers/mid", "experiment=paper/layers/up"]
    assert all(row.folder.parent.name == row.config.experiment.split("/")[-1] for row in rows)
    assert len({row.folder for row in rows}) == 2
    seeds = find_rows("paper/layers", [*tiny, "seed=[0,1]"])
    assert [row.settings[-1] for row in seeds] == ["seed=0", "seed=1"] * 2


def test_a_row_of_another_probe_does_not_fit(tiny, tmp_path):
    folder = tmp_path / "experiments/paper/layers"
    text = (folder / "table.yaml").read_text().replace("split: test", "split: test, probe: [mlp]")
    (folder / "table.yaml").write_text(text)
    with pytest.raises(ConfigError, match="no rows to train") as found:
        find_rows("paper/layers", tiny)
    assert "paper/layers/up" in str(found.value)


@pytest.mark.slow
def test_a_refused_row_is_kept_apart(tiny, tmp_path):
    (tmp_path / "experiments/paper/layers/odd.yaml").write_text("probe: {kind: classifier, nam: linear}\n")
    rows = try_rows("paper/layers", tiny)
    assert [type(row) for row in rows] == [RunRow, InvalidRow, RunRow]
    assert "nam" in str(rows[1].error) and rows[1].settings[0] == "experiment=paper/layers/odd"
    with pytest.raises(ConfigError, match="nam"):
        find_rows("paper/layers", tiny)


@pytest.mark.slow
def test_the_same_run_twice_is_refused(tiny):
    with pytest.raises(ConfigError, match="two of the runs are the same"):
        find_rows("paper/layers", [*tiny, "data.storage_patience=1,2"])


def test_what_is_no_table_is_refused(tiny):
    with pytest.raises(ConfigError, match="nearest: paper/layers"):
        find_rows("paper/layer", tiny)
    with pytest.raises(ConfigError, match="takes no experiment="):
        find_rows("paper/layers", [*tiny, "experiment=paper/layers/up"])
    with pytest.raises((ConfigError, UnknownName)):
        find_rows("paper/layers", [*tiny, "nothing=3"])


def test_control_runs_are_those_of_the_ladder():
    assert control_runs("emoji") == ["raw_pixels", "vae_latents", "random_weights", "text_encoder"]
