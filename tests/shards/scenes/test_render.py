"""Every factor changes the pixels of its own parts and no others, and the pixels are pinned."""

import hashlib

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.factors import Scenes, counterfactual_scenes, sample
from diffprobe.shards.scenes.render import Rendered, render, render_batch, visible_shares
from diffprobe.shards.scenes.shapes import FULL
from diffprobe.shards.scenes.spec import FACTORS, MASKS, PARTS, PLAIN, STRIPED, WorldSpec
from diffprobe.shards.scenes.sprites import sprites_of

N = 60
PIXELS = {64: "88fe4b989299977c", 32: "ac87cfbe358a9f9b"}
TRUTH = {64: "ef1ccfd123ea7a5d", 32: "63eb4de74b206fe7"}
MAY_CHANGE = {
    "role": {"hat", "tool"},
    "texture": {"body"},
    "colour": {"body"},
    "build": {"body"},
    "size": {"feet", "body", "arms", "head", "hat", "tool"},
    "pose": {"arms", "tool"},
    "place": set(PARTS) - {"background"},
    "background": {"background"},
    "object": {"object"},
    "side": {"object"},
}
"""Factor -> parts of which one image of a pair shows something at every pixel that differs. `place` moves the object,
too, since the relation of both is a factor of its own."""
MATCHED = {"role": 6, "pose": 6}
"""Factor -> most levels by which stripes change elsewhere: what hides another area of the clothes changes the weights
by which their mean colour is matched."""


def test_pixels_and_truth_are_pinned(spec: WorldSpec) -> None:
    for resolution, pinned in PIXELS.items():
        one = render_batch(spec, 0, range(48), resolution=resolution)
        assert hashlib.sha256(one.images.tobytes()).hexdigest()[:16] == pinned
        assert hashlib.sha256(one.parts.tobytes() + one.depth.tobytes()).hexdigest()[:16] == TRUTH[resolution]


def test_a_scene_does_not_depend_on_its_batch(spec: WorldSpec) -> None:
    every, some = render_batch(spec, 2, range(20)), render_batch(spec, 2, [17, 4])
    assert (every.images[[17, 4]] == some.images).all() and (every.parts[[17, 4]] == some.parts).all()
    assert (every.depth[[17, 4]] == some.depth).all()
    assert all((places[[17, 4]] == some.points[name]).all() for name, places in every.points.items())


def touched(spec: WorldSpec, scenes: Scenes, names: set[str]) -> np.ndarray:
    """Return the pixels in which some of the parts can be seen."""
    return (visible_shares(spec, scenes)[:, [PARTS.index(name) for name in names]] > 0).any(axis=1)


def test_shares_sum_to_one_and_the_parts_follow_them(spec: WorldSpec) -> None:
    scenes = sample(spec, 7, np.arange(N))
    shares, parts = visible_shares(spec, scenes), render(spec, scenes).parts
    assert shares.min() >= 0 and np.abs(shares.sum(axis=1) - 1).max() < 1e-12
    clear = shares.max(axis=1) > 0.5
    assert (shares.argmax(axis=1) == parts)[clear].all() and clear.mean() > 0.98


@pytest.mark.parametrize("factor", FACTORS)
def test_a_factor_changes_its_parts_and_nothing_else(spec: WorldSpec, factor: str) -> None:
    scenes = sample(spec, 7, np.arange(N))
    n_values = len(spec.values[factor])
    changed = counterfactual_scenes(scenes, factor, (scenes.factors[factor] + 1) % n_values)
    before, after = render(spec, scenes), render(spec, changed)
    differ = (before.images != after.images).any(axis=-1)
    assert differ.any(axis=(1, 2)).all()  # it can be seen in each image
    allowed = touched(spec, scenes, MAY_CHANGE[factor]) | touched(spec, changed, MAY_CHANGE[factor])
    elsewhere = np.abs(before.images.astype(int) - after.images.astype(int)).max(axis=-1) * ~allowed
    assert elsewhere.max() <= MATCHED.get(factor, 0)
    striped = (scenes.factors["texture"] == STRIPED)[:, None, None] & touched(spec, scenes, {"body"})
    assert not elsewhere[~striped].any()
    relabelled = before.parts != after.parts
    assert not (relabelled & ~allowed).any()
    if factor in ("texture", "colour", "background"):
        assert not relabelled.any() and (before.depth == after.depth).all()
        assert all((places == after.points[name]).all() for name, places in before.points.items())
    if factor in ("texture", "colour"):
        inside = before.mask("body")
        assert (differ & inside).sum(axis=(1, 2)).min() > 60  # of at least 170 pixels


def coverage_of_body(spec: WorldSpec, scenes: Scenes) -> np.ndarray:
    """Return the pixels that are wholly visible cloth: those that change by the whole step of the colour."""
    low, high = (counterfactual_scenes(scenes, "colour", code) for code in (0, 2))
    difference = render(spec, high).images.astype(int) - render(spec, low).images.astype(int)
    return difference[..., 2] / (spec.colours[2][2] - spec.colours[0][2])


def test_the_mean_colour_of_both_textures_is_the_same_over_the_visible_body(spec: WorldSpec) -> None:
    scenes = sample(spec, 9, np.arange(200))
    plain, striped = (
        render(spec, counterfactual_scenes(scenes, "texture", code)).images.astype(float) for code in (PLAIN, STRIPED)
    )
    share = coverage_of_body(spec, counterfactual_scenes(scenes, "texture", PLAIN))
    gap = (striped - plain).sum(axis=(1, 2)) / share.sum(axis=(1, 2))[:, None]
    assert np.abs(gap).max() < 0.5  # levels; stripes have +-71
    assert abs(gap.mean()) < 0.1
    spread = np.abs(striped - plain).sum(axis=(1, 2)) / share.sum(axis=(1, 2))[:, None]
    assert spread.min() > 30


def test_stripes_have_the_period_and_amplitude_of_the_file(spec: WorldSpec) -> None:
    scenes = counterfactual_scenes(sample(spec, 9, np.arange(100)), "build", spec.code("build", "slim"))
    plain, striped = (
        render(spec, counterfactual_scenes(scenes, "texture", code)).images[..., 1].astype(int)
        for code in (PLAIN, STRIPED)
    )
    wave = (striped - plain)[
        np.arange(100), :, 32 + np.array(spec.places)[scenes.factors["place"]] + scenes.offsets["figure_x"]
    ]
    assert np.abs(wave).max() in range(spec.stripe_levels - 2, spec.stripe_levels + 1)
    period = spec.stripe_period // 8
    rows = np.abs(wave).sum(axis=1).argmax()
    body = np.flatnonzero(wave[rows])
    inner = wave[rows, body[0] + 1 : body[-1]]
    assert np.abs(inner[period:] - inner[:-period]).max() <= 1


def test_masks_partition_the_image_and_points_are_on_their_parts(spec: WorldSpec) -> None:
    for resolution in (64, 32):
        rendered = render_batch(spec, 3, range(N), resolution=resolution)
        masks = np.stack([rendered.mask(name) for name in MASKS])
        assert (masks.sum(axis=0) == 1).all()
        assert masks.any(axis=(2, 3)).all()
    rendered = render_batch(spec, 3, range(N))
    part_of = {"object": "object", "left_foot": "feet", "right_foot": "feet", "free_hand": "arms", "head": "head",
               "hat_tip": "hat", "tool_end": "tool", "tool_grip": "tool"}  # fmt: skip
    assert set(part_of) == set(rendered.points)
    for name, part in part_of.items():
        columns, rows = np.floor(rendered.points[name]).astype(int).T
        assert (rendered.parts[np.arange(N), rows, columns] == PARTS.index(part)).all(), name


def test_the_object_is_on_its_side_and_depth_follows_the_ground(spec: WorldSpec) -> None:
    rendered = render_batch(spec, 3, range(200))
    right = rendered.scenes.factors["side"] == spec.code("side", "right")
    assert ((rendered.points["object"][:, 0] > rendered.points["head"][:, 0]) == right).all()
    nearer = []
    for row in range(200):
        parts, depth = rendered.parts[row], rendered.depth[row]
        levels = [set(depth[parts == part].tolist()) for part in range(len(PARTS))]
        assert all(len(found) == 1 for found in levels) and levels[0] == {0}
        order = [min(found) for found in levels]
        assert order[2:] == sorted(order[2:]) and len(set(order)) == len(order)
        lower = rendered.scenes.offsets["object_y"][row] - rendered.scenes.offsets["figure_y"][row]
        if lower < 0:
            assert order[1] < order[2]
        nearer.append(order[1] > order[2])
    assert 0 < sum(nearer) < 200


def test_half_the_resolution_is_the_mean_of_four_pixels(spec: WorldSpec) -> None:
    whole, half = (render_batch(spec, 3, range(10), resolution=resolution) for resolution in (64, 32))
    mean = whole.images.reshape(10, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(half.images - mean).max() <= 0.5
    assert np.isin(half.parts, np.unique(whole.parts)).all()
    agree = half.parts == whole.parts[:, ::2, ::2]
    assert agree.mean() > 0.9
    uniform = whole.parts.reshape(10, 32, 2, 32, 2).max(axis=(2, 4)) == whole.parts.reshape(10, 32, 2, 32, 2).min(
        axis=(2, 4)
    )
    assert agree[uniform].all()
    assert (half.points["head"] * 2 == whole.points["head"]).all()


def test_hats_and_tools_differ_from_one_another_in_shape_and_colour(spec: WorldSpec) -> None:
    """For each pair of hats or tools, the mean pixel of either part differs by at least 25 levels."""
    sprites = sprites_of(spec)
    pictures = {("hat", name): sprites.hat[name, 0] for name in spec.hats}
    pictures |= {("tool", name): sprites.tool[name, 1, 0] for name in spec.tools}
    flat = {}
    for key, sprite in pictures.items():
        canvas = np.full((128, 128, 3), 195 * FULL)
        area = slice(64 + sprite.top, 64 + sprite.bottom), slice(64 + sprite.left, 64 + sprite.right)
        canvas[area] = canvas[area] * (FULL - sprite.alpha[..., None]) // FULL + sprite.paint
        flat[key] = canvas / FULL
    for kind in ("hat", "tool"):
        keys = [key for key in flat if key[0] == kind]
        for i, first in enumerate(keys):
            for second in keys[:i]:
                difference = np.abs(flat[first] - flat[second]).sum(axis=-1)
                assert difference.sum() / (difference > 0).sum() > 25, (first, second)
                assert difference.sum() > 4000, (first, second)


def test_another_resolution_and_an_unknown_mask_are_refused(spec: WorldSpec) -> None:
    with pytest.raises(ConfigError, match="resolution 48"):
        render_batch(spec, 0, [0], resolution=48)
    rendered: Rendered = render_batch(spec, 0, [0])
    with pytest.raises(ConfigError, match="shoe"):
        rendered.mask("shoe")
    assert (rendered.mask("hat") == (rendered.parts == PARTS.index("hat"))).all()
