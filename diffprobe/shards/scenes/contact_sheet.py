"""The contact sheet of the shipped world of scenes: its roles, its other factors, and what is known of an image.

The sheet is data, rows of labelled images; `docs/figures.py` draws it as one picture and the page of the demo as HTML.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffprobe.shards.scenes.factors import Scenes, counterfactual_scenes, sample
from diffprobe.shards.scenes.members import PALETTE
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import WorldSpec

Pixels = NDArray[np.uint8]

ZOOM = 2
"""Pixels of a sheet's cell per pixel of the world; points are marked at that size."""
_BASE = {"texture": "plain", "colour": "blue", "build": "bell", "size": "large", "pose": "level", "place": "middle",
         "background": "plain", "object": "ball", "side": "left"}  # fmt: skip


@dataclass(frozen=True)
class SheetCell:
    """One labelled image.

    Attributes:
        label: a value of a factor, or what is shown.
        pixels: uint8 (r, r, 3); r is 32, 64 or 128.
    """

    label: str
    pixels: Pixels


@dataclass(frozen=True)
class SheetRow:
    """One row of the sheet.

    Attributes:
        heading: what varies along it, in one or more lines.
        cells: its images.
    """

    heading: str
    cells: tuple[SheetCell, ...]


def contact_sheet(spec: WorldSpec) -> tuple[SheetRow, ...]:
    """Draw the contact sheet: one row per tool with the roles by hat, then one row per other factor, then the truth.

    Args:
        spec: a world with the values of the shipped one.

    Raises: UnknownName for a world without these values.
    """
    by_look = {(role.hat, role.tool): role.name for role in spec.roles}
    rows = []
    for tool in spec.tools:
        names = [by_look[hat, tool] for hat in spec.hats if (hat, tool) in by_look]
        rows.append(_row(f"role\n{tool}", [(name, _image(spec, role=name)) for name in names]))
    textures = []
    for colour, build in (("red", "broad"), ("green", "round"), ("yellow", "slim")):
        textures += [(name, _image(spec, texture=name, colour=colour, build=build)) for name in ("plain", "striped")]
    relations = [("ball", "left"), ("box", "right"), ("tree", "left"), ("star", "right")]
    return (
        *rows,
        _row("texture\nat a rate\nby role", textures),
        _row("colour", [(name, _image(spec, colour=name, texture="striped")) for name in spec.names("colour")]),
        _row("build", [(name, _image(spec, build=name, colour="purple")) for name in spec.names("build")]),
        _row("size, pose", [*((name, _image(spec, size=name)) for name in spec.names("size")),
                            *((name, _image(spec, pose=name)) for name in spec.names("pose"))]),
        _row("background\nnever in\na caption",
             [(name, _image(spec, background=name, index=3)) for name in spec.names("background")]),
        _row("object, side,\nplace", [
            *((f"{name}, {side}", _image(spec, object=name, side=side)) for name, side in relations),
            *((name, _image(spec, place=name)) for name in ("left", "right")),
        ]),
        _row("truth", _truth(spec)),
    )  # fmt: skip


def _row(heading: str, cells: list[tuple[str, Pixels]]) -> SheetRow:
    return SheetRow(heading, tuple(SheetCell(label, pixels) for label, pixels in cells))


def _scene(spec: WorldSpec, index: int = 1, **values: str) -> Scenes:
    scenes = sample(spec, 0, [index])
    for factor, value in {"role": "farmer", **_BASE, **values}.items():
        scenes = counterfactual_scenes(scenes, factor, spec.code(factor, value))
    return scenes


def _image(spec: WorldSpec, index: int = 1, **values: str) -> Pixels:
    pixels: Pixels = render(spec, _scene(spec, index, **values)).images[0]
    return pixels


def _truth(spec: WorldSpec) -> list[tuple[str, Pixels]]:
    """Return one image, and its parts, figure, depth and named points."""
    values = {"role": "singer", "texture": "striped", "colour": "red", "background": "dots", "object": "tree"}
    rendered = render(spec, _scene(spec, 3, **values))
    small = render(spec, _scene(spec, 3, **values), resolution=32).images[0]
    image, parts, depth = rendered.images[0], rendered.parts[0], rendered.depth[0]
    low = int(depth[depth > 0].min())
    levels = np.where(depth > 0, 70 + (depth.astype(int) - low) * 185 // max(1, int(depth.max()) - low), 0)
    figure = np.where(rendered.mask("figure")[0][..., None], image, (image // 6 + 205).astype(np.uint8))
    side = ZOOM * len(image)
    marked = Image.fromarray((image // 3 + 150).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(marked)
    for places in rendered.points.values():
        x, y = places[0] * ZOOM
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(210, 0, 60), outline=(255, 255, 255))
    return [
        ("image", image),
        ("mask.png: parts", np.array(PALETTE, dtype=np.uint8)[parts]),
        ("figure alone", figure),
        ("depth.png", np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)),
        ("points.json", np.asarray(marked)),
        ("32 pixels", small),
    ]
