"""The page about `scenes`: its table, its numbers, its snippet and its picture are those of the code."""

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffprobe.shards.scenes.members import members_of
from diffprobe.shards.scenes.render import render_batch
from diffprobe.shards.scenes.spec import PARTS
from diffprobe.shards.scenes.splits import SPLITS
from diffprobe.shards.scenes.world import load_world
from tests.docs.markdown import ROOT, blocks

PAGE = ROOT / "docs/users/scenes.md"
TEXT = PAGE.read_text("utf-8")


def cells(first: str) -> list[list[str]]:
    """Return the rows of the table whose heading begins with `first`."""
    table = TEXT[TEXT.index(f"| {first} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_table_of_roles_is_the_file_of_the_world() -> None:
    expected = [
        [
            role.name,
            role.hat.replace("_", " "),
            role.tool,
            *(f"{rate:g}" for rate in role.striped),
            role.background or "",
        ]
        for role in load_world().roles
    ]
    assert cells("role") == expected


def test_members_splits_and_parts_are_those_of_the_code() -> None:
    spec = load_world()
    (files,) = members_of(spec, render_batch(spec, 0, [0]))
    assert {row[0].strip("`") for row in cells("member of a sample")} == set(files)
    assert set(re.findall(r"`(\w+)`", " ".join(row[0] for row in cells("split")))) == set(SPLITS)
    assert ", ".join(f"{number} {part}" for number, part in enumerate(PARTS)) in TEXT
    points = next(row[1] for row in cells("member of a sample") if "points" in row[0])
    assert set(re.findall(r"`(\w+)`", points)) == set(render_batch(spec, 0, [0]).points)


def test_numbers_of_the_text_are_those_of_the_file() -> None:
    spec = load_world()
    stated = {name: rule.probability for rule in spec.rules for name in rule.factors}
    for name in ("texture", "colour", "size", "place"):
        assert re.search(rf"{name} \({100 * stated[name]:.0f} %\)", TEXT), name
    assert f"the object with its side ({100 * stated['side']:.0f} %)" in TEXT.replace("\n", " ")
    assert f"period of {spec.stripe_period // 8} pixels" in TEXT and "amplitude of 0.28" in TEXT
    assert spec.stripe_levels == round(0.28 * 255) and f"probability {spec.preference:g}" in TEXT
    assert sum(role.striped[0] == 0.5 for role in spec.roles) == 8 and len(spec.splits.combinations) == 10
    assert (spec.splits.val, spec.splits.test) == (0.1, 0.1) and spec.captions_per_image == 3


def test_the_snippet_runs() -> None:
    (block,) = [block for block in blocks(PAGE) if block.language == "python"]
    names: dict[str, Any] = {}
    exec(compile(block.code, str(block), "exec"), names)
    assert names["batch"].images.shape == (64, 64, 64, 3) and names["pair"][0].shape == (64, 64, 3)


def test_the_picture_is_drawn_from_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import figures  # type: ignore[import-not-found]

    kept, drawn = (np.array(Image.open(source)) for source in (figures.WORLD, io.BytesIO(figures.draw_world())))
    assert figures.WORLD.stat().st_size < 300_000 and kept.shape == drawn.shape
    assert (np.abs(kept.astype(int) - drawn) > 0).mean() < 0.02  # letters may differ between versions of FreeType
