"""Views of images: fixed by seed, key and view; mirror images and crops checked by hand."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprobe.config.views import ViewsConfig
from diffprobe.shards.batch import ImageBatch
from diffprobe.shards.views import BatchViews, crop_parts, resample, view_images, view_keys

KEYS = [f"image-{i}" for i in range(400)]
KINDS = {
    "flip": ViewsConfig(flip=0.5),
    "padding": ViewsConfig(padding=2),
    "edge": ViewsConfig(padding=3, padding_mode="edge", flip=0.5),
    "crop": ViewsConfig(crop_area=(0.5, 1.0), flip=0.5),
}


def numbered(n=1, side=5):
    """Images whose pixels all differ."""
    return torch.arange(n * 3 * side * side).reshape(n, 3, side, side) / (n * 3 * side * side)


def of(images, views, *, keys=None, view=0, seed=0):
    return view_images(images, keys=keys or KEYS[: len(images)], view=view, seed=seed, views=views)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(6)), cut=st.integers(1, 5), view=st.integers(0, 3), seed=st.integers(0, 3))
def test_a_view_does_not_depend_on_the_other_images(kind, order, cut, view, seed):
    images, views = numbered(6, 8), KINDS[kind]
    whole = of(images, views, view=view, seed=seed)
    parts = [order[:cut], order[cut:]]
    for part in parts:
        found = of(images[part], views, keys=[KEYS[i] for i in part], view=view, seed=seed)
        assert torch.equal(found, whole[part])


@pytest.mark.parametrize("kind", KINDS)
def test_views_seeds_and_keys_give_other_views(kind):
    images = numbered(1, 8).expand(40, -1, -1, -1)
    first = of(images, KINDS[kind])
    others = [of(images, KINDS[kind], view=1), of(images, KINDS[kind], seed=1), first.flip(0)]
    assert all(not torch.equal(first, other) for other in others)
    assert first.min() >= 0 and first.max() <= 1


def test_an_image_is_mirrored_left_to_right():
    image = torch.tensor([[0.0, 0.1, 0.2], [0.3, 0.4, 0.5], [0.6, 0.7, 0.8]]).expand(1, 3, 3, 3)
    mirrored = torch.tensor([[0.2, 0.1, 0.0], [0.5, 0.4, 0.3], [0.8, 0.7, 0.6]]).expand(1, 3, 3, 3)
    assert torch.equal(of(image, ViewsConfig(flip=1.0)), mirrored)


def test_the_share_of_mirrored_images_is_the_probability():
    images = numbered().expand(400, -1, -1, -1)
    seen = of(images, ViewsConfig(flip=0.25))
    mirrored = [torch.equal(one, images[0].flip(-1)) for one in seen]
    assert all(flip or torch.equal(one, images[0]) for one, flip in zip(seen, mirrored, strict=True))
    assert abs(sum(mirrored) / 400 - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 400)


@pytest.mark.parametrize(("mode", "outside"), [("black", None), ("edge", "edge"), ("reflect", "reflect")])
def test_a_padded_crop_is_a_shift_and_all_shifts_come(mode, outside):
    image = numbered(1, 3) + 0.01
    seen = of(image.expand(400, -1, -1, -1), ViewsConfig(padding=1, padding_mode=mode))

    def at(channel, y, x):
        if outside == "edge":
            y, x = min(max(y, 0), 2), min(max(x, 0), 2)
        elif outside == "reflect":
            y, x = (abs(p) if p < 3 else 4 - p for p in (y, x))
        inside = 0 <= y < 3 and 0 <= x < 3
        return float(image[0, channel, y, x]) if inside else 0.0

    shifted = {
        (dy, dx): torch.tensor([[[at(c, y + dy, x + dx) for x in range(3)] for y in range(3)] for c in range(3)])
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    }
    found = Counter(next(name for name, one in shifted.items() if torch.equal(one, crop)) for crop in seen)
    assert set(found) == set(shifted) and min(found.values()) > 400 / 9 / 2


@settings(max_examples=50, deadline=None)
@given(
    low=st.floats(0.05, 1.0),
    span=st.floats(0.0, 1.0),
    narrow=st.floats(0.3, 1.0),
    wide=st.floats(1.0, 3.0),
)
def test_crops_lie_in_the_image_and_in_their_ranges(low, span, narrow, wide):
    high = low + span * (1 - low)
    views = ViewsConfig(crop_area=(low, high), crop_aspect=(narrow, wide))
    drawn = torch.rand(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    size, centre = crop_parts(drawn, views)
    area, aspect = size.prod(1), size[:, 0] / size[:, 1]
    assert area.min() >= low - 1e-9 and area.max() <= high + 1e-9
    assert aspect.min() >= narrow - 1e-9 and aspect.max() <= wide + 1e-9
    assert (centre.abs() + size <= 1 + 1e-9).all()


def test_a_crop_is_that_part_of_the_image():
    ramp = torch.linspace(0, 1, 64)[None, :].expand(64, 64)  # brightness is the place
    images = torch.stack([ramp, ramp.T, ramp]).expand(2, 3, 64, 64)
    size, centre = torch.tensor([[0.5, 0.25], [1.0, 1.0]]), torch.tensor([[0.5, -0.75], [0.0, 0.0]])
    part, whole = resample(images, size, centre)
    torch.testing.assert_close(whole, images[0], atol=1e-4, rtol=0)
    assert abs(float(part[0].mean()) - 0.75) < 0.01 and abs(float(part[1].mean()) - 0.125) < 0.01
    assert abs(float(part[0, 0, -1] - part[0, 0, 0]) - 0.5) < 0.03


def test_a_transform_that_is_added_leaves_the_others_alone():
    images = numbered(20, 8)
    plain, both = of(images, ViewsConfig(padding=2)), of(images, ViewsConfig(padding=2, flip=0.5))
    same = [torch.equal(a, b) or torch.equal(a.flip(-1), b) for a, b in zip(plain, both, strict=True)]
    assert all(same) and not torch.equal(plain, both)


def test_views_of_noise_alone_leave_the_images_and_have_keys_of_their_own():
    images = numbered(2)
    assert of(images, ViewsConfig(redraw_noise=True)) is images
    assert view_keys(["a", "b"], 3) == ["a#view3", "b#view3"]


def test_a_batch_of_an_epoch_is_the_view_of_that_number():
    images, keys = numbered(4, 8), KEYS[:4]
    batch = ImageBatch(images, keys, torch.zeros(4, dtype=torch.long), [""] * 4, {})
    views = ViewsConfig(flip=0.5, padding=2, n=2)
    for epoch, view in ((0, 0), (1, 1), (2, 0)):
        made = BatchViews(views=views, seed=5)(batch, epoch)
        assert made.view == view and torch.equal(made.images, of(images, views, keys=keys, view=view, seed=5))
    assert BatchViews(views=views, seed=5, number=1)(batch, 0).view == 1 and batch.view is None


def test_images_without_keys_are_an_error():
    with pytest.raises(ValueError, match="2 images have 1 keys"):
        of(numbered(2), ViewsConfig(flip=0.5), keys=["a"])
