"""The tables of transformers' extraction in docs/benchmarks.md are those of the recorded measurement."""

import json

import pytest

from diffprobe.benchmarks.extraction import COMPILED, ONEDNN
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


def test_the_table_of_compiled_blocks_is_that_of_its_own_run() -> None:
    found = json.loads((ROOT / "docs/results/extraction/dit-compiled.json").read_text("utf-8"))
    text, setting = (ROOT / "docs/benchmarks.md").read_text("utf-8"), found["setting"]
    given = [f"--{name} {setting[name]}" for name in ("size", "resolution", "images", "repeats")]
    assert f"diffprobe bench extraction {' '.join(given)} --compile\n" in text
    assert found["clock"] == "processor" and setting["compile"] and found["machine"].startswith("AMD EPYC, 1 threads")
    vae, whole = found["vae_gflop"], found["vae_gflop"] + found["denoiser_gflop"]
    assert f"Of the {whole:.0f} GFLOP of an image at one timestep {vae:.0f} are the VAE's" in text
    rows = [(row, way) for row in found["rows"] for way in row["ways"]]
    assert sorted(way["name"] for _, way in rows) == 2 * [COMPILED] + 2 * [ONEDNN]
    for row, way in rows:
        ours, ratio = row["ours_s"], way["ours_s"] / row["ours_s"]
        cells = [f"{ours:.3g}", f"{way['ours_s']:.3g}", f"{ratio:.2f}", f"{way['first_s']:.0f}"]
        line = [f"`{way['name']}`", row["name"], *cells, f"{way['largest_difference']:.1e}"]
        assert f"| {' | '.join(line)} |" in text and 0.95 < ratio < 1.05  # as the text states: no gain
