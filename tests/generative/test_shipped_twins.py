"""The twins of the world of scenes: what they share, what they do not, and that they run as their cards say."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
from safetensors.torch import load_file

from diffprobe.core.digest import digest_file
from diffprobe.shards.scenes.world import load_world

ASSETS = Path(str(files("diffprobe") / "assets"))
TWINS = ("scenes-sd", "scenes-sd-permuted")
LARGEST = 64 * 2**20
"""Bytes that ship with the package, at most 64 MiB."""


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_runs_with_nothing_but_a_prompt(name):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(ASSETS / name)
    assert pipeline("a cook, striped clothes", num_inference_steps=2).images[0].size == (64, 64)


def test_the_twins_share_autoencoder_vocabulary_and_shapes():
    first, second = ({path.relative_to(ASSETS / name) for path in _files(ASSETS / name)} for name in TWINS)
    assert first == second
    differ = {path for path in first if digest_file(ASSETS / TWINS[0] / path) != digest_file(ASSETS / TWINS[1] / path)}
    trained = {Path("unet/diffusion_pytorch_model.safetensors"), Path("text_encoder/model.safetensors")}
    assert differ == {Path("README.md"), *trained}
    for part in trained:
        shapes = [{key: value.shape for key, value in load_file(ASSETS / name / part).items()} for name in TWINS]
        assert shapes[0] == shapes[1]


def test_the_tokenizer_takes_each_role_whole():
    """A role that is cut into pieces would share pieces with other roles."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "scenes-sd" / "tokenizer")
    for role in load_world().names("role"):
        assert len(tokenizer(f"a {role}").input_ids) == 4, role  # start, a, the role, end


def test_the_scheduler_states_what_is_predicted():
    config = json.loads((ASSETS / "scenes-sd/scheduler/scheduler_config.json").read_text("utf-8"))
    assert (config["prediction_type"], config["beta_schedule"]) == ("v_prediction", "squaredcos_cap_v2")


def test_what_ships_stays_small():
    assert sum(path.stat().st_size for path in _files(ASSETS)) < LARGEST


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
