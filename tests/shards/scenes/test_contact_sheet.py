import numpy as np

from diffprobe.shards.scenes.contact_sheet import contact_sheet
from diffprobe.shards.scenes.spec import FACTORS
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()


def test_every_role_and_every_value_of_every_factor_is_shown():
    rows = contact_sheet(SPEC)
    labels = [cell.label for row in rows for cell in row.cells]
    for name in FACTORS:
        for value in SPEC.names(name):
            assert any(value in label.split(", ") for label in labels) or value == "middle", (name, value)
    assert [label for label in labels if label in SPEC.names("role")] != list(SPEC.names("role"))  # by tool and hat
    assert all(len(row.cells) <= 6 for row in rows) and rows[0].heading.startswith("role\n")


def test_cells_are_images_that_differ_and_are_the_same_each_time():
    first, second = contact_sheet(SPEC), contact_sheet(SPEC)
    for row, again in zip(first, second, strict=True):
        for cell, same in zip(row.cells, again.cells, strict=True):
            side = len(cell.pixels)
            assert cell.pixels.shape == (side, side, 3) and cell.pixels.dtype == np.uint8 and side in (32, 64, 128)
            assert np.array_equal(cell.pixels, same.pixels)
    roles = [cell.pixels.tobytes() for row in first[:4] for cell in row.cells]
    assert len(roles) == len(set(roles)) == len(SPEC.roles)
