import shutil

import pytest
import torch

from diffprobe.backbones.caption_encoder import load_caption_encoder
from diffprobe.backbones.text_encoders import load_clip_text
from diffprobe.core.errors import ConfigError, WeightsMissing

CAPTIONS = ["a red cat", "a blue dog", "noto emoji, round"]


def test_vectors_are_mean_states_whatever_the_batch_and_the_precision(tiny_sd):
    encoder = load_caption_encoder(str(tiny_sd))
    found = encoder(CAPTIONS)
    assert found.shape == (3, encoder.width) and found.dtype == torch.float32
    torch.testing.assert_close(found, load_clip_text(tiny_sd, dtype=torch.float32).mean_states(CAPTIONS))
    torch.testing.assert_close(encoder(CAPTIONS[1:2])[0], found[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoder(CAPTIONS).equal(found)
    assert encoder([]).shape == (0, encoder.width)


def test_the_digest_is_of_weights_and_words(tiny_sd, tmp_path):
    first = load_caption_encoder(str(tiny_sd)).digest
    copy = tmp_path / "copy"
    shutil.copytree(tiny_sd, copy)
    assert load_caption_encoder(str(copy)).digest == first
    words = next(path for path in (copy / "tokenizer").iterdir() if path.name == "tokenizer_config.json")
    words.write_text(words.read_text() + "\n")
    assert load_caption_encoder(str(copy)).digest != first


def test_a_pipeline_without_a_clip_text_encoder_is_refused(tiny_sd, tmp_path):
    with pytest.raises(ConfigError, match="'pixels'"):
        load_caption_encoder("pixels")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_sd, copy)
    for file in (copy / "text_encoder").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(WeightsMissing):
        load_caption_encoder(str(copy))
    shutil.rmtree(copy / "text_encoder")
    with pytest.raises(ConfigError, match="no CLIP text encoder"):
        load_caption_encoder(str(copy))
