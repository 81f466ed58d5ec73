"""Joint attention and its parts against attention processors written out, on tiny pipelines of five families."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.attended import Attended
from diffprobe.backbones.attention_parts import PARTS, watch_parts
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import auraflow, flux, flux2, qwen_image, sd3
from diffprobe.backbones.joint_attention import may_attend_jointly
from diffprobe.backbones.readouts import split_tap, watch_attention
from diffprobe.backbones.taps import list_taps
from diffprobe.scoring.denoising_error import DenoisingError

MODULES = {
    "sd3": ["transformer_blocks.0.attn", "transformer_blocks.1.attn", "transformer_blocks.2.attn"],
    "flux": ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"],
    "flux2": ["transformer_blocks.0.attn", "single_transformer_blocks.0.attn"],
    "qwen_image": ["transformer_blocks.0.attn", "transformer_blocks.2.attn"],
    "auraflow": ["joint_transformer_blocks.0.attn", "single_transformer_blocks.0.attn"],
}


@pytest.fixture(scope="module", params=sorted(MODULES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = {"sd3": sd3, "flux": flux, "flux2": flux2, "qwen_image": qwen_image, "auraflow": auraflow}[name]
    return family.tiny(tmp_path_factory.mktemp("tiny") / name)


@pytest.fixture(scope="module")
def model(folder: Path) -> DenoisingError:
    return DenoisingError.from_pretrained(str(folder), device="cpu", resolution=32)


def heads_of(x: Tensor, attn: Any) -> Tensor:
    return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)


class Written:
    """A joint attention written out; it keeps the scores and the shares of image queries to text keys, by head."""

    def __init__(self, n_text: int, n_registers: int) -> None:
        self.n_text, self.n_registers = n_text, n_registers
        self.logits = self.probs = torch.zeros(())
        self.parts: dict[str, Tensor] = {}

    def sd3(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Any:
        q, k, v = (heads_of(f(hidden_states), attn) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        n = q.shape[2]
        if encoder_hidden_states is None:
            return attn.to_out[0](self.attend(q, k, v).transpose(1, 2).flatten(2))
        layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_q, text_k, text_v = (heads_of(f(encoder_hidden_states), attn) for f in layers)
        text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
        pairs = ((q, text_q), (k, text_k), (v, text_v))
        out = self.attend(*(torch.cat(pair, 2) for pair in pairs), image=slice(0, n), text=slice(n, None))
        image, text = out.transpose(1, 2).flatten(2).split([n, encoder_hidden_states.shape[1]], 1)
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)

    def flux(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: Any = None,
    ) -> Any:  # fmt: skip
        from diffusers.models.embeddings import apply_rotary_emb

        q, k, v = (f(hidden_states).unflatten(-1, (attn.heads, -1)) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if encoder_hidden_states is not None:
            layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_q, text_k, text_v = (f(encoder_hidden_states).unflatten(-1, (attn.heads, -1)) for f in layers)
            text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
            q, k, v = (torch.cat(pair, 1) for pair in ((text_q, q), (text_k, k), (text_v, v)))
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        n = self.n_text
        out = self.attend(q, k, v, image=slice(n, None), text=slice(0, n)).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        return attn.to_out[0](out[:, n:]), attn.to_add_out(out[:, :n])

    def flux2(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: Any = None,
    ) -> Any:  # fmt: skip
        from diffusers.models.embeddings import apply_rotary_emb

        if encoder_hidden_states is not None:
            return self.flux(attn, hidden_states, encoder_hidden_states, image_rotary_emb=image_rotary_emb)
        rotary = attention_mask  # a single-stream attention gives its processor no text: one position less
        wide = attn.to_qkv_mlp_proj(hidden_states)
        q, k, v = (x.unflatten(-1, (attn.heads, -1)) for x in wide[..., : 3 * attn.inner_dim].chunk(3, -1))
        q, k = (apply_rotary_emb(x, rotary, sequence_dim=1) for x in (attn.norm_q(q), attn.norm_k(k)))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        n = self.n_text
        out = self.attend(q, k, v, image=slice(n, None), text=slice(0, n)).transpose(1, 2).flatten(2)
        return attn.to_out(torch.cat([out, attn.mlp_act_fn(wide[..., 3 * attn.inner_dim :])], -1))

    def qwen_image(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, *, encoder_hidden_states_mask: Tensor,
        image_rotary_emb: Any, **_: Any,
    ) -> Any:  # fmt: skip
        def turned(x: Tensor, angles: Tensor) -> Tensor:  # batch, tokens, heads, width; neighbours are a complex number
            pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
            return torch.view_as_real(pairs * angles[:, None]).flatten(3)

        image, text = image_rotary_emb
        q, k, v = (f(hidden_states).unflatten(-1, (attn.heads, -1)) for f in (attn.to_q, attn.to_k, attn.to_v))
        layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        text_q, text_k, text_v = (f(encoder_hidden_states).unflatten(-1, (attn.heads, -1)) for f in layers)
        q, k = turned(attn.norm_q(q), image), turned(attn.norm_k(k), image)
        text_q, text_k = turned(attn.norm_added_q(text_q), text), turned(attn.norm_added_k(text_k), text)
        pairs = ((text_q, q), (text_k, k), (text_v, v))
        n = self.n_text
        hidden = torch.cat([~encoder_hidden_states_mask, torch.zeros(k.shape[:2], dtype=torch.bool)], 1)
        out = self.attend(
            *(torch.cat(pair, 1).transpose(1, 2) for pair in pairs),
            image=slice(n, None), text=slice(0, n), hidden=hidden,
        ).transpose(1, 2).flatten(2)  # fmt: skip
        return attn.to_out[0](out[:, n:]), attn.to_add_out(out[:, :n])

    def auraflow(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any) -> Any:
        q, k, v = (f(hidden_states).unflatten(-1, (attn.heads, -1)) for f in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if encoder_hidden_states is not None:
            layers = (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            text_q, text_k, text_v = (f(encoder_hidden_states).unflatten(-1, (attn.heads, -1)) for f in layers)
            text_q, text_k = attn.norm_added_q(text_q), attn.norm_added_k(text_k)
            q, k, v = (torch.cat(pair, 1) for pair in ((text_q, q), (text_k, k), (text_v, v)))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        n = self.n_text
        out = self.attend(q, k, v, image=slice(n, None), text=slice(self.n_registers, n)).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return attn.to_out[0](out)
        return attn.to_out[0](out[:, n:]), attn.to_add_out(out[:, :n])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, image: slice | None = None, text: slice | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
        weights = logits.exp() if hidden is None else logits.exp() * ~hidden[:, None, None]
        probs = weights / weights.sum(-1, keepdim=True)
        if image is not None and text is not None:
            self.logits, self.probs = logits[:, :, image, text], probs[:, :, image, text]
            own = {"q": q, "k": k, "v": v, "heads": probs @ v}
            self.parts = {name: x[:, :, image].transpose(1, 2).flatten(2) for name, x in own.items()}
        return probs @ v


class Processor:
    """Passes an attention on to one of the functions of `Written`."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None, image_rotary_emb: Any = None,
        encoder_hidden_states_mask: Tensor | None = None,
    ) -> Any:  # fmt: skip
        given = {"attention_mask": attention_mask, "image_rotary_emb": image_rotary_emb}
        if encoder_hidden_states_mask is not None:  # Qwen-Image
            given["encoder_hidden_states_mask"] = encoder_hidden_states_mask
        return self.run(attn, hidden_states, encoder_hidden_states, **given)


def test_logits_and_shares_are_those_of_a_plain_computation(name: str, folder: Path, model: DenoisingError) -> None:
    denoiser: Any = model.backbone.denoiser
    layout = model.spec.layout
    x = torch.randn(2, *model.spec.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = dict(model.encode_conditions(["red cat", "a blue dog"]))
    if name == "auraflow":  # its padding is zeros: a LayerNorm would amplify how the two attentions round
        condition["encoder_hidden_states"] = torch.randn(2, 256, 32, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([300, 700])
    found: dict[str, Attended] = {}
    parts: dict[tuple[str, str], Tensor] = {}
    handles = []
    for path in MODULES[name]:
        module = denoiser.get_submodule(path)
        keep = lambda part, x, path=path: parts.__setitem__((path, part), x.tokens)  # noqa: E731
        handles += watch_parts(module, path, layout, PARTS, keep)
        give = lambda attended, path=path: found.__setitem__(path, attended)  # noqa: E731
        handles += watch_attention(denoiser.get_submodule(path), path, layout, give)
    with torch.no_grad():
        output = model.backbone.denoise(x, times, condition)
    for handle in handles:
        handle.remove()
    written = {path: Written(layout.n_text, layout.n_registers) for path in MODULES[name]}
    before = {path: denoiser.get_submodule(path).processor for path in written}
    try:
        for path, one in written.items():
            denoiser.get_submodule(path).set_processor(Processor(getattr(one, name)))
        with torch.no_grad():
            plain = model.backbone.denoise(x, times, condition)
    finally:
        for path, processor in before.items():
            denoiser.get_submodule(path).set_processor(processor)
    torch.testing.assert_close(output.value, plain.value, atol=1e-5, rtol=0)
    for path, one in written.items():
        for part in PARTS:
            torch.testing.assert_close(parts[path, part], one.parts[part], atol=1e-5, rtol=0)
        heads = denoiser.get_submodule(path).heads
        for head in range(heads):
            torch.testing.assert_close(
                found[path].scores(head, heads, masked=False, keys=found[path].text), one.logits[:, head],
                atol=1e-5, rtol=0,
            )  # fmt: skip
        for probs, expected in ((True, one.probs), (False, one.logits)):
            means = found[path].mean_over_heads(heads, probs=probs)
            torch.testing.assert_close(means, expected.mean(1), atol=1e-5, rtol=0)
        assert one.logits.std() > 1e-3 and one.probs.sum(-1).max() < 1  # the image attends to itself too


def test_maps_are_read_like_those_of_cross_attention(name: str, folder: Path) -> None:
    infos = [
        tap for tap in list_taps(str(folder), resolution=32, inner=True) if tap.path.endswith(("/probs", "/logits"))
    ]
    assert {split_tap(tap.path)[0] for tap in infos} >= set(MODULES[name])
    assert not [tap for tap in infos if "attn2" in tap.path]  # the second attention of SD3.5 sees the image alone
    taps = [f"{path}/probs" for path in MODULES[name]]
    images, keys = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)), ["a", "b", "c"]
    settings: dict[str, Any] = {
        "resolution": 32,
        "timesteps": [300],
        "device": "cpu",
        "condition": "prompt",
        "prompt": "red cat",
    }
    both = DiffusionFeatures.from_pretrained(str(folder), taps=taps, pool="none", **settings)(images, keys=keys)
    for tap in taps:
        (alone,) = DiffusionFeatures.from_pretrained(str(folder), taps=[tap], pool="none", **settings)(
            images, keys=keys
        ).values()
        (found,) = [x for cell, x in both.items() if cell.startswith(f"{tap}@")]
        torch.testing.assert_close(alone, found, atol=1e-6, rtol=0)
        (info,) = [info for info in infos if info.path == tap]
        assert found.shape == (3, info.channels, *info.size) and info.form == "attention"
        assert bool((found >= 0).all()) and float(found.sum(1).max()) < 1


def test_reading_leaves_the_pass_as_it_is(name: str, folder: Path) -> None:
    images, keys = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)), ["a", "b"]
    last = MODULES[name][-1].removesuffix(".attn")
    settings: dict[str, Any] = {"resolution": 32, "timesteps": [300], "device": "cpu"}
    (alone,) = DiffusionFeatures.from_pretrained(str(folder), taps=[last], **settings)(images, keys=keys).values()
    taps = [last, *(f"{path}/logits" for path in MODULES[name])]
    both = DiffusionFeatures.from_pretrained(str(folder), taps=taps, **settings)(images, keys=keys)
    (beside,) = [x for cell, x in both.items() if cell.startswith(f"{last}@")]
    assert torch.equal(alone, beside)


def test_only_the_attention_itself_is_one(model: DenoisingError, name: str) -> None:
    layout, denoiser = model.spec.layout, model.backbone.denoiser
    found = {path for path, module in denoiser.named_modules() if may_attend_jointly(path, module, layout)}
    assert found >= set(MODULES[name]) and all(path.endswith(".attn") for path in found)
