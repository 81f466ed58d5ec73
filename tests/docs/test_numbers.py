"""The tables of README and docs/benchmarks.md: made again from recorded results, or consistent in themselves.

Recorded: the tables of the demo, from the result files and the CSV in docs/results/demo; that of the 192 autoencoders,
from its CSV; the cards of the models. The tables of speeds have no recorded files: their derived columns and the ratios
in the text are computed again.
"""

import csv
import importlib.util
import re
from types import ModuleType

import pytest

from diffprobe.config import search_path
from diffprobe.core.result import read_result
from diffprobe.evaluation.backbone_tables import backbone_tables
from diffprobe.report.table import build_table
from tests.docs.markdown import ROOT

README = (ROOT / "README.md").read_text("utf-8")
BENCHMARKS = (ROOT / "docs/benchmarks.md").read_text("utf-8")
RESULTS = ROOT / "docs" / "results" / "demo"


def script(name: str) -> ModuleType:
    """Import a script of docs, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


record_scenes = script("record_scenes")


def rows(text: str, first: str) -> list[list[str]]:
    """Return the cells of the rows of the Markdown table whose heading begins with `first`, without emphasis."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(rf"\|\s*{re.escape(first)}\s*\|", line))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append([cell.strip().replace("**", "") for cell in line.strip("|").split("|")])
    return found


FIRST = {"emoji": "target", "emoji/use": "intervention", "emoji/directions": "direction"}
"""Table of the demo -> the heading of its first column."""


def printed(name: str) -> list[list[str]]:
    """Return the rows of a table that is made from the recorded results, without marks: predictions are not kept."""
    return unmarked(rows(build_table(name, RESULTS).to_markdown(), FIRST[name]))


def unmarked(found: list[list[str]]) -> list[list[str]]:
    return [[cell.removesuffix(" ‡") for cell in row] for row in found]


def marks(name: str) -> list[bool]:
    """Return for each entry of a table, row by row, whether the recorded CSV marks it."""
    with (RESULTS / f"{name.replace('/', '-')}.csv").open(encoding="utf-8", newline="") as file:
        return [row["below_control"] == "True" for row in csv.DictReader(file)]


def test_the_readme_can_be_read_in_three_minutes() -> None:
    assert len(README.splitlines()) <= 130


@pytest.mark.parametrize("name", FIRST)
def test_the_tables_of_the_demo_are_those_of_the_recorded_results(name: str) -> None:
    shown = rows(BENCHMARKS, FIRST[name])
    assert unmarked(shown) == printed(name)
    marked = [cell.endswith(" ‡") for row in shown for cell in row]
    assert sum(marked) == sum(marks(name))
    columns = len(marks(name)) // len(shown)
    first = next(i for i, cell in enumerate(shown[0]) if re.fullmatch(r"[\d.]+( ‡)?", cell))
    assert [cell.endswith(" ‡") for row in shown for cell in row[first : first + columns]] == marks(name)


def test_the_table_of_the_readme_is_that_table() -> None:
    assert rows(README, "target") == rows(BENCHMARKS, "target")


def test_the_figure_is_drawn_from_the_recorded_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import figures  # type: ignore[import-not-found]

    assert figures.draw()[:8] == figures.FIGURE.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert figures.FIGURE.stat().st_size < 300_000


def test_the_ratios_of_the_extraction_table_follow_from_its_times() -> None:
    for _, plain, ours, floor, over_floor, speed_up in rows(BENCHMARKS, "features"):
        assert f"{float(ours) / float(floor):.2f}" == over_floor
        assert f"{float(plain) / float(ours):.1f}" == speed_up


def step_times(first: str) -> dict[str, list[float]]:
    """Return the seconds per step of each contender."""
    return {name: [float(cell.split(",")[0]) for cell in cells] for name, *cells in rows(BENCHMARKS, first)}


def span(times: dict[str, list[float]], above: str, below: str) -> tuple[str, str]:
    ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
    return f"{min(ratios):.1f}", f"{max(ratios):.1f}"


@pytest.mark.parametrize(
    ("table", "above", "below", "text"),
    [
        ("float32; k = 32", "dense step", "ours", r"A step is (\S+) to (\S+) times as fast as the dense one"),
        ("float32; k = 32", "sparsify 1.3.3", "ours", r"and (\S+) to (\S+) times as fast as that of sparsify"),
        ("float32; k = 32", "ours", "encoder alone (floor)", r"takes (\S+) to (\S+) times its floor\. About"),
        ("bfloat16; k = 32", "sparsify 1.3.3", "ours", r"A step is (\S+) to (\S+) times as fast as that of sparsify"),
        ("bfloat16; k = 32", "ours", "encoder alone (floor)", r"and takes (\S+) to (\S+) times its floor: Adam"),
    ],
)
def test_the_ratios_in_the_text_follow_from_the_table_of_steps(table: str, above: str, below: str, text: str) -> None:
    found = re.search(text, " ".join(BENCHMARKS.split()))
    assert found is not None
    low, high = span(step_times(table), above, below)
    assert (
        abs(float(found[1]) - float(low)) <= 0.11 and abs(float(found[2]) - float(high)) <= 0.11
    )  # printed times are rounded


def test_the_table_of_autoencoders_is_the_recorded_one() -> None:
    with (ROOT / "docs/results/emoji-sd/sae_table.csv").open(encoding="utf-8", newline="") as file:
        recorded = [row for row in csv.DictReader(file) if row["metric"] == "fvu"]
    expected: dict[tuple[str, str], list[str]] = {}
    for row in recorded:
        cells = expected.setdefault((row["tap"], row["probe"]), [])
        cells.append(f"{float(row['value']):.3f} ± {float(row['spread']):.3f}")
    shown = {(layer, variant): cells[:3] for layer, variant, *cells in rows(BENCHMARKS, "layer")}
    assert shown == expected and len(shown) == 16


def test_the_reconstructions_are_the_recorded_ones() -> None:
    text = " ".join(BENCHMARKS.split())
    for name in ("evaluate_sae", "evaluate_sae_places"):
        of = {one.name: one for one in read_result(ROOT / f"docs/results/emoji-sd/sae/{name}.json").metrics}
        low, high = of["recovered"].detail["interval"]
        assert f"fvu {of['fvu'].value:.3f}" in text
        assert f"recovers {of['recovered'].value:.3f} [{low:.3f}, {high:.3g}]" in text
        cost = of["delta_mse"].controls["mean_ablation"]
        assert f"{cost:.4f}" in text


def test_the_readme_repeats_the_benchmarks() -> None:
    text = " ".join(README.split())
    assert "up to 9 times as fast as one pass per tap and timestep" in text
    assert max(float(row[-1]) for row in rows(BENCHMARKS, "features")) >= 9
    found = re.search(r"autoencoder step (\S+) to (\S+) times as fast as the dense one", text)
    assert found is not None
    assert f"the ratio to the dense step was {found[1]} to {found[2]} in float32" in " ".join(BENCHMARKS.split())


def test_the_page_of_models_lists_every_preset_of_a_backbone() -> None:
    listed = set(re.findall(r"`([a-z0-9-]+)`", (ROOT / "docs/users/models.md").read_text("utf-8")))
    assert set(search_path.groups()["backbone"]) <= listed


def test_the_card_of_the_shipped_model_has_its_recorded_evaluation() -> None:
    recorded = backbone_tables(read_result(ROOT / "docs/results/emoji-sd/result.json"))
    card = (ROOT / "diffprobe/assets/emoji-sd/README.md").read_text("utf-8")
    assert recorded.strip() in card


def test_the_cards_of_the_twins_have_their_recorded_evaluations() -> None:
    found = record_scenes.tables()
    for name in record_scenes.TWINS:
        page = record_scenes.card(name).read_text("utf-8")
        for marker, content in found.items():
            assert record_scenes.with_tables(page, marker, content) == page, (name, marker)
    for path in record_scenes.PAGES:
        text = path.read_text("utf-8")
        for marker, content in found.items():
            assert record_scenes.with_tables(text, marker, content) == text, (path, marker)
    first, second = (record_scenes.card(name).read_text("utf-8") for name in record_scenes.TWINS)
    assert "<!-- tables: rates -->" in first and "<!-- tables: scenes-sd-permuted/evaluation -->" in second


def test_tables_between_markers_are_replaced() -> None:
    page = f"before\n<!-- tables: rates -->\n| old |\n{record_scenes.END}\nafter"
    assert record_scenes.with_tables(page, "rates", "| new |\n") == page.replace("old", "new")
    assert record_scenes.with_tables(page, "other", "| new |\n") == page
