"""The files of a sample hold what was drawn."""

import io
import json

import numpy as np
from PIL import Image

from diffprobe.shards.scenes.captions import parse
from diffprobe.shards.scenes.members import members_of
from diffprobe.shards.scenes.render import render_batch
from diffprobe.shards.scenes.spec import FACTORS, WorldSpec


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def test_files_decode_to_what_was_drawn(spec: WorldSpec) -> None:
    rendered = render_batch(spec, 1, range(5), world="permuted")
    for row, files in enumerate(members_of(spec, rendered)):
        assert set(files) == {"png", "json", "mask.png", "depth.png", "points.json"}
        assert (pixels(files["png"]) == rendered.images[row]).all()
        assert (pixels(files["mask.png"]) == rendered.parts[row]).all()
        assert (pixels(files["depth.png"]) == rendered.depth[row]).all()
        points = json.loads(files["points.json"])
        assert points == {name: places[row].tolist() for name, places in rendered.points.items()}


def test_the_annotation_states_factors_and_how_to_draw_the_scene_again(spec: WorldSpec) -> None:
    rendered = render_batch(spec, 1, [40, 7], world="permuted")
    further = [{"pair": "a"}, {"pair": "b"}]
    for row, files in enumerate(members_of(spec, rendered, further=further)):
        record = json.loads(files["json"])
        attributes, scene = record["attributes"], record["scene"]
        assert set(attributes) == {*FACTORS, "hat", "tool", "pair"} and attributes["pair"] == "ab"[row]
        role = spec.roles[record["label"]]
        assert record["class_name"] == attributes["role"] == role.name
        assert (attributes["hat"], attributes["tool"]) == (role.hat, role.tool)
        assert record["caption"] == record["captions"][0] and len(record["captions"]) == spec.captions_per_image
        assert all(parse(spec, text).items() <= attributes.items() for text in record["captions"])
        again = render_batch(spec, scene["seed"], [scene["index"]], world=scene["world"])
        assert (again.images[0] == rendered.images[row]).all()
        assert again.scenes.offsets["stripe_phase"][0] == scene["stripe_phase"] and scene["version"] == spec.version
