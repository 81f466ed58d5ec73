"""Sweeps from experiment files: the YAML, the points, and what an agent of W&B makes of them."""

import json

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError, DiffprobeError, RunFailed, UnknownName
from diffprobe.core.result import read_result
from diffprobe.runs.wandb_sweep import agent_command, plan_sweep, register, sweep_yaml
from tests.training.test_loggers import logged_out, read_run  # noqa: F401

METHODS = {"grid", "random", "bayes"}


def command_of(tree: dict, chosen: dict) -> list[str]:
    """Return the words that W&B's agent would run for a point, by its own functions."""
    command = create_sweep_command(tree["command"])
    filled = create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    filled |= {"env": ["/usr/bin/env"], "program": [tree["program"]]}
    return [word for part in command for word in (filled[part[2:-1]] if part.startswith("${") else [part])]


def require_schema(tree: dict) -> None:
    """Check what W&B's documentation of a sweep's configuration asks for; the package has no schema of it."""
    assert set(tree) <= {"name", "program", "project", "entity", "method", "metric", "parameters", "command"}
    assert tree["method"] in METHODS and set(tree["metric"]) == {"name", "goal"}
    assert tree["metric"]["goal"] in ("minimize", "maximize") and tree["parameters"]
    for one in tree["parameters"].values():
        if "values" in one:
            assert set(one) == {"values"} and len(set(map(str, one["values"]))) == len(one["values"]) > 0
        else:
            kinds = {"uniform", "int_uniform", "log_uniform_values", "q_log_uniform_values"}
            assert one["distribution"] in kinds and one["min"] < one["max"]


@pytest.fixture(scope="module")
def grid():
    return plan_sweep("emoji/sae", ["probe.params.k=[8,16]", "seed=0,1", "features.timesteps=[25,200]"])


@pytest.mark.slow
def test_a_grid_has_the_values_and_its_metric_is_on_val(grid):
    tree = yaml.safe_load(sweep_yaml(grid))
    require_schema(tree)
    assert tree == grid.tree
    assert tree["parameters"] == {"probe.params.k": {"values": [8, 16]}, "seed": {"values": [0, 1]}}
    assert tree["metric"] == {"name": "val_score/fvu", "goal": "minimize"}
    assert len(grid.points) == 4 and len(set(grid.points)) == 4


@pytest.mark.slow
def test_a_list_that_the_configuration_takes_is_one_value(grid):
    assert "features.timesteps=[25,200]" in grid.tree["command"]


def test_the_agent_runs_exactly_the_points_that_were_validated(grid):
    words = command_of(grid.tree, {"probe.params.k": 16, "seed": 1})
    assert words[:3] == ["/usr/bin/env", "diffprobe", "train"]
    assert tuple(words[3:]) == grid.points[-1]


def test_the_same_points_can_be_submitted(grid, capsys):
    (words,) = [grid.submit.split()]
    assert words[:3] == ["diffprobe", "submit", "train"] and "probe.params.k=8,16" in words and "seed=0,1" in words


@pytest.mark.slow
def test_intervals_are_for_random_and_bayes():
    plan = plan_sweep(
        "emoji/sae",
        ["trainer.learning_rate=log(interval(1e-4, 1e-2))", "probe.params.k=interval(4,16)"],
        method="bayes",
        metric="l0",
        goal="minimize",
        project="mine",
        entity="us",
    )
    require_schema(plan.tree)
    assert plan.tree["parameters"] == {
        "trainer.learning_rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
        "probe.params.k": {"distribution": "int_uniform", "min": 4, "max": 16},
    }
    assert (plan.tree["project"], plan.tree["entity"], plan.submit) == ("mine", "us", "")
    assert {"logger.project=mine", "logger.entity=us"} <= set(plan.tree["command"])  # those that the agent sets
    assert agent_command(plan, "abc") == "wandb agent us/mine/abc"
    with pytest.raises(ConfigError, match="trainer.learning_rate is an interval"):
        plan_sweep("emoji/sae", ["trainer.learning_rate=interval(1e-4,1e-2)"])


@pytest.mark.parametrize(
    ("settings", "more", "said"),
    [
        (["probe.params.k=8,many"], {}, "probe.params.k=many(.|\n)*int"),
        (["probe.params.q=8,16"], {}, r"q(.|\n)*nearest|probe.params.q"),
        (["seed=0"], {}, "nothing varies"),
        (["seed=0,0"], {}, "names 0 twice"),
        (["seed=0,1", "seed=2"], {}, "'seed' is given twice"),
        (["seed=0,1", "logger=csv"], {}, "logger"),
        (["trainer.learning_rate=interval(1,0.1)"], {"method": "random"}, "the lower first"),
        (["trainer.learning_rate=log(interval(0,0.1))"], {"method": "random"}, "above 0 for log"),
        (["seed=0,1"], {"metric": "fvuu"}, "fvuu(.|\n)*fvu"),
        (["seed=0,1"], {"metric": "l0"}, "--goal"),
        ([f"seed={','.join(map(str, range(1100)))}"], {}, "1,100 points"),
        (["probe.grid.k=[8]", "seed=0,1"], {}, "probe.grid"),
    ],
)
def test_what_is_not_a_sweep_is_refused(settings, more, said):
    with pytest.raises(DiffprobeError, match=said):
        plan_sweep("emoji/sae", settings, **more)


def test_an_experiment_has_to_be_there():
    with pytest.raises(UnknownName, match="emoji/sea(.|\n)*emoji/sae"):
        plan_sweep("emoji/sea", ["seed=0,1"])


def test_the_sweep_is_registered_as_it_is_printed(grid, capsys):
    given = {}

    def create(sweep, entity=None, project=None, prior_runs=None):
        print("Create sweep with ID: abc")
        given.update(sweep=sweep, entity=entity, project=project)
        return "abc"

    assert register(grid, create) == "abc" and given == {"sweep": grid.tree, "entity": None, "project": "diffprobe"}
    assert capsys.readouterr().out == ""

    def refuse(*rest, **more):
        raise OSError("no network")

    with pytest.raises(RunFailed, match="register the sweep: no network"):
        register(grid, refuse)


@pytest.mark.slow
@pytest.mark.usefixtures("logged_out")
def test_the_command_line_prints_yaml_alone_and_needs_a_login_to_create(capsys):
    assert main(["wandb", "sweep", "emoji/sae", "seed=0,1"]) == 0
    out, err = capsys.readouterr()
    require_schema(yaml.safe_load(out))
    assert "2 configurations" in err and "diffprobe submit train" in err
    assert main(["wandb", "sweep", "emoji/sae", "seed=0,1", "--create"]) == 2
    assert "WANDB_API_KEY" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("logged_out")
def test_an_agent_trains_a_point_in_the_run_of_the_sweep(tiny_sd, tiny_shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments/tiny").mkdir(parents=True)
    (tmp_path / "experiments/tiny/linear.yaml").write_text(
        "defaults: [{override /probe: linear}]\n"
        f"backbone: {{path: {tiny_sd}, device: cpu}}\n"
        f"data: {{path: {tiny_shards}, batch_size: 4}}\n"
        f"features: {{taps: [mid_block], timesteps: [20], source: live}}\n"
        f"output: {tmp_path / 'runs'}\n"
        "paper: someone2025\ntable: '2'\n"
        "trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false}\n"
    )
    plan = plan_sweep("tiny/linear", ["data.batch_size=4,8"], metric="accuracy", project="mine")
    words = command_of(plan.tree, {"data.batch_size": 8})
    for name, value in (("SWEEP_ID", "sweep1"), ("RUN_ID", "fromsweep"), ("PROJECT", "mine"), ("MODE", "offline")):
        monkeypatch.setenv(f"WANDB_{name}", value)  # as the agent does
    wandb.teardown()  # W&B reads the variables once in a process
    try:
        assert main(words[2:]) == 0
    finally:
        wandb.teardown()
    (path,) = (tmp_path / "runs").rglob("wandb.json")
    result = read_result(path.parent / "result.json")
    assert result.wandb_run_id == json.loads(path.read_text())["id"] == "fromsweep"
    assert result.config["data"]["batch_size"] == 8
    run, _, summary, _ = read_run(path.parent)
    assert (run.run_id, run.sweep_id, run.project) == ("fromsweep", "sweep1", "mine")
    assert plan.tree["metric"]["name"] in summary
    assert (run.run_group, run.job_type) == ("tiny/linear", "classifier")
    assert list(run.tags) == ["classifier", "linear", "someone2025", "2"]
