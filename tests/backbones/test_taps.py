from pathlib import Path

import pytest
import torch

from diffprobe.backbones.families import sd_unet
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import UnknownTap
from tests.backbones.plans import plan_for


def paths(tiny_sd: Path, *names: str) -> list[str]:
    return [tap.path for tap in plan_for(str(tiny_sd), taps=names, timesteps=[0]).taps]


def test_the_listing_has_paths_sizes_and_costs(tiny_sd: Path) -> None:
    taps = {tap.path: tap for tap in list_taps(str(tiny_sd))}
    ups = [f"up_blocks.{i}" for i in range(3)]
    assert list(taps) == [*(f"down_blocks.{i}" for i in range(3)), "mid_block", *ups]
    assert taps["mid_block"].aliases == ("bottleneck", "h-space") and taps["up_blocks.1"].aliases == ("up_ft1",)
    assert [(taps[path].channels, taps[path].size) for path in ("mid_block", *ups)] == [
        (32, (4, 4)),
        (32, (8, 8)),
        (32, (16, 16)),
        (16, (16, 16)),
    ]
    shares = [tap.flop_share or 0.0 for tap in taps.values()]
    assert shares == sorted(shares) and 0 < shares[0] and 0.9 < shares[-1] < 1


def test_sizes_follow_the_resolution(tiny_sd: Path) -> None:
    sizes = {tap.path: tap.size for tap in list_taps(str(tiny_sd), resolution=64)}
    assert sizes["mid_block"] == (8, 8) and sizes["up_blocks.2"] == (32, 32)


def test_it_needs_no_weights(tiny_sd: Path, tmp_path: Path) -> None:
    for path in tiny_sd.rglob("*.json"):
        target = tmp_path / path.relative_to(tiny_sd)
        target.parent.mkdir(exist_ok=True, parents=True)
        target.write_bytes(path.read_bytes())
    assert list_taps(str(tmp_path)) == list_taps(str(tiny_sd))


@pytest.mark.parametrize("channels", [(16,), (16, 32), (8, 16, 16, 32)])
def test_networks_of_other_depths_list_their_own_taps(channels: tuple[int, ...], tmp_path: Path) -> None:
    taps = {tap.path: tap for tap in list_taps(str(sd_unet.tiny(tmp_path, channels=channels)))}
    n = len(channels)
    assert [path for path in taps if path.startswith("up")] == [f"up_blocks.{i}" for i in range(n)]
    assert taps[f"up_blocks.{n - 1}"].aliases == (f"up_ft{n - 1}",)
    assert taps["mid_block"].channels == channels[-1]
    assert taps["mid_block"].size == (16 // 2 ** (n - 1),) * 2


def test_inner_taps_are_maps_of_the_image_and_nothing_of_the_text(tiny_sd: Path) -> None:
    taps = {tap.path: tap for tap in list_taps(str(tiny_sd), inner=True)}
    block = "up_blocks.1.attentions.0.transformer_blocks.0"
    assert taps[f"{block}.attn2"].size == (8, 8) and taps[f"{block}.attn2.to_q"].channels == 32
    assert f"{block}.attn2.to_k" not in taps and f"{block}.attn2.to_v" not in taps
    assert "time_embedding" not in taps and "conv_act" in taps
    assert (taps["conv_act"].form, taps[f"{block}.attn2"].form) == ("map", "tokens")


def test_readouts_stand_where_they_can_be_read(tiny_sd: Path) -> None:
    taps = {tap.path: tap for tap in list_taps(str(tiny_sd), inner=True)}
    attn = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"
    assert (taps[f"{attn}/probs"].channels, taps[f"{attn}/probs"].size) == (24, (8, 8))
    shares = [taps[name].flop_share or 0.0 for name in (f"{attn}.to_q", f"{attn}/probs", attn)]
    assert shares[0] < shares[1] < shares[2]


def test_globs_find_readouts_behind_a_slash_alone(tiny_sd: Path) -> None:
    block = "mid_block.attentions.0.transformer_blocks.0"
    assert paths(tiny_sd, f"{block}.attn*") == [f"{block}.attn1", f"{block}.attn2"]
    assert paths(tiny_sd, "*.attentions.*.transformer_blocks.*.attn2/probs") == [f"{block}.attn2/probs"]
    assert paths(tiny_sd, f"{block}.attn2/*") == [
        f"{block}.attn2/{readout}" for readout in ("probs", "logits", "q", "k", "v", "heads")
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bottleneck/probs", "'mid_block' (.|\n)*7 places.* .*attn2/probs"),
        ("mid_block/scores", "allowed: probs, logits, text"),
        ("mid_block/text", "'mid_block' .* sd_unet .* /text"),
        ("mid_blok/probs", "'mid_blok'"),
    ],
)
def test_an_unavailable_readout_lists_where_it_is_available(name: str, message: str, tiny_sd: Path) -> None:
    with pytest.raises(UnknownTap, match=message):
        paths(tiny_sd, name)


def test_names_globs_and_aliases_meet_in_the_order_of_depth(tiny_sd: Path) -> None:
    assert paths(tiny_sd, "up_ft1", "bottleneck", "mid_block") == ["mid_block", "up_blocks.1"]
    assert paths(tiny_sd, "up_blocks.*", "h-space") == ["mid_block", "up_blocks.0", "up_blocks.1", "up_blocks.2"]
    assert paths(tiny_sd, "mid_block.*.0") == ["mid_block.resnets.0", "mid_block.attentions.0"]
    inner = "down_blocks.0.attentions.0"
    assert paths(tiny_sd, "down_blocks.0", inner) == [inner, "down_blocks.0"]


def test_an_unknown_tap_names_the_nearest_and_all_there_are(tiny_sd: Path) -> None:
    with pytest.raises(UnknownTap) as caught:
        paths(tiny_sd, "mid_block", "up_block.1", "encoder.*", "time_embedding")
    message = str(caught.value)
    assert "has no tap 'up_block.1', 'encoder.*', 'time_embedding'" in message and "sd_unet" in message
    assert "nearest to 'up_block.1': up_blocks.1" in message
    assert "mid_block (32 x 4 x 4)" in message and "aliases: bottleneck, h-space, up_ft0" in message


def test_the_listing_leaves_the_random_state_alone(tiny_sd: Path) -> None:
    state = torch.get_rng_state()
    list_taps(str(tiny_sd))
    assert torch.equal(torch.get_rng_state(), state)
