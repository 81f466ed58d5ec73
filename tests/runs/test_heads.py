"""Heads of maps and grids of classifiers on tiny real things: `diffprobe train` from shards to records and probes."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.core.result import read_result
from diffprobe.probes.classifier import ClassifierProbe
from diffprobe.runs.extract import extract_run
from diffprobe.runs.train import make_source, plan, train
from tests.runs.contract import SMALL

pytestmark = pytest.mark.slow


def params(name):
    return [f"probe.params.{key}={value}" for key, value in SMALL.get(name, {}).items()]


@pytest.mark.parametrize("name", ["diff_c", "difformer", "hyperfeatures"])
@pytest.mark.parametrize("source", ["stored", "live"])
def test_heads_of_maps_train_on_stored_and_live_features(run, name, source):
    config = run(f"probe={name}", *params(name), f"features.source={source}", "features.pool=none")
    if source == "stored":
        extract_run(config, progress=False)
    path = train(config)
    result = read_result(path)
    joint = name != "diff_c"
    cells = list(make_source(config).widths)
    assert {r.cell for r in result.metrics} == ({None} if joint else set(cells)) and len(cells) > 1
    assert all(r.detail.get("cells") == (cells if joint else None) for r in result.metrics)
    folders = sorted(path.parent.glob("probes/*/*"))
    assert len(folders) == (1 if joint else len(cells))
    probe = ClassifierProbe.from_pretrained(folders[0])
    maps = {cell: torch.randn(3, *shape) for cell, shape in probe.shapes.items()}
    assert probe.predict(probe.vector(maps)).shape == (3,)


def test_pooled_features_are_refused_before_anything_is_trained(run):
    config = run("probe=attentive", *params("attentive"))
    extract_run(config, progress=False)
    with pytest.raises(ConfigError, match="'attentive' reads maps"):
        train(config)
    assert not plan(config).run_dir.exists()


def test_a_grid_of_classifiers_has_the_records_of_single_runs(run):
    grid = ["probe.grid.learning_rate=[0.01,0.02]", "probe.grid.label_fraction=[0.5,1.0]", "probe.grid.seed=[0,1]"]
    config = run("probe=mlp", *params("mlp"), *grid)
    extract_run(config, progress=False)
    path = train(config)
    assert read_result(path).metrics == () and len(list((path.parent / "members").iterdir())) == 8
    alone = run("probe=mlp", *params("mlp"), "probe.params.learning_rate=0.02", "probe.params.label_fraction=0.5")
    single = read_result(train(alone))
    (folder,) = path.parent.glob("members/label_fraction=0.5,learning_rate=0.02,seed=0")
    member = read_result(folder / "result.json")
    assert member.metrics == single.metrics and member.seeds == single.seeds
    assert {r.detail["label_fraction"] for r in member.metrics} == {0.5}


def test_settings_without_an_effect(run):
    with pytest.raises(ConfigError, match="give one"):
        plan(run("probe=mlp", "probe.params.learning_rate=0.1", "trainer.learning_rate=0.1"))
    for name in ("knn", "linear_cv"):
        with pytest.raises(ConfigError, match="probe.grid"):
            plan(run(f"probe={name}", "probe.grid.seed=[0,1]"))
        with pytest.raises(ConfigError, match="probe.batched=true has no effect"):
            plan(run(f"probe={name}", "probe.batched=true"))
