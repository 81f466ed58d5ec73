"""Draw the figures of the docs: python docs/figures.py [RUNS].

`demo-group-accuracy.png`, of the front page and the README, is drawn from the folder of the demo, where one is given:
its marks need the predictions, which are not recorded. `scenes-world.png`, the contact sheet of the data set `scenes`,
is drawn from its specification.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from diffprobe.report.figure import render_heat_map
from diffprobe.runs.tables import build_table
from diffprobe.shards.scenes.contact_sheet import ZOOM, SheetRow, contact_sheet
from diffprobe.shards.scenes.world import load_world

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "demo"
FIGURE = DOCS / "demo-group-accuracy.png"
WORLD = DOCS / "scenes-world.png"
_COLUMNS, _GAP, _LABEL, _MARGIN, _FONT = 6, 8, 18, 118, 13


def draw(runs: Path = RESULTS) -> bytes:
    """Draw the classifiers' scores for the 8 groups, by layer and timestep, with the levels of their controls.

    Args:
        runs: folder of the demo; the recorded results have no predictions, so that marks compare point estimates.
    """
    (table,) = build_table("emoji", runs).parts
    return render_heat_map(table, [row for row in table.rows if row.values[0] == "group"], format="png")


def draw_world() -> bytes:
    """Draw the contact sheet of `scenes`: the roles, what else differs between scenes, and what is known of each."""
    return _sheet(contact_sheet(load_world()))


def _sheet(rows: Sequence[SheetRow]) -> bytes:
    side = 64 * ZOOM
    width = _MARGIN + _COLUMNS * (side + _GAP)
    sheet = Image.new("RGB", (width, len(rows) * (side + _LABEL + _GAP)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for line, row in enumerate(rows):
        top = line * (side + _LABEL + _GAP) + _GAP // 2
        pen.multiline_text((6, top + 4), row.heading, fill=(30, 30, 30), font=font, spacing=3)
        for column, cell in enumerate(row.cells):
            left = _MARGIN + column * (side + _GAP)
            sheet.paste(Image.fromarray(cell.pixels).resize((side, side), Image.Resampling.NEAREST), (left, top))
            pen.text((left + side // 2, top + side + 2), cell.label, fill=(30, 30, 30), font=font, anchor="ma")
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
