"""`eval use` on the tiny pipeline and shards: the cells, the record, resuming, and tables beside a readout."""

import dataclasses

import pytest
import torch

from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError, SchemaError, TooFewGroups, UnknownName, UnknownTap
from diffprobe.core.result import read_result
from diffprobe.evaluation.use import ERRORS, UseEvaluation, evaluate_use
from diffprobe.report.default_table import default_tables
from diffprobe.runs.tables import build_table
from diffprobe.scoring.intervention_network import InterventionNetwork
from diffprobe.scoring.tap_interventions import INTERVENTIONS

ATTENTION = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def settings(tiny_sd, tiny_shards, output, **keys):
    tree = {
        "experiment": "tiny/use",
        "backbone": {"path": str(tiny_sd), "device": "cpu"},
        "data": {"path": str(tiny_shards), "batch_size": 8},
        "features": {"taps": ["mid_block", ATTENTION], "timesteps": [20, 500], "condition": "caption", "seed": 5},
        "train_limit": 6,
        "output": str(output),
    }
    return parse(UseEvaluation, {**tree, **keys})


@pytest.fixture(scope="module")
def config(tiny_sd, tiny_shards, tmp_path_factory):
    return settings(tiny_sd, tiny_shards, tmp_path_factory.mktemp("use"))


@pytest.fixture(scope="module")
def evaluated(config):
    return evaluate_use(config)


def changed(config, **keys):
    own = {key: value for key, value in keys.items() if not isinstance(value, dict)}
    parts = {key: dataclasses.replace(getattr(config, key), **value) for key, value in keys.items() if key not in own}
    return dataclasses.replace(config, **own, **parts)


def test_the_interventions_of_a_config_are_those_that_there_are():
    assert UseEvaluation.__dataclass_fields__["interventions"].default == tuple(INTERVENTIONS)


@pytest.mark.slow
def test_every_cell_is_measured_under_every_intervention_on_held_out_samples(evaluated):
    result = read_result(evaluated)
    assert result.kind == "use" and result.experiment == "tiny/use" and "output" not in result.config
    assert result.seeds == {"noise": 5, "bootstrap": 0, "patching": 0}
    assert set(result.artifacts) == {"input/shards", "input/backbone"}
    cells = [f"{tap}@t{t}:caption:mean" for tap in ("mid_block", ATTENTION) for t in (20, 500)]
    metrics = ("delta_mse", "relative_delta_mse")
    expected = [(cell, name, metric) for cell in cells for name in INTERVENTIONS for metric in metrics]
    assert [(record.cell, record.probe, record.name) for record in result.metrics] == expected
    for record in result.metrics:
        assert record.split == "val" and record.n == 4 and record.detail["n_clusters"] == 4
        assert record.detail["mean_of"] == "6 training samples" and record.detail["target"] == "epsilon"
    assert any(record.value > 0 for record in result.metrics)


@pytest.mark.slow
def test_a_repeated_call_continues_from_the_finished_cells(config, evaluated, tmp_path, monkeypatch):
    again = changed(config, output=str(tmp_path))
    passes = []
    measure = InterventionNetwork.errors

    def fail_late(self, samples, t, changes=None, tick=lambda n: None):
        passes.append(t)
        if len(passes) == 8:
            raise KeyboardInterrupt
        return measure(self, samples, t, changes, tick)

    monkeypatch.setattr(InterventionNetwork, "errors", fail_late)
    with pytest.raises(KeyboardInterrupt):
        evaluate_use(again)
    (folder,) = tmp_path.glob("tiny/use/*")
    assert len(list((folder / ERRORS).iterdir())) == 1 and not (folder / "result.json").exists()
    passes.clear()
    monkeypatch.setattr(InterventionNetwork, "errors", lambda *a, **k: passes.append(a[2]) or measure(*a, **k))
    path = evaluate_use(again)
    assert path.parent.name == evaluated.parent.name and read_result(path).metrics == read_result(evaluated).metrics
    # at t=20 one cell was left, at t=500 both: means, untouched, and three interventions (patching has its own passes)
    assert sorted(passes) == [20] * 5 + [500] * 8
    passes.clear()
    monkeypatch.setattr(InterventionNetwork, "encode_images", lambda *a: torch.zeros(len(a[1]), 4, 16, 16))
    evaluate_use(again)
    assert passes == []


@pytest.mark.slow
def test_files_of_other_samples_and_damaged_ones_are_refused(config, evaluated, tmp_path):
    from safetensors.torch import save_file

    again = changed(config, output=str(tmp_path), interventions=("zero_ablation",), features={"timesteps": (20,)})
    folder = evaluate_use(again).parent / ERRORS
    one, other = sorted(folder.iterdir())
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    with pytest.raises(SchemaError, match=r"does not hold the errors of(.|\n)*remove the folder"):
        evaluate_use(again)
    one.write_bytes(content[:-9])
    with pytest.raises(SchemaError, match=r"not a readable safetensors file(.|\n)*remove the folder"):
        evaluate_use(again)
    header = {"cell": f"{ATTENTION}@t20:caption:mean", "samples": "0" * 64, "n_train": "6"}
    for path in (one, other):
        save_file({"untouched": torch.ones(4), "zero_ablation": torch.ones(4)}, path, metadata=header)
    with pytest.raises(SchemaError, match="for these samples"):
        evaluate_use(again)


def test_groups_are_those_that_are_named_and_limits_hold(config, tmp_path):
    short = {"output": str(tmp_path), "interventions": ("patching",), "features": {"timesteps": (20,)}}
    path = evaluate_use(changed(config, **short, group_attribute="style", split="test"))
    records = read_result(path).metrics
    assert {record.detail["n_clusters"] for record in records} == {2} and {record.split for record in records} == {
        "test"
    }
    assert "mean_of" not in records[0].detail  # patching needs no mean
    records = read_result(evaluate_use(changed(config, **short, limit=3))).metrics
    assert {record.n for record in records} == {3}


def test_both_branches_of_guidance_are_measured(config, tmp_path):
    one = {"timesteps": (20,), "taps": ("mid_block",), "unconditional": True}
    both = changed(config, output=str(tmp_path), interventions=("zero_ablation",), features=one)
    found = read_result(evaluate_use(both)).metrics
    assert {record.cell for record in found} == {"mid_block@t20:caption:mean", "mid_block@t20:empty:mean"}
    assert len({record.value for record in found if record.name == "delta_mse"}) == 2


def test_it_is_a_table_by_layer_and_timestep_without_a_spec(evaluated):
    result = read_result(evaluated)
    found = default_tables([result])
    (spec,) = found.specs
    assert spec.metric == "relative_delta_mse" and spec.filter["kind"] == "use" and not spec.ranked
    assert [axis.field for axis in spec.rows] == ["probe", "tap"] and spec.columns.field == "timestep"
    table = build_table([str(evaluated.parent)], None)
    text = table.render("markdown")
    assert "| mean_ablation" in text and "| t = 20 | t = 500 |" in text and "**0" not in text
    assert len(table.figures("heat-map")) == len(INTERVENTIONS)  # one heat map each


@pytest.mark.parametrize(
    ("keys", "error", "match"),
    [
        ({"split": "train"}, ConfigError, "split=train is the training split(.|\n)*split=val"),
        ({"split": "tets"}, UnknownName, "'tets'(.|\n)*test"),
        ({"group_attribute": "familie"}, UnknownName, "group_attribute 'familie'"),
        ({"features": {"taps": ("mid_blok",)}}, UnknownTap, "'mid_blok'(.|\n)*mid_block"),
        ({"features": {"taps": (f"{ATTENTION}/probs",)}}, ConfigError, "attn2/probs: attention weights"),
        ({"features": {"taps": (f"{ATTENTION}.to_k",)}}, UnknownTap, "to_k"),
        ({"features": {"pool": "max"}}, ConfigError, "mean_ablation with pool=max"),
        ({"limit": 1}, TooFewGroups, "intervals over groups: 1 group in 1 sample"),
        ({"backbone": {"clean_input": True}}, ConfigError, "clean images"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_written(config, tmp_path, keys, error, match):
    with pytest.raises(error, match=match):
        evaluate_use(changed(config, output=str(tmp_path), **keys))
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("result.json"))


def test_settings_out_of_range_are_refused(config):
    for keys in ({"limit": 0}, {"train_limit": 0}):
        with pytest.raises(ConfigError, match="out of range: at least 1"):
            changed(config, **keys)
    for names in ((), ("patching", "patching")):
        with pytest.raises(ConfigError, match="interventions.*at least one, each once"):
            changed(config, interventions=names)
