"""Parts that hide one another, or leave the image, are refused by name."""

from typing import Any

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.render import render_batch
from diffprobe.shards.scenes.spec import PARTS, WorldSpec
from diffprobe.shards.scenes.spec_file import parse_spec
from diffprobe.shards.scenes.sprites import check_visible


def refused(tree: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        check_visible(parse_spec(tree))


def test_a_hat_that_hides_the_head_is_refused(tree: dict[str, Any]) -> None:
    tree["hats"]["cone"]["shapes"][0] = {"polygon": [-9, 8, 0, -16, 9, 8], "fill": [112, 40, 140]}
    refused(tree, "'head'.*head")


def test_a_tool_that_hides_the_body_is_refused(tree: dict[str, Any]) -> None:
    for pose in ("raised", "level", "lowered"):
        tree["pose"][pose] = {"hand": [0, -12], "turn": [1, 0, 1]}
    tree["tools"]["hammer"]["shapes"][1] = {"polygon": [-9, -19, 9, -19, 9, 2, -9, 2], "fill": [92, 98, 110]}
    refused(tree, "'body'.*pose")


def test_an_object_behind_the_figure_is_refused(tree: dict[str, Any]) -> None:
    tree["layout"]["object_distance"] = 8
    refused(tree, "'object'")


def test_a_small_tool_is_refused(tree: dict[str, Any]) -> None:
    tree["tools"]["lens"]["shapes"] = [{"ellipse": [0, -2, 2, 2], "fill": [20, 132, 64]}]
    tree["tools"]["lens"]["points"] = {"tool_end": [0, -2], "tool_grip": [0, -2]}
    refused(tree, "'tool' .lens.")


def test_stripes_wider_than_the_clothes_are_refused(tree: dict[str, Any]) -> None:
    tree["texture"]["period"] = 14
    refused(tree, "'small', has 2[0-9] rows.*14 pixels")


def test_a_part_outside_the_image_and_a_hidden_point_are_refused(tree: dict[str, Any]) -> None:
    tree["place"]["right"] = 12
    refused(tree, "leaves the image: columns")
    tree["place"]["right"] = 5
    tree["figure"]["head"]["points"] = {"head": [0, -42]}
    refused(tree, "point 'head'")


def test_the_visible_area_of_drawn_scenes_is_at_least_the_bound(spec: WorldSpec) -> None:
    rendered = render_batch(spec, 5, range(300))
    for part, least in spec.least_visible.items():
        area = (rendered.parts == PARTS.index(part)).sum(axis=(1, 2))
        assert area.min() >= least, part
