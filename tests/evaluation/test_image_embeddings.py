"""Embeddings of images: in parts of bounded size, by pixels, by a backbone, or by any callable."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.evaluation import image_embeddings as module
from diffprobe.evaluation.image_embeddings import LatentEncoder, PixelEncoder, embed_images

KEYS = [f"k{i}" for i in range(7)]


def pictures(keys):
    return {key: Image.new("RGB", (20, 20), (10 * int(key[1:]), 0, 255)) for key in keys}


def test_pixels_are_small_and_between_minus_one_and_one(monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", 3)
    asked = []

    def fetch(keys):
        asked.append(len(keys))
        return pictures(keys)

    found = embed_images([*KEYS, "k0"], fetch, PixelEncoder(4))
    assert asked == [3, 3, 1] and list(found) == KEYS
    assert found["k3"].shape == (48,) and found["k3"].dtype == np.float32
    np.testing.assert_allclose(found["k3"][:16], 2 * 30 / 255 - 1, atol=0.01)
    assert PixelEncoder(4).name == "pixels, 4 x 4"


def test_latents_are_those_of_the_backbone():
    class Backbone:
        denoiser = torch.nn.Linear(1, 1)

        def encode_images(self, images):
            return images[:, :, ::4, ::4] * 2

    encoder = LatentEncoder(Backbone(), 8, "tiny")
    found = embed_images(KEYS, pictures, encoder)
    assert found["k1"].shape == (3 * 2 * 2,) and found["k1"][-1] == pytest.approx(2.0)
    assert encoder.name == "VAE latents of tiny at 8 pixels"


def test_a_wrong_encoder_is_refused(monkeypatch):
    class Encoder:
        name = "mine"

        def __init__(self, answers):
            self.answers = iter(answers)

        def __call__(self, images):
            return next(self.answers)

    monkeypatch.setattr(module, "_AT_ONCE", 4)
    with pytest.raises(ConfigError, match=r"'mine' returned the shape \(3, 2\) for 4 images"):
        embed_images(KEYS, pictures, Encoder([np.ones((3, 2))]))
    with pytest.raises(ConfigError, match=r"needed: \(3, 2\)"):
        embed_images(KEYS, pictures, Encoder([np.ones((4, 2)), np.ones((3, 5))]))
    with pytest.raises(NonFinite, match="image 'k1'"):
        embed_images(KEYS, pictures, Encoder([np.array([[1.0], [np.nan], [1.0], [1.0]])]))
    with pytest.raises(ConfigError, match="side=0"):
        PixelEncoder(0)
