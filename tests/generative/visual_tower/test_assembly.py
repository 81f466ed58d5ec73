"""A LLaVA from its parts: the same weights, new projectors by seed, nothing that is trained yet."""

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.generative.visual_tower.assembly import (
    TinyShape,
    assemble,
    clip_config,
    load_projectors,
    make_language_model,
    require_language_model,
)

SHAPE = TinyShape(
    width=16, layers=1, heads=2, vocab_size=540, clip_width=8, clip_layers=2, clip_resolution=16, clip_patch=8
)


def make(language="tiny", clip="tiny", *, seed=0, width=8):
    model, tokenizer = make_language_model(str(language), SHAPE, ["a red cat"], seed=1)
    llava = assemble(
        model, tokenizer, clip=str(clip), tiny=SHAPE, channels=6, size=(4, 4), width=width, seed=seed
    )  # fmt: skip
    return llava, tokenizer


def test_tiny_parts_are_fixed_by_the_seed_and_frozen() -> None:
    one, same, other = make()[0].state_dict(), make()[0].state_dict(), make(seed=1)[0].state_dict()
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert not torch.equal(
        one["model.diffusion_projector.project.0.weight"], other["model.diffusion_projector.project.0.weight"]
    )
    llava, tokenizer = make()
    assert not any(p.requires_grad or p.is_meta for p in llava.parameters())
    assert (
        llava.config.image_token_id == tokenizer.convert_tokens_to_ids("<image>") >= llava.config.text_config.vocab_size
    )
    assert llava.config.image_seq_length == 8


def test_parts_from_folders_keep_their_weights(tiny_parts) -> None:
    llava, tokenizer = make(language=tiny_parts["language_model"], clip=tiny_parts["clip"])
    language = load_file(tiny_parts["language_model"] / "model.safetensors")
    assert torch.equal(llava.lm_head.weight, language["lm_head.weight"])
    assert torch.equal(llava.model.language_model.embed_tokens.weight, language["model.embed_tokens.weight"])
    clip = load_file(tiny_parts["clip"] / "model.safetensors")
    name = next(name for name in clip if name.endswith("patch_embedding.weight"))
    found = {key: value for key, value in llava.model.vision_tower.state_dict().items() if key.endswith(name[-22:])}
    assert len(found) == 1 and torch.equal(next(iter(found.values())), clip[name])
    assert tokenizer.eos_token_id == llava.config.text_config.eos_token_id
    assert tokenizer("a red cat", add_special_tokens=False).input_ids


def test_projectors_of_a_saved_model_are_taken_over_and_nothing_else(tmp_path) -> None:
    saved, fresh = make(seed=1)[0], make()[0]
    saved.lm_head.weight.data.zero_()
    saved.save_pretrained(tmp_path)
    load_projectors(fresh, tmp_path)
    for part in ("diffusion_projector", "multi_modal_projector"):
        for one, two in zip(
            getattr(fresh.model, part).parameters(), getattr(saved.model, part).parameters(), strict=True
        ):
            assert torch.equal(one, two)
    assert fresh.lm_head.weight.abs().max() > 0
    with pytest.raises(WeightsMismatch, match="do not fit"):
        load_projectors(make(width=4)[0], tmp_path)


def test_missing_or_foreign_parts_are_refused(tiny_parts, tmp_path) -> None:
    with pytest.raises(WeightsMissing, match=r"language_model=.*nowhere"):
        require_language_model(str(tmp_path / "nowhere"))
    with pytest.raises(WeightsMissing, match="config"):
        clip_config(str(tmp_path), SHAPE)
    with pytest.raises(WeightsMismatch, match="llama"):
        clip_config(str(tiny_parts["language_model"]), SHAPE)
    with pytest.raises(WeightsMismatch, match="clip_vision_model"):
        require_language_model(str(tiny_parts["clip"]))
    assert require_language_model("tiny") is None


@pytest.mark.parametrize(
    ("key", "value"), [("vocab_size", 513), ("clip_layers", 1), ("heads", 0), ("width", 20), ("clip_patch", 5)]
)
def test_a_tiny_shape_that_cannot_be_built_is_refused(key, value) -> None:
    with pytest.raises(ConfigError, match="tiny"):
        TinyShape(**{key: value})
