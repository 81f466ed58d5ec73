from dataclasses import replace

import pytest
import torch

from diffprobe.backbones.layout import OutputLayout, RowTexts


def test_maps_pass_and_the_first_of_a_tuple_counts() -> None:
    x, layout = torch.randn(2, 3, 4, 4), OutputLayout(size=(4, 4))
    assert layout.image(x, "block") is x
    assert layout.image((x, (x, x)), "block") is x


def test_tokens_go_to_their_place_on_the_grid() -> None:
    x = torch.randn(2, 5, 4, 6)  # batch, channels, height, width
    tokens = x.flatten(2).transpose(1, 2)
    assert torch.equal(OutputLayout(size=(8, 12)).image(tokens, "block"), x)
    assert torch.equal(OutputLayout(size=(4, 6)).image((tokens,), "block"), x)


def test_odd_sides_round_up_as_strided_convolutions_do() -> None:
    assert OutputLayout(size=(5, 3)).image(torch.zeros(1, 3 * 2, 7), "block").shape == (1, 7, 3, 2)


@pytest.mark.parametrize("output", [torch.zeros(2, 7, 3), torch.zeros(2, 3), None, (), {}])
def test_what_is_no_map_is_none(output: object) -> None:
    assert OutputLayout(size=(8, 8)).image(output, "block") is None


def test_the_image_is_found_beside_the_text() -> None:
    text, image = torch.zeros(2, 7, 5), torch.randn(2, 16, 5)
    layout = OutputLayout(
        size=(8, 8), n_text=7, joint=r"single\.\d+", image_second=r"double\.\d+", text_only=r".*\.context"
    )
    expected = image.transpose(1, 2).reshape(2, 5, 4, 4)
    assert torch.equal(layout.image((text, image), "double.3"), expected)
    assert torch.equal(layout.image(torch.cat([text, image], 1), "single.12"), expected)
    assert torch.equal(layout.image((image, text), "double.3.attn"), expected)
    assert layout.image(image, "double.3.context") is None
    assert layout.image((None, image), "double.0") is not None
    assert layout.image((image,), "double.0") is None


@pytest.mark.parametrize("last", [False, True])
def test_heads_go_side_by_side_and_text_before_the_image_is_left_out(last: bool) -> None:
    heads = torch.randn(2, 3, 7 + 16, 5)  # batch, heads, tokens, width
    layout = OutputLayout(size=(8, 8), n_text=7, joint=r"single\..*", heads=r".*norm_q", heads_last=last)
    image = layout.image(heads.transpose(1, 2) if last else heads, "single.norm_q")
    assert image is not None and image.shape == (2, 15, 4, 4)
    assert torch.equal(image[1, 5:10, 2, 3], heads[1, 1, 7 + 2 * 4 + 3])
    conv = torch.zeros(2, 3, 8, 8)
    assert layout.image(conv, "conv") is conv


def test_the_only_frame_of_a_network_for_video_is_a_map() -> None:
    x = torch.randn(2, 5, 4, 6)  # batch, channels, height, width
    layout = OutputLayout(size=(4, 6), channels_last="last", frame_third="third")
    assert torch.equal(layout.image(x.movedim(1, -1)[:, None], "last"), x)
    assert torch.equal(layout.image(x[:, :, None], "third"), x)
    assert layout.image(x[:, :, None], "another") is None


def test_channels_may_stand_before_the_tokens() -> None:
    x = torch.randn(2, 16, 4, 4)  # as many channels as places: only the pattern tells them apart
    layout = OutputLayout(size=(8, 8), channels_first=r".*\.group_norm")
    assert torch.equal(layout.image(x.flatten(2), "attentions.0.group_norm"), x)
    assert torch.equal(layout.image(x.flatten(2).transpose(1, 2), "attentions.0.to_q"), x)


def test_the_image_follows_a_text_of_the_rows_own_length() -> None:
    texts = RowTexts()
    layout = OutputLayout(size=(8, 8), n_text=7, row_texts=texts, joint="layer")
    texts.lengths, texts.n_image = [7, 2], 16
    text, image = torch.randn(2, 7, 5), torch.randn(2, 16, 5)
    short = torch.cat([text[1, :2], image[1], torch.zeros(5, 5)])
    tokens = torch.stack([torch.cat([text[0], image[0]]), short])
    found, words = layout.image(tokens, "layer"), layout.text(tokens, "layer")
    assert found is not None and torch.equal(found, image.transpose(1, 2).reshape(2, 5, 4, 4))
    assert words is not None and torch.equal(words[0, ..., 0].T, text[0])
    assert torch.equal(words[1, :, :2, 0].T, text[1, :2]) and not words[1, :, 2:].any()


def test_the_text_of_a_row_begins_behind_the_image_and_its_filling() -> None:
    texts = RowTexts(lengths=[7, 2], n_image=16, start=20)
    layout = OutputLayout(size=(8, 8), n_text=9, row_texts=texts, joint="layer", filled="refiner")
    tokens = torch.randn(2, 27, 5)
    expected = tokens[:, :16].transpose(1, 2).reshape(2, 5, 4, 4)
    for found in (layout.image(tokens, "layer"), layout.image(tokens[:, :20], "refiner")):
        assert found is not None and torch.equal(found, expected)
    words = layout.text(tokens, "layer")
    assert words is not None and words.shape == (2, 5, 9, 1) and layout.text(tokens, "refiner") is None
    assert torch.equal(words[1, :, :2, 0].T, tokens[1, 20:22]) and not words[1, :, 2:].any()
    assert torch.equal(texts.others(tokens), tokens[:, :20])
    assert layout.is_filled("refiner") and not layout.is_filled("layer")


def test_a_cross_attention_may_be_read_where_it_compares() -> None:
    layout = OutputLayout(size=(8, 8), cross_attention=r"blocks\.\d+\.attn2")
    assert layout.is_cross_attention("blocks.3.attn2") and not layout.is_cross_attention("blocks.3.attn1")
    assert not OutputLayout(size=(8, 8)).is_cross_attention("blocks.3.attn2")


def test_the_one_frame_of_a_network_for_video_is_a_map() -> None:
    x, layout = torch.randn(2, 1, 4, 6, 5), OutputLayout(size=(8, 12), channels_last=r"embed(\..+)?")
    assert torch.equal(layout.image(x, "embed.in_layer"), x[:, 0].permute(0, 3, 1, 2))  # type: ignore[arg-type]
    assert layout.image(x, "other") is None


def test_a_text_may_follow_the_image() -> None:
    text, image = torch.randn(2, 7, 5), torch.randn(2, 16, 5)
    layout = OutputLayout(size=(8, 8), n_text=7, joint=r"single\.\d+", image_first=True, text_second=r"double\.\d+")
    for output, path in ((torch.cat([image, text], 1), "single.1"), ((image, text), "double.1")):
        assert torch.equal(layout.image(output, path).flatten(2), image.transpose(1, 2))  # type: ignore[union-attr]
        assert torch.equal(layout.text(output, path)[..., 0], text.transpose(1, 2))  # type: ignore[index]
    assert layout.text((image, text), "double.1.attn") is None


TEXTS = RowTexts(lengths=(2, 3), n_image=6)
FILLED = RowTexts(lengths=(2, 3), n_image=6, start=8)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (OutputLayout(size=(2, 3)), (2, 5, 2, 3)),
        (OutputLayout(size=(2, 3)), (2, 6, 5)),
        (OutputLayout(size=(2, 3), channels_first="tap"), (2, 5, 6)),
        (OutputLayout(size=(2, 3), joint="tap", n_text=4), (2, 10, 5)),
        (OutputLayout(size=(2, 3), joint="tap", n_text=4, image_first=True), (2, 10, 5)),
        (OutputLayout(size=(2, 3), joint="tap", n_text=3, row_texts=TEXTS), (2, 9, 5)),
        (OutputLayout(size=(2, 3), joint="tap", n_text=3, row_texts=FILLED), (2, 11, 5)),
        (OutputLayout(size=(2, 3), filled="tap", row_texts=FILLED), (2, 8, 5)),
        (OutputLayout(size=(2, 3), channels_last="tap"), (2, 1, 2, 3, 5)),
        (OutputLayout(size=(2, 3), frame_third="tap"), (2, 5, 1, 2, 3)),
    ],
)
@pytest.mark.parametrize("second", [False, True])
def test_another_image_is_read_where_it_was_put_and_the_rest_stays(
    layout: OutputLayout, shape: tuple[int, ...], second: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    stream, other = torch.randn(shape, generator=generator), torch.randn(2, 4, 5, generator=generator)
    if second:
        layout = replace(layout, image_second="tap")
    output = (other, stream) if second else (stream, other)
    before = layout.image(output, "tap")
    assert before is not None
    placed = layout.with_image(output, "tap", before + 1)
    found = layout.image(placed, "tap")
    assert found is not None and torch.equal(found, before + 1)
    assert placed[0 if second else 1] is other and torch.equal(layout.image(output, "tap"), before)
    changed = placed[1 if second else 0] != stream
    assert int(changed.sum()) == before.numel()
    back = layout.with_image(placed, "tap", before)
    assert torch.equal(back[1 if second else 0], stream) and back[1 if second else 0].stride() == stream.stride()


def test_heads_and_texts_hold_no_image_to_replace() -> None:
    image = torch.zeros(2, 24, 2, 3)
    assert OutputLayout(size=(2, 3), heads="tap").with_image(torch.zeros(2, 3, 6, 8), "tap", image) is None
    assert OutputLayout(size=(2, 3), text_only="tap").with_image(torch.zeros(2, 6, 8), "tap", image) is None
