from pathlib import Path

import pytest
import torch

from diffprobe.backbones.families import sana
from diffprobe.backbones.language_models import LanguageModelEncoder, load_gemma2
from diffprobe.core.errors import WeightsMissing

LENGTH = 12
INSTRUCTION = "the photo of: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sana.tiny(tmp_path_factory.mktemp("sana") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> LanguageModelEncoder:
    return load_gemma2(folder, dtype=torch.float32, length=LENGTH)


@torch.no_grad()
def test_states_are_those_of_the_model_and_padding_stands_behind(encoder: LanguageModelEncoder) -> None:
    states, mask = encoder(["red cat", ""])
    assert states.shape[:2] == mask.shape == (2, LENGTH)
    ids = encoder.tokenizer("red cat").input_ids
    assert mask.tolist() == [[1] * len(ids) + [0] * (LENGTH - len(ids)), [1] + [0] * (LENGTH - 1)]
    alone = encoder.encoder(torch.tensor([ids]))[0][0]
    torch.testing.assert_close(states[0, : len(ids)], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_an_instruction_is_seen_and_not_kept(encoder: LanguageModelEncoder) -> None:
    told, mask = encoder(["red cat"], instruction=INSTRUCTION)
    ids = encoder.tokenizer(INSTRUCTION + "red cat").input_ids
    n_instruction = len(encoder.tokenizer.encode(INSTRUCTION))
    whole = encoder.encoder(torch.tensor([ids]))[0][0]
    dropped = n_instruction - 2  # besides the first token, so many give way to the prompt
    assert told.shape[1] == LENGTH and int(mask.sum()) == len(ids) - dropped
    torch.testing.assert_close(told[0, 0], whole[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(told[0, 1 : len(ids) - dropped], whole[1 + dropped :], atol=1e-5, rtol=0)
    plain, _ = encoder(["red cat"])
    assert (
        float((told[0, len(ids) - dropped - 1] - plain[0, len(encoder.tokenizer("red cat").input_ids) - 1]).norm())
        > 1e-2
    )


def test_a_prompt_beyond_the_length_is_truncated_with_a_warning(encoder: LanguageModelEncoder) -> None:
    with pytest.warns(UserWarning, match=f"truncated to the {LENGTH} "):
        states, mask = encoder(["a photo of the moon and a star"])
    assert states.shape[1] == LENGTH and bool(mask.all())


def test_a_folder_without_a_vocabulary_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").symlink_to(folder / "text_encoder")
    with pytest.raises(WeightsMissing, match=r"tokenizer\.json"):
        load_gemma2(tmp_path, dtype=torch.float32, length=LENGTH)
