"""The shipped flow model runs as its card says, and knows which caption an image has."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.locate import SHIPPED, SHIPPED_UNETS, locate
from diffprobe.config.compose import load
from diffprobe.core.errors import WeightsMismatch
from diffprobe.evaluation.backbone import load_pipeline
from diffprobe.generative.architectures import require_autoencoder
from diffprobe.generative.scene_reader import to_tensor
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.splits import split_indices
from diffprobe.shards.scenes.world import load_world

FOLDER = Path(str(files("diffprobe") / "assets" / "scenes-flow"))


def test_it_is_found_by_its_name_and_is_a_pipeline_of_stable_diffusion_3():
    checkpoint = locate("scenes-flow")
    assert checkpoint.folder == FOLDER and checkpoint.index["_class_name"] == "StableDiffusion3Pipeline"
    assert "scenes-flow" in SHIPPED and "scenes-flow" not in SHIPPED_UNETS


@pytest.mark.slow
def test_it_runs_with_nothing_but_a_prompt():
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(FOLDER, text_encoder_3=None, tokenizer_3=None)
    assert pipeline("a cook, striped clothes", num_inference_steps=2).images[0].size == (32, 32)


def test_its_features_are_those_of_the_family():
    features = DiffusionFeatures.from_pretrained(
        "scenes-flow", taps=["transformer_blocks.2"], timesteps=[200], pool="none"
    )
    found = features(torch.zeros(2, 3, 32, 32), keys=["a", "b"])
    assert [tuple(map_.shape) for map_ in found.values()] == [(2, 64, 4, 4)]


@pytest.mark.slow
def test_an_image_fits_its_own_role_better_than_another():
    spec = load_world()
    scenes = sample(spec, 0, split_indices(spec, 0, "test", 48))
    images = to_tensor(render(spec, scenes, resolution=32).images)
    roles = [spec.names("role")[code] for code in scenes.factors["role"]]
    others = np.roll(roles, 1).tolist()
    model = DenoisingError.from_pretrained("scenes-flow", device="cpu")
    candidates = [model.encode_conditions([f"a {role}" for role in names]) for names in (roles, others)]
    conditions = {key: torch.stack([one[key] for one in candidates], dim=1) for key in candidates[0]}
    errors = model(model.encode_images(images), [str(i) for i in scenes.indices], conditions, [500, 700]).mean(2)
    differing = torch.tensor([a != b for a, b in zip(roles, others, strict=True)])
    assert float((errors[:, 0] < errors[:, 1])[differing].double().mean()) > 0.9


def test_the_tokenizers_take_each_role_whole():
    from transformers import CLIPTokenizer

    for part in ("tokenizer", "tokenizer_2"):
        tokenizer = CLIPTokenizer.from_pretrained(FOLDER / part)
        assert all(len(tokenizer(f"a {role}").input_ids) == 4 for role in load_world().names("role"))


def test_the_recipe_makes_a_model_of_its_shape():
    config = load("scenes/train_flow_small")
    transformer = json.loads((FOLDER / "transformer/config.json").read_text("utf-8"))
    assert transformer["num_layers"] == config.transformer.layers
    assert transformer["num_attention_heads"] == config.transformer.heads
    text = json.loads((FOLDER / "text_encoder/config.json").read_text("utf-8"))
    assert text["hidden_size"] == config.model.text_width
    assert require_autoencoder(config.autoencoder) == FOLDER / "vae"


def test_the_parameters_are_those_of_the_card():
    card = (FOLDER / "README.md").read_text("utf-8")
    for part, file in (
        ("vae", "diffusion_pytorch_model"),
        ("transformer", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        n = sum(x.numel() for x in load_file(FOLDER / part / f"{file}.safetensors").values())
        (line,) = (line for line in card.splitlines() if line.startswith(f"| {part}"))
        assert f"| {n / 1e6:.2f} M" in line, part


def test_what_opens_unets_only_names_those():
    with pytest.raises(WeightsMismatch, match="StableDiffusion3Pipeline") as caught:
        load_pipeline("scenes-flow")
    assert "scenes-sd" in str(caught.value.fix) and "scenes-flow" not in str(caught.value.fix)
