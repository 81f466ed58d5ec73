"""Lists of seeds: which runs they make, what each seed varies, and means over them."""

import pytest

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import probes
from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.runs.experiment import load_experiment, load_experiments
from diffprobe.runs.seeds import as_sweep, describe_seeds, over_seeds, recorded_seeds, unfinished
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.direction import DirectionModule


@pytest.mark.parametrize("probe", ["linear", "ridge", "topk"])
def test_every_kind_of_probe_takes_a_list(probe):
    found = load_experiments(settings=[f"probe={probe}", "seed=[0,2,7]"])
    assert [config.seed for config in found] == [0, 2, 7]
    assert [config.seed for config in load_experiments(settings=[f"probe={probe}", "seed=3"])] == [3]


def test_backbones_take_a_list_too():
    found = load_experiments("emoji/train_autoencoder", ["seed=[1,2]"])
    assert [config.seed for config in found] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["seed=[]"], r"seed=\[\].*at least one"),
        (["seed=[1,1]"], r"seed=\[1,1\].*each once"),
        (["seed=[1,true]"], r"whole number"),
        (["seed=[0,1]", "trainer.devices=2"], r"several processes(.|\n)*seed=0"),
        (["seed=[0,1]", "probe=topk", "+probe.grid.seed=[0,1]"], r"probe.grid.seed"),
    ],
)
def test_a_list_that_cannot_be_run_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        load_experiments(settings=settings)


@pytest.mark.parametrize("given", ["seed=0,1,2", "seed=range(0,3)"])
def test_seeds_with_commas_lead_to_the_list(given):
    with pytest.raises(ConfigError, match=r'several values(.|\n)*"seed=\[0,1,2\]"'):
        load_experiments(settings=["probe=linear", given])
    assert [config.seed for config in load_experiments(settings=["probe=linear", "seed=[0,1,2]"])] == [0, 1, 2]


def test_a_list_is_a_sweep_for_a_submission():
    assert [as_sweep(one) for one in ("seed=[]", "seed=[4]", "features.seed=[0,1]")] == [
        "seed=[]", "seed=4", "features.seed=[0,1]",
    ]  # fmt: skip


def test_one_configuration_cannot_have_several_seeds():
    with pytest.raises(ConfigError, match=r"2 seeds(.|\n)*load_experiments"):
        load_experiment(settings=["seed=[0,1]"])


def test_a_probe_says_what_its_seed_varies():
    settings = TrainerConfig()

    def classifier(name, controls):
        config = probes("classifier").load(name).Config(controls=controls)
        return ClassifierModule(name, config, widths={"c": 2}, classes={"label": "ab"}, settings=settings).seed_varies

    assert classifier("linear", ()) == ("order",)
    assert classifier("linear", ("shuffled_labels",)) == ("order", "shuffled_labels")

    def direction(name):
        config = probes("direction").load(name).Config(positive="a")
        axes = config.axes(["c"], {"label": ["a", "b"]})
        return DirectionModule(name, config, axes=axes, widths={"c": 2}, settings=settings).seed_varies

    assert direction("ridge") == ("shuffled_labels", "random_direction")
    assert direction("logistic") == ("order", "shuffled_labels", "random_direction")


def test_seeds_are_recorded_by_what_they_vary():
    found = recorded_seeds({"run": 5, "order": 3}, ("start", "order"), ordered=True)
    assert found == {"run": 5, "start": 5, "order": 3}
    assert recorded_seeds({"run": 5}, ("order", "shuffled_labels"), ordered=False) == {"run": 5, "shuffled_labels": 5}


def made(seed, values, **seeds):
    metrics = [MetricRecord(name=name, value=value, split="test", n=4) for name, value in values.items()]
    return make_result(
        run=str(seed), experiment="", kind="sae", config={"seed": seed}, metrics=metrics, started_at=StartTime.now(),
        seeds={"run": seed, **seeds},
    )  # fmt: skip


def test_means_over_seeds_have_a_spread_only_where_something_varied():
    results = [made(0, {"fvu": 0.25, "l0": 8.1}, start=0, noise=0), made(1, {"fvu": 0.75, "l0": 8.1}, start=1, noise=0)]
    fvu, l0 = over_seeds(results)
    assert (fvu.value, fvu.n_seeds, fvu.spread) == (0.5, 2, pytest.approx(0.5 / 2**0.5))
    assert (l0.value, l0.n_seeds, l0.spread) == (8.1, 2, None)
    assert describe_seeds(results) == "initial weights"
    assert describe_seeds([made(0, {"fvu": 1}), made(1, {"fvu": 1})]) == "nothing that is recorded"


def test_only_unfinished_runs_of_a_list_are_trained(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    assert unfinished(folders) == [True, True]
    folders[1].mkdir()
    (folders[1] / "result.json").touch()
    assert unfinished(folders) == [True, False] and unfinished(folders[1:]) == [True]
