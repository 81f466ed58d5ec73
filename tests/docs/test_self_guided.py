"""The page of self-guided diffusion has the recorded numbers; its script at tiny size; what its experiments share."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from diffprobe.config.compose import load
from diffprobe.config.parse import record_tree
from diffprobe.generative.self_guided import STATISTICS_BATCHES
from tests.docs.markdown import ROOT


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_self_guided", ROOT / "docs/record_self_guided.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_recorded_numbers(script: ModuleType) -> None:
    tree = json.loads(script.OUT.read_text("utf-8"))
    page = script.PAGE.read_text("utf-8")
    for name, lines in script.parts_of_page(tree).items():
        assert script.marked(page, name) == "\n".join(lines), name
    assert load("scenes/train_self_guided", tree["settings"]).experiment == "scenes/train_self_guided"
    for runs in tree["clusters"].values():
        assert set(runs) == {str(seed) for seed in tree["seeds"]}
        assert all(set(found["agreements"]) == set(load("scenes/clusters").attributes) for found in runs.values())


def test_the_statements_are_those_of_the_recorded_numbers(script: ModuleType) -> None:
    tree, page = json.loads(script.OUT.read_text("utf-8")), " ".join(script.PAGE.read_text("utf-8").split())
    assert f"on {STATISTICS_BATCHES} training batches" in page
    beyond = {form: {"above": 0, "below": 0} for form in script.FORMS}
    more_of_side = 0
    for form, runs in tree["clusters"].items():
        for found in runs.values():
            ami = {name: values["ami"] for name, values in found["agreements"].items()}
            place = ami.pop("place")
            low, high = place["differences"].pop("kmeans_features")
            beyond[form]["above"] += low > 0
            beyond[form]["below"] += high < 0
            assert len(place["differences"]) == (3 if form == "released" else 2)
            assert min(low for low, _ in place["differences"].values()) > 0.05
            assert max(values["prototypes"] for values in ami.values()) < 0.07 and not found["collapsed"]
            if form == "released":
                assert all(ami[name]["differences"]["kmeans_features"][1] < 0 for name in ("role", "size"))
                more_of_side += ami["side"]["differences"]["kmeans_features"][1] < 0
    assert beyond == {"released": {"above": 2, "below": 1}, "described": {"above": 2, "below": 0}} and more_of_side == 2
    of_place = [one["agreements"]["place"]["ami"]["prototypes"] for one in tree["clusters"]["described"].values()]
    assert f"{min(of_place):.3f} to {max(of_place):.3f}".replace("0.", ".") in page

    def differences(condition: str, name: str) -> list[float]:
        return [found[condition][name] - found[script.BASELINE][name] for found in tree["conditions"].values()]

    for condition in ("clusters", "labels"):
        for name in script.QUALITY:
            paired = differences(condition, name)
            same_sign = min(paired) > 0 or max(paired) < 0
            assert not same_sign or (name != "frechet_distance" and max(map(abs, paired)) < 0.01)
    recall = differences("described", "recall")
    assert f"by {-max(recall):.3f} to {-min(recall):.3f}.".replace("0.", ".") in page


def agreement(ami: float) -> dict[str, Any]:
    values = {"prototypes": ami, "kmeans_pixels": 0.25, "shuffled_labels": 0.0}
    intervals = {"interval": [ami - 0.1, ami + 0.1], "differences": {"kmeans_pixels": [ami - 0.35, ami - 0.15]}}
    return {"agreements": {"role": {"nmi": values, "ari": values, "ami": values | intervals}}}


def test_the_table_of_clusters_has_one_line_per_attribute(script: ModuleType) -> None:
    tree = {"clusters": {"released": {"0": agreement(0.5)}}}
    assert script.cluster_table(tree) == [
        "| attribute | NMI | ARI | AMI | AMI, kmeans pixels | AMI, shuffled labels |",
        "|---|---|---|---|---|---|",
        "| role | 0.500 | 0.500 | 0.500 | 0.250 | 0.000 |",
    ]
    tree["clusters"]["released"]["1"] = agreement(0.1)
    tree["clusters"]["described"] = {"0": agreement(0.3), "1": agreement(0.3)}
    assert "| 0.300 [0.100, 0.500] | 0.300 [0.300, 0.300] | 0.250 [0.250, 0.250] |" in script.cluster_table(tree)[2]
    assert script.counts_line(tree).endswith("kmeans pixels 1 above and 1 below of 2.")  # +.15 to .35, -.25 to -.05
    tree["clusters"]["released"]["1"] = agreement(0.3)
    assert script.counts_line(tree).endswith("kmeans pixels 1 above and 0 below of 2.")


def test_the_table_of_conditions_has_differences_paired_by_seed(script: ModuleType) -> None:
    assert script.condition_table({"conditions": {}}) == []

    def one(value: float) -> dict[str, float]:
        return dict.fromkeys(script.QUALITY, value) | {f"rendered_{name}": 0.75 for name in script.QUALITY}

    found = {
        "0": {"labels": one(0.75), "unconditional": one(0.5), "clusters": one(0.5)},
        "1": {"labels": one(1.0), "unconditional": one(0.25), "clusters": one(0.5)},
    }
    lines = script.condition_table({"conditions": found})
    assert lines[2].startswith("| unconditional | 0.4 [0.2, 0.5] | 0.375 [0.250, 0.500] |")
    assert lines[3].startswith("| clusters | +0.1 [+0.0, +0.2] | +0.125 [+0.000, +0.250] |")
    assert lines[4].startswith("| roles | +0.5 [+0.2, +0.8] | +0.500 [+0.250, +0.750] |")
    assert lines[5].startswith("| rendered scenes | 0.8 [0.8, 0.8] | 0.750") and len(lines) == 6
    del found["0"]["clusters"]  # collapsed
    lines = script.condition_table({"conditions": found})
    assert lines[3].startswith("| clusters (seed 1) | +0.2 | +0.250 |") and len(lines) == 6


def test_parts_of_the_page_are_replaced_alone(script: ModuleType) -> None:
    page = "a\n<!-- x -->\n<!-- end of x -->\nb\n"
    filled = script.marked(page, "x", ["1", "2"])
    assert filled == "a\n<!-- x -->\n1\n2\n<!-- end of x -->\nb\n" and script.marked(filled, "x") == "1\n2"
    assert script.marked(filled, "x", []) == page


def test_the_three_trainings_differ_in_their_conditions_alone() -> None:
    trees = {
        name: record_tree(load(f"scenes/{name}"))
        for name in ("train_self_guided", "train_cluster_conditioned", "train_label_conditioned")
    }
    first, second, third = trees.values()
    assert {key for key in second if second[key] != third[key]} == {"experiment", "classes"}
    differing = {key for key in third if first[key] != third[key]}
    assert differing == {"experiment", "classes", "captions", "drop_captions", "drop_captions_clean"}


@pytest.mark.slow
def test_the_script_runs_at_tiny_size_and_a_second_call_trains_nothing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffusers import AutoencoderKL

    from diffprobe.generative.scene_reader import SceneReader
    from diffprobe.runs import train_generative as training
    from diffprobe.shards.datasets import scenes
    from diffprobe.shards.scenes.world import load_world

    scenes.build(tmp_path / "scenes", n=1600, seed=0)  # at least 20 images of each role
    SceneReader(load_world(), resolution=32).save(tmp_path / "reader")
    torch.manual_seed(0)
    vae: Any = AutoencoderKL(
        sample_size=32, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4, mid_block_add_attention=False,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    images = [f"reader={tmp_path / 'reader'}", "n_per_class=6", "sampling_steps=1", "n_resamples=20"]
    command = [
        "--out", str(tmp_path / "out.json"), "--runs", str(tmp_path / "runs"),
        "--seeds", "0",
        "--clusters", f"data.path={tmp_path / 'scenes'}", "--clusters", "data.limit=100", "--clusters", "n_resamples=4",
        *(word for setting in images for word in ("--images", setting)),
        "--", f"autoencoder={tmp_path / 'vae'}", f"data.path={tmp_path / 'scenes'}", "data.batch_size=8",
        "data.limit=1000", "trainer.max_steps=3", "trainer.enable_progress_bar=false", "warmup_steps=1",
        "trainer.precision=32-true", "logger=none",
        "model={channels: [8, 16], cross_attention: [true, false], heads: 2, norm_groups: 4, text_width: 16, "
        "text_layers: 1, text_heads: 2, vocab_size: 540, max_tokens: 8}",
    ]  # fmt: skip
    monkeypatch.setattr("diffprobe.generative.cluster_assignment.Clusters.require_clusters", lambda _self: None)
    facts = script.facts_of  # three steps collapse; a collapsed run has no second stage, which is tested here
    monkeypatch.setattr(script, "facts_of", lambda result: {**facts(result), "collapsed": False})
    script.main(command)
    tree = json.loads((tmp_path / "out.json").read_text())
    assert tree["parts"] == list(script.PARTS) and set(tree["conditions"]["0"]) == set(script.NAMES) - {"rendered"}
    nmi = tree["clusters"]["released"]["0"]["agreements"]["role"]["nmi"]
    assert set(nmi) == {"prototypes", *script.CONTROLS}
    assert "random_network" not in tree["clusters"]["described"]["0"]["agreements"]["role"]["nmi"]
    assert "| rendered scenes |" in capsys.readouterr().out

    def refuse(config: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train_generative", refuse)
    script.main(command)
    assert json.loads((tmp_path / "out.json").read_text()) == tree
