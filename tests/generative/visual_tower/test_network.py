"""The adapter on LLaVA: tokens of both towers, training, generation, and its file format."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from diffprobe.core.errors import ConfigError
from diffprobe.generative.visual_tower.network import DiffusionLlava, DiffusionLlavaConfig

IMAGE, N = 60, 4  # the place holder is outside of the vocabulary of 60; 4 patches and 4 diffusion tokens


def make_config(**changes: object) -> DiffusionLlavaConfig:
    settings: dict[str, object] = {
        "text_config": LlamaConfig(
            vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
            bos_token_id=1, eos_token_id=2, pad_token_id=2,
        ),
        "vision_config": CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=16,
            patch_size=8,
        ),
        "image_token_index": IMAGE, "image_seq_length": 2 * N,
        "diffusion_channels": 6, "diffusion_size": [4, 4], "diffusion_width": 8,
    }  # fmt: skip
    return DiffusionLlavaConfig(**{**settings, **changes})


@pytest.fixture
def model() -> DiffusionLlava:
    torch.manual_seed(0)
    return DiffusionLlava(make_config()).eval()


def inputs(n: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    row = [1, *[IMAGE] * (2 * N), 5, 7, 9]
    return {
        "input_ids": torch.tensor([row] * n),
        "pixel_values": torch.randn(n, 3, 16, 16, generator=generator),
        "diffusion_features": torch.randn(n, 6, 4, 4, generator=generator),
    }


def test_the_language_model_reads_clip_and_diffusion_tokens_in_alternation(model) -> None:
    given = inputs()
    seen: list[torch.Tensor] = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**given)
    states = model.model.vision_tower(given["pixel_values"], output_hidden_states=True).hidden_states
    clip = model.model.multi_modal_projector(states[-2][:, 1:])
    diffusion = model.model.diffusion_projector(given["diffusion_features"])
    for i in range(N):
        torch.testing.assert_close(seen[0][:, 1 + 2 * i], clip[:, i])
        torch.testing.assert_close(seen[0][:, 2 + 2 * i], diffusion[:, i])
    words = model.get_input_embeddings()(torch.tensor([1, 5, 7, 9]))
    torch.testing.assert_close(seen[0][0, [0, -3, -2, -1]], words)


def test_parameters_at_the_papers_sizes_are_those_counted_by_hand() -> None:
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=224,
        patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(num_hidden_layers=1)  # one layer of Llama-7B: the projectors depend on its width alone
    config = DiffusionLlavaConfig(text_config=text, vision_config=vision)
    with torch.device("meta"):
        model = DiffusionLlava(config).model
    assert config.n_clip_tokens == config.n_diffusion_tokens == 256
    clip_side = (1024 + 1) * 4096 + (4096 + 1) * 4096
    assert sum(p.numel() for p in model.multi_modal_projector.parameters()) == clip_side == 20_979_712
    assert sum(p.numel() for p in model.diffusion_projector.parameters()) == 42_215_424


def test_the_loss_is_the_mean_cross_entropy_of_the_labelled_tokens(model) -> None:
    given = inputs()
    labels = torch.full_like(given["input_ids"], -100)
    labels[:, -2:] = given["input_ids"][:, -2:]
    found = model(**given, labels=labels)
    logs = found.logits.log_softmax(-1)
    expected = -(logs[:, -3, 7] + logs[:, -2, 9]).mean() / 2
    torch.testing.assert_close(found.loss, expected)


def test_both_towers_change_the_output_and_gradients_reach_both_projectors(model) -> None:
    given = inputs()
    whole = model(**given).logits
    for name in ("pixel_values", "diffusion_features"):
        other = model(**{**given, name: given[name].flip(0)}).logits
        assert (other[:, -1] - whole[:, -1]).abs().max() > 1e-6
    whole[:, -1].square().sum().backward()
    for projector in (model.model.multi_modal_projector, model.model.diffusion_projector):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in projector.parameters())
    assert all(p.grad is None for p in model.model.vision_tower.parameters())


def test_generation_equals_greedy_search_step_by_step_and_depends_on_the_diffusion_tokens(model) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    given, n_new = inputs(), 6
    with torch.no_grad():
        found = model.generate(**given, max_new_tokens=n_new, do_sample=False, eos_token_id=None, pad_token_id=2)
        ids = given["input_ids"]
        for _ in range(n_new):
            ids = torch.cat([ids, model(**{**given, "input_ids": ids}).logits[:, -1:].argmax(-1)], 1)
        assert torch.equal(found, ids)
        without_cache = model.generate(
            **given, max_new_tokens=n_new, do_sample=False, eos_token_id=None, pad_token_id=2, use_cache=False
        )
        assert torch.equal(without_cache, ids)
        beams = model.generate(
            **given, max_new_tokens=n_new, do_sample=False, num_beams=2, eos_token_id=None, pad_token_id=2
        )
        assert beams.shape == ids.shape
        other = {**given, "diffusion_features": 5 * given["diffusion_features"].roll(1, 1)}
        changed = model.generate(**other, max_new_tokens=n_new, do_sample=False, eos_token_id=None, pad_token_id=2)
    assert not torch.equal(found, changed)


def test_rows_of_a_batch_do_not_affect_each_other(model) -> None:
    given = inputs(3)
    with torch.no_grad():
        whole = model(**given).logits
        torch.testing.assert_close(model(**{name: x[1:2] for name, x in given.items()}).logits, whole[1:2])


def test_it_is_saved_as_safetensors_and_loads_again(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = DiffusionLlava.from_pretrained(tmp_path, local_files_only=True).eval()
    assert again.config.diffusion_channels == 6 and again.config.image_token_id == IMAGE
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    given = inputs()
    with torch.no_grad():
        torch.testing.assert_close(again(**given).logits, model(**given).logits)


def test_another_number_of_patches_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"4 patches.*16 tokens"):
        DiffusionLlava(make_config(diffusion_size=[8, 8]))


def test_maps_of_another_shape_are_refused(model) -> None:
    given = inputs()
    for wrong in (torch.randn(2, 5, 4, 4), torch.randn(2, 6, 8, 8)):
        with pytest.raises(ConfigError, match="6 channels and makes 4 tokens"):
            model(**{**given, "diffusion_features": wrong})


def test_one_tower_without_the_other_is_refused(model) -> None:
    given = inputs()
    for name in ("pixel_values", "diffusion_features"):
        with pytest.raises(ConfigError, match=f"without {name}"):
            model(**{key: value for key, value in given.items() if key != name})


def test_other_numbers_of_place_holders_are_refused(model) -> None:
    given = inputs()
    for ids in (given["input_ids"][:, 1 + 2 * N :], given["input_ids"][:, :-4]):
        with pytest.raises(ConfigError, match="16 visual tokens"):
            model(**{**given, "input_ids": ids})
    with pytest.raises(ConfigError, match="0 visual tokens"):
        model(input_ids=given["input_ids"])
