import json
import shutil
from pathlib import Path

import pytest
import torch

from diffprobe.backbones.chat_models import (
    ChatEncoder,
    chat_layers,
    chat_width,
    digest_chat_tokenizer,
    is_chat_model,
    load_chat_model,
    match_chat_model,
    read_chat_template,
)
from diffprobe.backbones.families import flux2
from diffprobe.core.errors import WeightsMismatch, WeightsMissing

LENGTH = 24


@pytest.fixture(scope="module", params=["dev", "klein"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux2.tiny(tmp_path_factory.mktemp("flux2") / request.param, klein=request.param == "klein")


def load(folder: Path, *, layers: tuple[int, ...] = (3, 5)) -> ChatEncoder:
    return load_chat_model(folder, dtype=torch.float32, length=LENGTH, layers=layers)


@torch.no_grad()
def test_states_are_those_of_the_whole_model(folder: Path) -> None:
    from transformers import Mistral3ForConditionalGeneration, Qwen3ForCausalLM

    kind = Mistral3ForConditionalGeneration if folder.name == "dev" else Qwen3ForCausalLM
    whole = kind.from_pretrained(folder / "text_encoder")
    encoder = load(folder)
    tokens = encoder.tokens(["red cat", "a"])
    output = whole(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True)
    expected = torch.cat([output.hidden_states[3], output.hidden_states[5]], dim=-1)
    found = encoder.states(["red cat", "a"])
    kept = tokens.attention_mask.bool()
    assert found.shape == (2, LENGTH, 32) and 0 < int(kept.sum()) < kept.numel()
    torch.testing.assert_close(found[kept], expected[kept], atol=1e-5, rtol=0)


def test_layers_behind_the_deepest_state_stay_on_disk(folder: Path) -> None:
    encoder = load(folder)
    assert len(encoder.encoder.layers) == 5  # type: ignore[arg-type]
    assert isinstance(encoder.encoder.norm, torch.nn.Identity)
    assert not any("vision" in name or "lm_head" in name for name in encoder.encoder.state_dict())


@torch.no_grad()
def test_all_layers_end_with_the_norm(folder: Path) -> None:
    encoder = load(folder, layers=(31,))
    tokens = encoder.tokens(["red cat"])
    output = encoder.encoder(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
    assert torch.equal(encoder.states(["red cat"]), output.last_hidden_state)


def test_the_base_of_rotary_embeddings_is_read_from_older_configs(folder: Path, tmp_path: Path) -> None:
    """transformers 4 wrote `rope_theta` beside the other settings; a class declares it no more."""
    copy = shutil.copytree(folder, tmp_path / "pipeline")
    path = copy / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    inner = config["text_config"] if "text_config" in config else config
    inner.pop("rope_parameters", None)
    inner["rope_theta"] = 123.0
    path.write_text(json.dumps(config))
    assert load(copy).encoder.config.rope_parameters["rope_theta"] == 123.0  # type: ignore[union-attr, index]


def test_the_width_and_the_weights_are_known_without_reading_them(folder: Path) -> None:
    part = folder / "text_encoder"
    assert is_chat_model(part) and chat_width(part) == 16 and chat_layers(part) == 31
    network = match_chat_model(part)
    assert len(network.layers) == 31 and all(p.is_meta for p in network.parameters())


def test_a_file_without_a_layer_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(folder, tmp_path / "pipeline")
    path = copy / "text_encoder" / "model.safetensors"
    kept = {name: x for name, x in load_file(path).items() if "layers.2.mlp" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(WeightsMismatch, match="do not fit its config"):
        load(copy)


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma2"}))
    assert not is_chat_model(tmp_path)
    with pytest.raises(WeightsMismatch, match=r"gemma2.*(?s:.*)mistral3"):
        chat_width(tmp_path)


def test_a_template_is_found_where_transformers_puts_it(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no chat template"):
        read_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "in the config"}))
    digests = [digest_chat_tokenizer(tmp_path)]
    assert read_chat_template(tmp_path) == "in the config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "of a processor"}))
    digests.append(digest_chat_tokenizer(tmp_path))
    assert read_chat_template(tmp_path) == "of a processor"
    (tmp_path / "chat_template.jinja").write_text("in a file")
    digests.append(digest_chat_tokenizer(tmp_path))
    assert read_chat_template(tmp_path) == "in a file"
    assert len(set(digests)) == 3


def test_a_template_that_is_no_jinja_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "pipeline")
    (copy / "tokenizer" / "chat_template.jinja").write_text("{% for x in %}")
    with pytest.raises(WeightsMismatch, match="chat template can be rendered"):
        load(copy).render([{"role": "user", "content": "cat"}])


def test_a_template_cannot_reach_python(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "pipeline")
    (copy / "tokenizer" / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(WeightsMismatch, match="chat template can be rendered"):
        load(copy).render([{"role": "user", "content": "cat"}])


def test_a_large_template_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("x" * (2**20 + 1))
    with pytest.raises(WeightsMismatch, match="larger than a chat template"):
        read_chat_template(tmp_path)
