"""The table of memory in docs/benchmarks.md is that of the recorded measurement, and blocks are held as it states."""

import json

import pytest

from diffprobe.benchmarks.memory import SIZES, WAYS, MemoryReport, MemoryRow, render
from tests.docs.markdown import ROOT


@pytest.fixture(scope="module")
def report() -> MemoryReport:
    found = json.loads((ROOT / "docs/results/memory/flux.json").read_text("utf-8"))
    return MemoryReport(**found | {"rows": tuple(MemoryRow(**row) for row in found["rows"])})


def test_the_table_is_the_recorded_one(report: MemoryReport) -> None:
    text = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    assert render(report) in text and f"bench memory --size {report.size}" in text
    assert f"{report.n_parameters / 1e9:.2f} billion parameters" in text and f"{report.weights_gb:.2f} GB" in text
    assert f"{report.block_gb:.2f} GB" in text and report.dtype == SIZES[report.size].dtype == "bfloat16"


def test_at_most_two_blocks_are_held_and_of_quantised_ones_one_in_full_precision(report: MemoryReport) -> None:
    rows = {(row.weights, row.offload, row.quantize): row for row in report.rows}
    assert set(rows) == {(weights, *way) for weights in ("trained", "random") for way in WAYS}
    for weights in ("trained", "random"):
        whole, apart, packed = (rows[weights, *way] for way in WAYS)
        assert whole.digest == apart.digest != packed.digest and apart.most_blocks == 2
        besides = whole.peak_gb - whole.start_gb - whole.held_gb  # libraries, activations, and pages of files
        of_blocks = {row: row.peak_gb - row.start_gb - besides - row.held_gb for row in (apart, packed)}
        assert 2 < of_blocks[apart] / report.block_gb < 3.2  # the pages of a file that is read count, too
        assert 0 < of_blocks[packed] / report.block_gb < 1
        assert packed.held_gb < 0.51 * whole.held_gb and apart.held_gb < 0.01 * whole.held_gb


def test_the_page_of_models_states_the_recorded_peaks(report: MemoryReport) -> None:
    text = (ROOT / "docs/users/models.md").read_text("utf-8")
    whole, apart = (row.peak_gb - row.start_gb for row in report.rows[:2])
    assert f"with {report.n_parameters / 1e9:.2f} billion parameters in bfloat16" in text
    assert f"{apart:.1f} GB in place of {whole:.1f}" in text
