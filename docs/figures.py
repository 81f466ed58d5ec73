"""Draw the figures of the docs: python docs/figures.py [RUNS].

`demo-group-accuracy.png`, of the front page and the README, is drawn from the folder of the demo, where one is given:
its marks need the predictions, which are not recorded. `scenes-world.png`, the contact sheet of the data set `scenes`,
is drawn from its specification.
"""

import io
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diffprobe.report.figure import render_heat_map
from diffprobe.runs.tables import build_table
from diffprobe.shards.scenes.factors import Scenes, counterfactual_scenes, sample
from diffprobe.shards.scenes.members import PALETTE
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.world import load_world

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "demo"
FIGURE = DOCS / "demo-group-accuracy.png"
WORLD = DOCS / "scenes-world.png"
Pixels = NDArray[np.uint8]
Cell = tuple[str, Pixels]
"""A label and a picture."""
_ZOOM, _COLUMNS, _GAP, _LABEL, _MARGIN, _FONT = 2, 6, 8, 18, 118, 13
_BASE = {"texture": "plain", "colour": "blue", "build": "bell", "size": "large", "pose": "level", "place": "middle",
         "background": "plain", "object": "ball", "side": "left"}  # fmt: skip


def draw(runs: Path = RESULTS) -> bytes:
    """Draw the classifiers' scores for the 8 groups, by layer and timestep, with the levels of their controls.

    Args:
        runs: folder of the demo; the recorded results have no predictions, so that marks compare point estimates.
    """
    (table,) = build_table("emoji", runs).parts
    return render_heat_map(table, [row for row in table.rows if row.values[0] == "group"], format="png")


def draw_world() -> bytes:
    """Draw the contact sheet of `scenes`: the roles, what else differs between scenes, and what is known of each."""
    spec = load_world()
    roles = list(spec.names("role"))
    hats, tools = list(spec.hats), list(spec.tools)
    by_look = {(role.hat, role.tool): role.name for role in spec.roles}
    rows: list[tuple[str, list[Cell]]] = []
    for tool in tools:
        names = [by_look[hat, tool] for hat in hats]
        rows.append((f"role\n{tool}", [(name, _image(spec, role=name)) for name in names]))
    textures: list[Cell] = []
    for colour, build in (("red", "broad"), ("green", "round"), ("yellow", "slim")):
        textures += [(name, _image(spec, texture=name, colour=colour, build=build)) for name in ("plain", "striped")]
    rows.append(("texture\nat a rate\nby role", textures))
    rows.append(("colour", [(name, _image(spec, colour=name, texture="striped")) for name in spec.names("colour")]))
    rows.append(("build", [(name, _image(spec, build=name, colour="purple")) for name in spec.names("build")]))
    rows.append(("size, pose", [(name, _image(spec, **{factor: name}))
                                for factor in ("size", "pose") for name in spec.names(factor)]))  # fmt: skip
    rows.append(("background\nnever in\na caption", _backgrounds(spec)))
    relations = [("ball", "left"), ("box", "right"), ("tree", "left"), ("star", "right")]
    rows.append(("object, side,\nplace", [
        *((f"{name}, {side}", _image(spec, object=name, side=side)) for name, side in relations),
        *((name, _image(spec, place=name)) for name in ("left", "right")),
    ]))  # fmt: skip
    rows.append(("truth", _truth(spec)))
    assert len(roles) == len(hats) * len(tools) == 24
    return _sheet(rows)


def _scene(spec: WorldSpec, index: int = 1, **values: str) -> Scenes:
    scenes = sample(spec, 0, [index])
    for factor, value in {"role": "farmer", **_BASE, **values}.items():
        scenes = counterfactual_scenes(scenes, factor, spec.code(factor, value))
    return scenes


def _image(spec: WorldSpec, index: int = 1, **values: str) -> Pixels:
    return render(spec, _scene(spec, index, **values)).images[0]


def _backgrounds(spec: WorldSpec) -> list[Cell]:
    return [(name, _image(spec, background=name, index=3)) for name in spec.names("background")]


def _truth(spec: WorldSpec) -> list[Cell]:
    values = {"role": "singer", "texture": "striped", "colour": "red", "background": "dots", "object": "tree"}
    rendered = render(spec, _scene(spec, 3, **values))
    small = render(spec, _scene(spec, 3, **values), resolution=32).images[0]
    image, parts, depth = rendered.images[0], rendered.parts[0], rendered.depth[0]
    low = int(depth[depth > 0].min())
    levels = np.where(depth > 0, 70 + (depth.astype(int) - low) * 185 // max(1, int(depth.max()) - low), 0)
    figure = np.where(rendered.mask("figure")[0][..., None], image, (image // 6 + 205).astype(np.uint8))
    marked = Image.fromarray((image // 3 + 150).astype(np.uint8)).resize((128, 128), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(marked)
    for places in rendered.points.values():
        x, y = places[0] * _ZOOM
        pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(210, 0, 60), outline=(255, 255, 255))
    return [
        ("image", image),
        ("mask.png: parts", np.array(PALETTE, dtype=np.uint8)[parts]),
        ("figure alone", figure),
        ("depth.png", np.repeat(levels.astype(np.uint8)[..., None], 3, axis=-1)),
        ("points.json", np.asarray(marked)),
        ("32 pixels", small),
    ]


def _sheet(rows: list[tuple[str, list[Cell]]]) -> bytes:
    side = 64 * _ZOOM
    width = _MARGIN + _COLUMNS * (side + _GAP)
    sheet = Image.new("RGB", (width, len(rows) * (side + _LABEL + _GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for line, (heading, cells) in enumerate(rows):
        top = line * (side + _LABEL + _GAP) + _GAP // 2
        pen.multiline_text((6, top + 4), heading, fill=(30, 30, 30), font=font, spacing=3)
        for column, (label, pixels) in enumerate(cells):
            left = _MARGIN + column * (side + _GAP)
            sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top))
            pen.text((left + side // 2, top + side + 2), label, fill=(30, 30, 30), font=font, anchor="ma")
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def main(runs: Path | None = None) -> None:
    """Draw the figures; that of the demo where its folder is given."""
    of_demo = [] if runs is None else [(FIGURE, draw(runs))]
    for path, drawn in (*of_demo, (WORLD, draw_world())):
        path.write_bytes(drawn)
        print(f"{path.relative_to(DOCS.parent)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
