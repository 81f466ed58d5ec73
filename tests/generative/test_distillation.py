import pytest
import torch

from diffprobe.core.errors import WeightsMissing
from diffprobe.generative.distillation import Teacher


def test_an_embedding_is_the_mean_over_tokens(tiny_teacher):
    from transformers import AutoModel, AutoTokenizer

    teacher, texts = Teacher(tiny_teacher, batch_size=2), ["cat", "a red cat on a mat", "dog", "a blue dog"]
    model, tokenizer = AutoModel.from_pretrained(tiny_teacher).eval(), AutoTokenizer.from_pretrained(tiny_teacher)
    for text, found in zip(texts, teacher.embed(texts), strict=True):
        with torch.no_grad():
            mean = model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0)
        torch.testing.assert_close(found, mean / mean.norm(), atol=1e-5, rtol=1e-4)


def test_words_are_whole_entries(tiny_teacher):
    assert Teacher(tiny_teacher).words == ["blue", "cat", "dog", "mat", "red"]


def test_a_folder_without_weights_or_tokenizer_is_named(tiny_teacher, tmp_path):
    with pytest.raises(WeightsMissing, match="safetensors"):
        Teacher(tmp_path)
    for path in tiny_teacher.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(WeightsMissing, match="tokenizer.json"):
        Teacher(tmp_path)
