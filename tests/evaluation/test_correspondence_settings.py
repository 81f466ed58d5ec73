"""Settings without effect or sense are refused before anything is opened."""

from typing import Any

import pytest

from diffprobe.cli.main import main
from diffprobe.config.compose import load
from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.correspondence_settings import CorrespondenceEvaluation

TREE: dict[str, Any] = {
    "backbone": {"path": "emoji-sd"},
    "data": {"path": "emoji"},
    "features": {"taps": ["mid_block"], "timesteps": [20], "pool": "none"},
}


def test_variants_are_all_combinations_and_a_box_needs_parts() -> None:
    names = [variant.name for variant in parse(CorrespondenceEvaluation, TREE).variants]
    assert names == [f"pck@{alpha}_per_{per}_image" for alpha in (0.05, 0.1) for per in ("point", "image")]
    with_box = parse(CorrespondenceEvaluation, {**TREE, "box_parts": [3]})
    assert len(with_box.variants) == 8 and with_box.selecting.name == "pck@0.1_per_point_box"


@pytest.mark.parametrize(
    ("keys", "fact"),
    [
        ({"features": {**TREE["features"], "pool": "mean"}}, "pool"),
        ({"features": {**TREE["features"], "keep_draws": True, "draws": 2}}, "keep_draws"),
        ({"same": ["role"], "differ": ["role"]}, "role"),
        ({"alphas": []}, "alphas"),
        ({"alphas": [1.5]}, "alphas"),
        ({"alphas": [0.2]}, "select_alpha"),
        ({"box_parts": [0]}, "box_parts"),
        ({"sides": [["a", "b"], ["b", "c"]]}, "sides"),
        ({"mirror": True}, "sides"),
        ({"fuse": ["mid_block@t20:empty:none"]}, "fuse"),
        ({"controls": ["pixels", "pixels"]}, "controls"),
        ({"n_pairs": 1}, "n_pairs"),
        ({"pairs_file": "x", "same": ["role"]}, "pairs_file"),
        ({"flip": True}, "sides"),
        ({"flip": True, "sides": [["a", "b"]], "differ": ["role"]}, "flip"),
        ({"flip": True, "sides": [["a", "b"]], "mixture": {}}, "flip"),
        ({"controls": ["single_draw"]}, "draws"),
        ({"cleandift_timestep": 3}, "cleandift"),
        ({"fuse_with": ["cleandift"]}, "cleandift"),
        ({"fuse_with": ["pixels", "pixels"]}, "once"),
        ({"fuse_with": ["pixels"], "fuse_weights": [1.0]}, "fuse_weights"),
        ({"fuse_with": ["pixels"], "fuse_weights": []}, "fuse_weights"),
        ({"massive_ratio": 1.0}, "massive_ratio"),
        ({"features": {**TREE["features"], "massive": {"treatment": "drop"}}}, "features.massive"),
        ({"mixture": {"groups": 5}}, "groups"),
        ({"mixture": {"learning_rate": 0}}, "learning_rate"),
        ({"mixture": {"steps": 0}}, "steps"),
    ],
)
def test_wrong_settings_are_refused(keys: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        parse(CorrespondenceEvaluation, {**TREE, **keys})


def test_the_cost_counts_passes_of_all_that_is_read() -> None:
    tree = {**TREE, "features": {**TREE["features"], "timesteps": [20, 40], "draws": 3}, "n_pairs": 10}
    lines = parse(CorrespondenceEvaluation, tree).cost_lines
    assert lines[0] == "denoiser passes per image: 6 (2 timesteps, 3 draws)" and "40 images: 240" in lines[1]
    more = parse(CorrespondenceEvaluation, {**tree, "cleandift": "x", "mixture": {"n_pairs": 5}}).cost_lines
    assert any("CleanDIFT model: 40" in line for line in more) and any("mixtures: 120" in line for line in more)


@pytest.mark.parametrize("row", ["dift", "cleandift"])
def test_the_presets_of_spair_are_valid_offline_and_state_their_cost(
    row: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load(f"spair71k/{row}", [], kinds=("evaluate_correspondence",))
    assert found.published.metric == found.selecting.name and found.published.tolerance > 0
    assert found.published.provenance.startswith(("read in ", "second hand: "))
    assert main(["eval", "correspondence", f"experiment=spair71k/{row}", "--check"]) == 0
    assert "denoiser passes per image" in capsys.readouterr().out
