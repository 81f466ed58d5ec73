"""`/q`, `/k`, `/v` and `/heads` of self- and cross-attentions against a plain computation, per family.

Those of joint attentions are compared in `test_joint_attention.py`.
"""

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones.attention_parts import PARTS, may_have_parts
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import dit, flux, kandinsky, pixart, sana, sd3, sd_unet, unet2d
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import UnknownTap

CASES = [
    (dit, "transformer_blocks.1.attn1", "self"),
    (pixart, "transformer_blocks.1.attn1", "self"),
    (pixart, "transformer_blocks.1.attn2", "cross"),
    (sana, "transformer_blocks.1.attn2", "cross"),
    (sd3, "transformer_blocks.0.attn2", "self"),
    (sd_unet, "up_blocks.1.attentions.0.transformer_blocks.0.attn1", "self"),
    (sd_unet, "up_blocks.1.attentions.0.transformer_blocks.0.attn2", "cross"),
    (unet2d, "mid_block.attentions.0", "self"),
]
"""Family, attention, and what it attends to."""


def plain(attn: Any, given: dict[str, Any]) -> dict[str, Tensor]:
    """Compute an attention from its layers: softmax(q k / sqrt(d) + mask) v, head by head."""
    x, text, mask = (given.get(name) for name in ("hidden_states", "encoder_hidden_states", "attention_mask"))
    assert x is not None
    if x.ndim == 4:
        x = x.flatten(2).transpose(1, 2)
    if attn.group_norm is not None:
        x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
    seen = x if text is None else text
    q, k, v = (f(y).unflatten(-1, (attn.heads, -1)) for f, y in ((attn.to_q, x), (attn.to_k, seen), (attn.to_v, seen)))
    q, k = (x if norm is None else norm(x) for norm, x in ((attn.norm_q, q), (attn.norm_k, k)))
    outputs = []
    for head in range(attn.heads):
        scores = q[:, :, head] @ k[:, :, head].transpose(1, 2) / q.shape[-1] ** 0.5
        outputs.append((scores if mask is None else scores + mask).softmax(-1) @ v[:, :, head])
    return {"q": q.flatten(2), "k": k.flatten(2), "v": v.flatten(2), "heads": torch.cat(outputs, -1)}


@pytest.mark.parametrize(("family", "path", "kind"), CASES)
def test_parts_are_those_of_a_plain_computation(family: ModuleType, path: str, kind: str, tmp_path: Path) -> None:
    family.tiny(tmp_path)
    conditioning: dict[str, Any] = {"condition": "prompt", "prompt": "red cat"} if kind == "cross" else {}
    features = DiffusionFeatures.from_pretrained(
        str(tmp_path), taps=[f"{path}/{part}" for part in PARTS], timesteps=[100], pool="none", device="cpu",
        resolution=32, **conditioning,
    )  # fmt: skip
    attn = features._backbone.denoiser.get_submodule(path)
    signature = inspect.signature(type(attn).forward)
    expected: dict[str, Tensor] = {}

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        expected.update(plain(module, dict(signature.bind(module, *args, **kwargs).arguments)))

    attn.register_forward_pre_hook(before, with_kwargs=True)
    found = features(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), keys=["a", "b"])
    assert {cell.partition("@")[0] for cell in found} == {f"{path}/{part}" for part in PARTS}
    for cell, maps in found.items():
        part = cell.partition("@")[0].rpartition("/")[2]
        torch.testing.assert_close(maps.flatten(2).transpose(1, 2), expected[part], atol=1e-5, rtol=0)
        of_text = kind == "cross" and part in ("k", "v")
        assert (maps.shape[3] == 1 and maps.shape[2] > 16) if of_text else maps.shape[2] == maps.shape[3]
        assert float(maps.std()) > 1e-3


@pytest.mark.parametrize("family", [dit, pixart, sana, sd3, flux, sd_unet])
def test_the_heads_through_the_output_projection_are_what_the_attention_outputs(
    family: ModuleType, tmp_path: Path
) -> None:
    family.tiny(tmp_path)
    infos = list_taps(str(tmp_path), resolution=32, inner=True)
    paths = [tap.path.removesuffix("/heads") for tap in infos if tap.path.endswith("/heads")]
    known = {tap.path for tap in infos}
    chosen = [path for path in paths if f"{path}.to_out.0" in known][:3]
    assert chosen
    taps = [tap for path in chosen for tap in (f"{path}/heads", f"{path}.to_out.0")]
    features = DiffusionFeatures.from_pretrained(
        str(tmp_path), taps=taps, timesteps=[100], pool="none", device="cpu", resolution=32
    )
    found = {cell.partition("@")[0]: x for cell, x in features(torch.rand(2, 3, 32, 32), keys=["a", "b"]).items()}
    for path in chosen:
        mixed = features._backbone.denoiser.get_submodule(f"{path}.to_out.0")
        again = mixed(found[f"{path}/heads"].movedim(1, -1)).movedim(-1, 1)
        torch.testing.assert_close(again, found[f"{path}.to_out.0"], atol=1e-5, rtol=0)


def test_reading_them_leaves_the_pass_as_it_is(tmp_path: Path) -> None:
    flux.tiny(tmp_path)
    images, block = torch.rand(2, 3, 32, 32), "single_transformer_blocks.1"
    settings: dict[str, Any] = {"timesteps": [100], "device": "cpu", "resolution": 32}
    only = DiffusionFeatures.from_pretrained(str(tmp_path), taps=[block], **settings)
    (alone,) = only(images, keys=["a", "b"]).values()
    taps = [block, *(f"{path}.attn/{part}" for path in (block, "transformer_blocks.0") for part in PARTS)]
    both = DiffusionFeatures.from_pretrained(str(tmp_path), taps=taps, **settings)(images, keys=["a", "b"])
    assert torch.equal(both[f"{block}@t100:empty:mean"], alone) and len(both) == 9


def test_an_attention_that_is_not_computed_so_is_refused(tmp_path: Path) -> None:
    sana.tiny(tmp_path / "sana")
    with pytest.raises(UnknownTap, match="/q is available at 3 places") as caught:
        DiffusionFeatures.from_pretrained(str(tmp_path / "sana"), taps=["transformer_blocks.0.attn1/q"], timesteps=[1])
    assert "not an attention that is computed as softmax(q k) v" in str(caught.value)
    kandinsky.tiny(tmp_path / "kandinsky")
    readouts = {tap.path.rpartition("/")[2] for tap in list_taps(str(tmp_path / "kandinsky"), inner=True)}
    assert {"q", "heads"} < readouts and not {"k", "v"} & readouts
    assert not may_have_parts(nn.Linear(2, 2))
