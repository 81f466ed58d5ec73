"""A study: packing of images, the configuration of the command line, features, runs."""

import shlex

import pytest

from diffprobe.cli.arguments import Parser
from diffprobe.cli.extract import add_arguments
from diffprobe.config.compose import load_run
from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.notebook.study import Study


def test_an_image_folder_is_packed_once(study, photos, tmp_path):
    assert study.shard_set.classes == ("dark", "light") and study.shard_set.name == "my photos"
    assert sum(map(study.shard_set.n_samples, study.shard_set.splits())) == 40
    again = Study(photos, study.settings[2:], val=0.2, test=0.3, quiet=True)
    assert again.shard_set.digest == study.shard_set.digest
    with pytest.raises(ShardError, match="val"):
        Study(photos, study.settings[2:], quiet=True)  # other shares: other shards of the same name


def test_shards_are_opened_as_they_are(tiny_shards, tmp_path):
    study = Study(tiny_shards, [f"output={tmp_path}"], quiet=True)
    assert study.shard_set.name == "tiny" and not list(tmp_path.iterdir())
    assert Study("emoji").shard_set.name == "emoji"
    with pytest.raises(ConfigError, match="group, val: .*set of shards"):
        Study(tiny_shards, group="style", val=0.1)


def test_the_command_of_a_shell_makes_the_same_configuration(study):
    words = shlex.split(study.command("extract", "topk", ["features.seed=3"]))
    parser = Parser()
    add_arguments(parser)
    assert words[:2] == ["diffprobe", "extract"]
    found = load_run(None, parser.parse_args(words[2:]).settings)
    assert found == study.config("topk", ["features.seed=3"])
    assert found.data.path.endswith("shards/my photos") and found.probe.name == "topk" and found.features.seed == 3


def test_features_are_extracted_once_and_shown(study):
    store = study.extract()
    assert store.missing() == [] and store.classes() == ("dark", "light")
    x, y = store.arrays("mid_block@t20")
    assert len(x) == len(y) == study.shard_set.n_samples("train")
    assert f"2 cells, train {len(x)}, val" in repr(store)
    assert "mid_block@t20" in store._repr_html_() and "dark, light" in store._repr_html_()


def test_controls_get_their_own_features_and_a_column_of_the_table(study, linear):
    study.train("linear", ["control=raw_pixels", "probe.params.controls=[]"])
    table = study.table(where={"metric": "accuracy"})
    assert "raw pixels" in table.to_markdown() and table._repr_markdown_() == table.to_markdown()


def test_a_table_needs_runs(tiny_shards):
    with pytest.raises(ConfigError, match="no run"):
        Study(tiny_shards).table()


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ("backbone=emoji-sd", r"\['backbone=emoji-sd'\]"),
        (["data.path=x"], "data.path=x"),
        (["data=emoji"], "data=emoji"),
        (["features.timestep=[1]"], "features.timesteps"),
    ],
)
def test_unsuitable_settings_are_refused_before_images_are_packed(photos, tmp_path, monkeypatch, settings, fact):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=fact):
        Study(photos, settings)
    assert not list(tmp_path.iterdir())


def test_settings_of_a_run_are_a_list_too(study):
    with pytest.raises(ConfigError, match="one text"):
        study.train("topk", "probe.cell=mid_block@t20")


def test_a_probe_is_refused_before_features_are_extracted(tiny_shards, tmp_path):
    study = Study(tiny_shards, [f"output={tmp_path}", f"features.store={tmp_path}"], quiet=True)
    with pytest.raises(ConfigError, match="unknown probe; nearest: linear"):
        study.train("linea")
    with pytest.raises(ConfigError, match="k=0|k = 0|k: "):
        study.train("topk", ["probe.params.k=0"])
    assert not list(tmp_path.iterdir())


def test_a_folder_without_images_names_what_was_looked_for(tmp_path):
    with pytest.raises(ShardError, match="index.json"):
        Study(tmp_path)


def test_it_is_shown_with_images_cells_and_command(study):
    shown = study._repr_html_()
    assert "my photos" in shown and "dark, light" in shown and "diffprobe train" in shown
    assert repr(study).startswith("Study(my photos: backbone.path=")


def test_progress_is_printed_unless_quiet(photos, study, capsys):
    Study(photos, study.settings[2:], val=0.2, test=0.3).extract()
    assert "the store is complete" in capsys.readouterr().err
    study.extract()
    assert capsys.readouterr() == ("", "")
