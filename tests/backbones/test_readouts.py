from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.hooks import Capture, trace
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.readouts import hooked_modules, may_cross_attend, split_tap

Load = Callable[..., DiffusionFeatures]
KEYS = ["a/0", "a/1", "b.2", "b.3", "c"]
ATTN = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_tap_is_a_module_and_perhaps_a_readout() -> None:
    assert split_tap("mid_block") == ("mid_block", None)
    assert split_tap(f"{ATTN}/logits") == (ATTN, "logits")
    assert hooked_modules(f"{ATTN}/probs") == (ATTN, f"{ATTN}.to_q", f"{ATTN}.to_k")
    assert f"{ATTN}.to_q" in hooked_modules(f"{ATTN}/heads")
    assert hooked_modules("transformer_blocks.1/text") == ("transformer_blocks.1",)
    inner = {"blocks.1.norm1.linear", "blocks.1.img_mod.1", "blocks.1.visual_modulation.out_layer"}
    assert inner < set(hooked_modules("blocks.1/modulated"))


class TestOnATinyPipeline:
    def test_it_is_what_diffusers_own_attention_scores_say(
        self, load: Load, reference: Callable[..., dict[str, Tensor]], images: Tensor
    ) -> None:
        from diffusers.models.attention_processor import Attention

        features = load(taps=[f"{ATTN}/probs", f"{ATTN}/logits"], pool="none", timesteps=[261])
        found = features(images, keys=KEYS)
        raw = reference(images, KEYS, [f"{ATTN}.to_q", f"{ATTN}.to_k"], 261)
        heads = features._backbone.denoiser.get_submodule(ATTN).heads
        other = Attention(query_dim=32, heads=heads, dim_head=32 // heads)
        q, k = (other.head_to_batch_dim(raw[f"{ATTN}.{name}"]) for name in ("to_q", "to_k"))
        probs = other.get_attention_scores(q, k).unflatten(0, (5, heads)).mean(1)
        close(found[f"{ATTN}/probs@t261:empty:none"], probs.transpose(1, 2).unflatten(2, (8, 8)))
        logits = (q @ k.transpose(1, 2) * other.scale).unflatten(0, (5, heads)).mean(1)
        close(found[f"{ATTN}/logits@t261:empty:none"], logits.transpose(1, 2).unflatten(2, (8, 8)))

    def test_it_is_a_share_of_each_place_and_follows_the_prompt(self, load: Load, images: Tensor) -> None:
        conditioning = {"condition": "prompt", "prompt": "red cat"}
        (found,) = load(taps=[f"{ATTN}/probs"], pool="none", **conditioning)(images, keys=KEYS).values()
        assert found.shape == (5, 24, 8, 8)
        close(found.sum(1), torch.ones(5, 8, 8))
        (empty,) = load(taps=[f"{ATTN}/probs"], pool="none")(images, keys=KEYS).values()
        assert float((found - empty).abs().max()) > 1e-4

    def test_reading_it_leaves_the_network_as_it_is(self, load: Load, images: Tensor) -> None:
        (alone,) = load(taps=["up_ft2"])(images, keys=KEYS).values()
        both = load(taps=["up_ft2", "*.*.attentions.*.transformer_blocks.*.attn2/*"])(images, keys=KEYS)
        assert torch.equal(both["up_blocks.2@t100:empty:mean"], alone)

    def test_neither_values_nor_anything_behind_the_keys_is_loaded(self, load: Load) -> None:
        names = load(taps=[f"{ATTN}/probs"])._backbone.denoiser.state_dict()
        assert f"{ATTN}.to_k.weight" in names and f"{ATTN}.to_v.weight" not in names
        assert not [name for name in names if name.startswith("up_blocks.2")]

    @pytest.mark.parametrize(("pool", "shape"), [("mean", (24,)), ("grid2", (96,)), ("tokens3", (3, 24))])
    def test_all_poolings_take_it(self, pool: str, shape: tuple[int, ...], load: Load, images: Tensor) -> None:
        (found,) = load(taps=[f"{ATTN}/probs"], pool=pool)(images, keys=KEYS).values()
        assert found.shape[1:] == shape

    def test_low_precision_is_compared_in_float32(self, load: Load, images: Tensor) -> None:
        (found,) = load(taps=[f"{ATTN}/probs"], pool="none", dtype="bfloat16")(images, keys=KEYS).values()
        close(found.sum(1), torch.ones(5, 8, 8))


def test_a_cross_attention_compares_plain_queries_and_keys() -> None:
    from diffusers.models.attention_processor import Attention

    assert may_cross_attend(Attention(query_dim=8, cross_attention_dim=6, heads=2, dim_head=4))
    assert not may_cross_attend(Attention(query_dim=8, added_kv_proj_dim=8, heads=2, dim_head=4))
    assert not may_cross_attend(Attention(query_dim=8, qk_norm="layer_norm", heads=2, dim_head=4))
    assert not may_cross_attend(nn.Linear(2, 2))


class Collective(nn.Module):
    """Two blocks: (text, image) apart, then one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.apart, self.together = _Apart(), nn.Identity()

    def forward(self, text: Tensor, image: Tensor) -> Tensor:
        return self.together(torch.cat(self.apart(text, image), 1))


class _Apart(nn.Module):
    def forward(self, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return text + 1, image * 2


def test_the_text_of_joint_blocks_is_a_row_of_tokens() -> None:
    layout = OutputLayout(size=(2, 2), n_text=3, joint="together", image_second="apart")
    text, image = torch.randn(2, 3, 5), torch.randn(2, 4, 5)
    traced = trace(Collective(), lambda network: network(text, image), layout)
    assert {tap: (shape.form, shape.channels, shape.size) for tap, shape in traced.taps.items()} == {
        "apart": ("tokens", 5, (2, 2)),
        "apart/text": ("text", 5, (3, 1)),
        "together": ("tokens", 5, (2, 2)),
        "together/text": ("text", 5, (3, 1)),
    }
    network = Collective()
    capture = Capture(network, list(traced.taps), layout=layout, read=lambda x, rows: x.clone())
    found = capture(lambda: network(text, image))
    for tap in ("apart/text", "together/text"):
        assert torch.equal(found[tap], (text + 1).transpose(1, 2)[..., None])
    assert torch.equal(found["together"], (image * 2).transpose(1, 2).reshape(2, 5, 2, 2))


def test_attention_of_the_image_to_itself_is_not_listed(tiny_sd: Path) -> None:
    from diffprobe.backbones.taps import list_taps

    readouts = [tap for tap in list_taps(str(tiny_sd), inner=True) if tap.path.endswith(("/probs", "/logits"))]
    assert {split_tap(tap.path)[0].rpartition(".")[2] for tap in readouts} == {"attn2"}
    assert {(tap.form, tap.channels) for tap in readouts} == {("attention", 24)}


def test_padded_tokens_of_a_masked_prompt_get_no_attention(tmp_path: Path, images: Tensor) -> None:
    from diffprobe.backbones.families import pixart

    conditioning = {"condition": "prompt", "prompt": "red cat", "timesteps": [100], "device": "cpu"}
    taps = ["transformer_blocks.1.attn2/probs", "transformer_blocks.1.attn2/logits"]
    path = str(pixart.tiny(tmp_path / "pixart"))
    features = DiffusionFeatures.from_pretrained(path, taps=taps, **conditioning)  # type: ignore[arg-type]
    probs, logits = features(images, keys=KEYS).values()
    assert probs.shape == logits.shape == (5, 120)
    attended = probs[0] > 0
    n = int(attended.sum())
    assert 0 < n < 120 and bool(attended[:n].all())  # the prompt stands first, padding behind it
    assert float(logits[:, n:].abs().max()) > 0  # logits are those before the mask
