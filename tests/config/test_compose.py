import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.config.compose import compose, load, load_run, setting_text, split_experiment, validate
from diffprobe.config.kinds import PROBE
from diffprobe.config.parse import parse, to_tree
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError

Write = Callable[[str, str], Path]


ROW = """\
# A row of a table.
defaults:
  - override /data: pets
  - override /probe: topk

probe:
  cell: mid_block@t100
  params: {k: 8, rate: 1e-4}
seed: 3
"""


def test_later_sources_win(write: Write) -> None:
    write("configs/data/pets.yaml", "path: pets\nbatch_size: 8\n")
    write("experiments/paper/table/row.yaml", ROW)
    config = load_run("paper/table/row", ["trainer.max_epochs=2", "data.batch_size=4", "features.taps=[up_ft1]"])
    assert config.experiment == "paper/table/row"
    assert (config.data.path, config.data.batch_size) == ("pets", 4)  # preset of our own root, then the setting
    assert (config.probe.name, config.probe.kind) == ("topk", "sae")  # picked by the experiment file
    assert config.probe.params == {"k": 8, "rate": 1e-4} and config.seed == 3
    assert config.backbone.path == "emoji-sd"  # from the shipped base
    assert config.trainer.max_epochs == 2 and config.features.taps == ("up_ft1",)


def test_a_group_on_the_command_line_wins_over_the_experiment(write: Write) -> None:
    write("configs/data/pets.yaml", "path: pets\n")
    write("experiments/paper/table/row.yaml", ROW)
    assert load_run(None, ["experiment=paper/table/row", "data=emoji", "seed=9"]).data.path == "emoji"


def test_without_an_experiment_the_base_alone_is_a_run() -> None:
    config = load_run(None)
    assert config.experiment == "" and config.probe.name == "linear"


def test_origins_name_file_and_line_of_the_value_that_takes_precedence(write: Write) -> None:
    write("configs/data/pets.yaml", "# pets\npath: pets\nbatch_size: 8\n")
    write("experiments/paper/table/row.yaml", ROW)
    origin = compose("paper/table/row", ["data.batch_size=4", "probe.params.new.deep=1"]).origin
    assert origin["data.path"] == ("configs/data/pets.yaml", 2)
    assert origin["probe.cell"] == ("experiments/paper/table/row.yaml", 7)
    assert origin["probe.params.k"] == ("experiments/paper/table/row.yaml", 8)
    assert origin["data.batch_size"] == origin["probe.params.new.deep"] == ("the command line", 0)
    assert origin["probe.kind"] == ("configs/probe/topk.yaml", 2)


def test_unknown_keys_are_refused_with_nearest_file_and_line(write: Write) -> None:
    write("experiments/paper/row.yaml", "trainer:\n  max_epoch: 3\nprobe:\n  nam: x\n")
    with pytest.raises(ConfigError) as caught:
        load_run("paper/row", ["sed=1"])
    message = str(caught.value)
    assert message.startswith("3 errors")
    assert "unknown key 'trainer.max_epoch' in experiments/paper/row.yaml, line 2." in message
    assert "nearest: trainer.max_epochs (int, default 10)" in message
    assert "unknown key 'probe.nam' in experiments/paper/row.yaml, line 4." in message
    assert "unknown key 'sed' on the command line." in message


def test_the_keys_of_a_probe_keep_their_lines(write: Write) -> None:
    write("experiments/paper/row.yaml", "probe:\n  params:\n    max_epoch: 3\n")
    params = load_run("paper/row").probe.params
    with pytest.raises(
        ConfigError, match=r"unknown key 'probe\.params\.max_epoch' in experiments/paper/row\.yaml, line 3"
    ):
        parse(type(load_run(None).trainer), params)


@pytest.mark.parametrize(
    ("settings", "messages"),
    [
        (["data=emojis"], ["data=emojis", "nearest: emoji", "allowed: caltech101", "emoji, "]),
        (["trainer"], ["'trainer' is not of the form key=value"]),
        (["+data=emoji", "~seed=1"], ["'+data=emoji' is not", "'~seed=1' is not"]),
        (["seed=[1"], ["setting seed=[1", "at input '[1'", "must be a complete list"]),
        (["data.path=[1"], ["setting data.path=[1", "fix: as plain text: \"data.path='[1'\""]),
        (["größe=1"], ["'größe=1' is not of the form key=value"]),
        (["seed=range(1,3)"], ["seed=range(1,3)", "several values"]),
        (["features.prompt=a, b"], ["quote the value"]),
        (["experiment=emoji/a", "experiment=emoji/b"], ["more than one experiment"]),
        (["experiment=emoji/clasifier"], ["unknown experiment", "nearest: emoji/classifier"]),
        (["data.limit=${nothing}"], ["cannot be composed", "nothing"]),
        (["data.path=???"], ["cannot be composed", "data.path"]),
    ],
    ids=lambda value: str(value),
)
def test_settings_that_cannot_be_read_are_refused(settings: list[str], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(None, settings)
    for message in messages:
        assert message in str(caught.value)
    assert "++" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "null: shuffled_labels\n",
            "key 'null' in experiments/paper/row.yaml, line 1, has YAML type null",
        ),
        ("probe:\n  on: 3\n", "key 'on' in experiments/paper/row.yaml, line 2, has YAML type bool"),
        ("probe: [1\n", "experiments/paper/row.yaml is not readable YAML"),
        ("- a\n", "experiments/paper/row.yaml has no keys"),
        ("defaults:\n  - override /probe: topkk\n", "experiment 'paper/row' selects an unknown probe 'topkk'"),
        ("data: emoji\n", "`override /data: emoji`"),
        ("experiment: other\n", "'experiment' is the name of the experiment file"),
        ("kind: demmo\n", "unknown kind of experiment in experiments/paper/row.yaml: 'demmo'"),
    ],
)
def test_an_experiment_file_that_cannot_be_read_is_refused(write: Write, text: str, message: str) -> None:
    write("experiments/paper/row.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load("paper/row")
    assert message in str(caught.value)


@pytest.mark.parametrize("setting", ["hydra.run.dir=x", "hydra.mode=MULTIRUN", "hydra/launcher=basic", "hydra={}"])
def test_settings_of_hydra_are_refused_where_they_are(write: Write, setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"settings of Hydra(.|\n)*{setting} on the command line"):
        compose(None, [setting])
    write("experiments/row.yaml", ROW.replace("seed: 3", "hydra:\n  run: {dir: x}"))
    write("configs/data/pets.yaml", "path: pets\n")
    with pytest.raises(ConfigError, match=r"settings of Hydra(.|\n)*hydra in experiments/row.yaml, line 9"):
        compose("row")


def test_a_file_of_another_kind_starts_from_nothing(write: Write) -> None:
    text = "kind: evaluate_sae\nrun: runs/x\nseed: 3\n"
    write("experiments/paper/other.yaml", text)
    composed = compose("paper/other", ["limit=5"])
    assert composed.tree == {"run": "runs/x", "seed": 3, "limit": 5}
    assert validate(composed).limit == 5
    with pytest.raises(ConfigError, match="(?s)kind 'evaluate_sae'.*diffprobe eval sae RUN_FOLDER"):
        load_run("paper/other")


NAMES = ["top", "x/12", "x/1e5", "x/null", "my paper/t", "énoncé/t", "2024/a-b", "x/it's, [a]=b", "a.b/c"]


@pytest.mark.parametrize("name", NAMES)
def test_every_experiment_that_is_listed_can_be_read(write: Write, name: str) -> None:
    write(f"experiments/{name}.yaml", "defaults: [override /probe: topk]\n\nseed: 7\n")
    config = compose(None, [f"experiment={name}"])
    assert config.tree["seed"] == 7 and config.tree["probe"]["name"] == "topk"
    assert config.origin["seed"] == (f"experiments/{name}.yaml", 3)
    assert load_run(name).experiment == name


def test_an_empty_experiment_file_is_the_base(write: Write) -> None:
    write("experiments/paper/row.yaml", "# nothing differs\n")
    assert compose("paper/row").tree == compose(None).tree and compose(None).kind == PROBE


def test_a_signal_in_the_middle_is_no_error_of_a_setting(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*args: object, **values: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("a library was stopped halfway")

    monkeypatch.setattr("hydra.compose", cut)
    with pytest.raises(AttributeError, match="halfway"):
        load_run(None)


def test_a_resolved_config_comes_back_equal() -> None:
    config = load_run("emoji/direction")
    assert parse(RunConfig, to_tree(config)) == config


def test_values_keep_their_types() -> None:
    settings = ["trainer.learning_rate=1e-3", "features.condition=prompt", "features.prompt='a cat, sitting: 1'"]
    config = load_run(None, [*settings, "probe.cell=mid_block@t100:empty:mean", "data.limit=null"])
    assert config.trainer.learning_rate == 1e-3 and config.features.prompt == "a cat, sitting: 1"
    assert config.probe.cell == "mid_block@t100:empty:mean" and config.data.limit is None


@pytest.mark.parametrize("text", ["/data/bilder für alle", "a=b", "cat's (1)", "a]b", "x#1"])
def test_text_is_taken_as_it_is_where_it_can_be_nothing_else(text: str) -> None:
    config = load_run(None, [f"output={text}", f"backbone.path={setting_text(text)}"])
    assert config.output == config.backbone.path == text


def test_a_path_below_the_home_folder_is_that_path(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/me")
    write("experiments/paper/row.yaml", "data: {path: ~/pets}\nfeatures: {taps: [~/tap, a~/b]}\n")
    config = load_run("paper/row", ["output=~/für mich", "features.store='~/stores'"])
    assert (config.data.path, config.output) == ("/me/pets", "/me/für mich")
    assert (config.features.store, config.features.taps) == ("/me/stores", ("/me/tap", "a~/b"))


def test_the_experiment_is_taken_out_of_the_settings() -> None:
    assert split_experiment(None, ["a=1", "experiment=experiments/x/y.yaml"]) == ("x/y", ["a=1"])
    assert split_experiment("x/y", ["experiment=x/y"]) == ("x/y", [])


def test_a_folder_with_odd_letters_can_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's a, [root]=é"
    (folder / "experiments" / "p").mkdir(parents=True)
    (folder / "experiments" / "p" / "r.yaml").write_text("seed: 4\n")
    monkeypatch.chdir(folder)
    assert load_run("p/r").seed == 4


def test_judging_a_config_imports_nothing_heavy() -> None:
    code = (
        "import sys; from diffprobe.config.compose import load_run; load_run('emoji/classifier', ['seed=1']);"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'lightning', 'wandb') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seed=glob(*)", "has several values"),
        ("seed=" + "9" * 5000, "'seed' is .*expected int"),
        ("paper=\udcff", r"'paper=\\udcff' is not UTF-8 text"),
    ],
)
def test_settings_that_hydra_cannot_read_are_refused_at_once(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_run("emoji/sae", [setting])
