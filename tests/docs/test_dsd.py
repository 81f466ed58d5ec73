"""The table of DSD beside Diffusion Classifier in docs/users/scores.md is that of the recorded results."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.docs.markdown import ROOT

PAGE = (ROOT / "docs/users/scores.md").read_text("utf-8")
_SPEC = importlib.util.spec_from_file_location("record_dsd", ROOT / "docs/record_dsd.py")
assert _SPEC is not None and _SPEC.loader is not None
record_dsd: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(record_dsd)


def test_the_table_is_the_recorded_one() -> None:
    lines = record_dsd.table()
    block = PAGE.partition("<!-- table: dsd -->\n")[2].partition("\n\n")[0]
    assert block.splitlines() == lines and len(lines) > 4


def stated(setting: Any) -> Any:
    """Return a setting without what is left out: results of earlier versions lack it."""
    return {k: v for k, v in setting.items() if v not in (None, [], {})} if isinstance(setting, dict) else setting


def test_methods_are_compared_on_the_same_choices() -> None:
    keys = ("data", "candidates", "n_timesteps", "noise_sets", "seed", "limit", "backbone")
    for of_methods in record_dsd.recorded().values():
        assert record_dsd.COMPARED <= set(of_methods)
        first, *others = of_methods.values()
        for other in others:
            assert [stated(first.config[key]) for key in keys] == [stated(other.config[key]) for key in keys]
            assert [record.n for record in first.metrics] == [record.n for record in other.metrics]


def test_an_experiment_with_one_method_has_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of runs with one method of an experiment is recorded, and the page stays as it was."""
    page, results, runs = tmp_path / "page.md", tmp_path / "results", tmp_path / "runs"
    page.write_text(PAGE, encoding="utf-8")
    shutil.copytree(record_dsd.RESULTS, results)
    for path in results.glob("emoji-dsd-*"):
        path.unlink()
    source = record_dsd.RESULTS / "scenes-dsd-dsd.json"
    (runs / "emoji/dsd/one").mkdir(parents=True)
    shutil.copyfile(source, runs / "emoji/dsd/one/result.json")
    for name, value in {"PAGE": page, "RESULTS": results}.items():
        monkeypatch.setattr(record_dsd, name, value)
    before = record_dsd.table()
    record_dsd.record(runs)
    assert (results / "emoji-dsd-dsd.json").is_file() and set(record_dsd.recorded()) == {"scenes/dsd"}
    assert record_dsd.table() == before and "\n".join(before) in page.read_text("utf-8")


def test_the_text_states_what_the_table_has() -> None:
    """DSD with the published weights chooses the right caption less often than its own error term."""
    scenes = record_dsd.recorded()["scenes/dsd"]
    plain, error, dsd = (
        {r.name: r.value for r in scenes[method].metrics} for method in ("diffusion_classifier", "norm", "dsd")
    )
    assert error == plain
    assert all(dsd[name] <= value for name, value in plain.items())
    assert sum(dsd[name] < value for name, value in plain.items()) >= 10


def test_the_numbers_on_overlap_are_the_recorded_ones() -> None:
    result = record_dsd.read_result(record_dsd.RESULTS / "emoji-overlap.json")
    accuracy, overlap, link = result.metrics
    low, high = link.detail["interval"]
    text = " ".join(PAGE.partition("## Overlap of classes")[2].split())
    spearman, p, mean = (f"{value:.3f}"[1:] for value in (link.value, link.detail["p"], overlap.value))
    for fact in (
        f"the {accuracy.n} of {result.config['limit']} held-out emoji", f"in {100 * accuracy.value:.1f} %",
        f"mean overlap of two tones is {mean}", f"is {spearman} (p = {p})", f"{low:.3f} to {high:.3f}",
        f"limit={result.config['limit']} n_timesteps={result.config['n_timesteps']}",
    ):  # fmt: skip
        assert fact in text, fact
    names, matrix = overlap.detail["classes"], overlap.detail["overlap"]
    pairs = {matrix[i][j]: {names[i], names[j]} for i in range(5) for j in range(5) if i != j}
    assert pairs[max(pairs)] == {"medium", "medium-dark"}


def test_the_text_on_few_shot_is_that_of_the_results() -> None:
    emoji = record_dsd.recorded()["emoji/dsd"]
    (few,), (plain,) = (emoji[method].metrics for method in ("few_shot", "diffusion_classifier"))
    found, text = few.detail["differences"]["zero_shot"], " ".join(PAGE.partition("### Few-shot")[2].split())
    low, value, high = (f"{100 * found[key]:.1f}" for key in ("low", "estimate", "high"))
    assert f"Of {few.n} emoji" in text and f"for {100 * few.value:.1f} %, {value} points ({low} to {high}) more" in text
    assert f"finds it for {100 * plain.value:.1f} %" in text and plain.value > few.value
