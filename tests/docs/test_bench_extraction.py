"""The tables of transformers' extraction in docs/benchmarks.md are those of the recorded measurement."""

import json

import pytest

from tests.docs.markdown import ROOT


@pytest.mark.parametrize("size", ["dit", "mmdit"])
def test_the_tables_are_those_of_the_recorded_measurement(size: str) -> None:
    found = json.loads((ROOT / f"docs/results/extraction/{size}.json").read_text("utf-8"))
    text, setting = (ROOT / "docs/benchmarks.md").read_text("utf-8"), found["setting"]
    given = [f"--{name} {setting[name]}" for name in ("size", "resolution", "images", "repeats")]
    assert f"diffprobe bench extraction {' '.join(given)}" in text
    assert found["clock"] == "processor" and not setting["compile"] and len(found["rows"]) == 2
    for row in found["rows"]:
        plain, ours, floor = (row[name] for name in ("naive_s", "ours_s", "floor_s"))
        cells = [row["name"], *(f"{x:.3g}" for x in (plain, ours, floor)), f"{ours / floor:.2f}", f"{plain / ours:.1f}"]
        assert f"| {size} | {' | '.join(cells)} |" in text
        (way,) = row["ways"]
        ratio = way["ours_s"] / ours
        assert (
            f"| {size} | {row['name']} | {way['ours_s']:.3g} | {ratio:.2f} | {way['largest_difference']:.1e} |" in text
        )
