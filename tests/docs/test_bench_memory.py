"""The tables of memory in docs/benchmarks.md are the recorded ones, and blocks are held as it states."""

import json

import pytest

from diffprobe.benchmarks.memory import SIZES, WAYS, WEIGHTS, MemoryReport, MemoryRow, render
from tests.docs.markdown import ROOT

WITHOUT_FP8 = WAYS[:3]


def recorded(name: str) -> MemoryReport:
    found = json.loads((ROOT / f"docs/results/memory/{name}.json").read_text("utf-8"))
    return MemoryReport(**found | {"rows": tuple(MemoryRow(**row) for row in found["rows"])})


@pytest.fixture(scope="module")
def report() -> MemoryReport:
    return recorded("flux")


@pytest.fixture(scope="module")
def trained() -> MemoryReport:
    return recorded("flux-trained")


def test_the_tables_are_the_recorded_ones(report: MemoryReport, trained: MemoryReport) -> None:
    text = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    assert render(report) in text and render(trained) in text
    assert f"bench memory --size {trained.size} --weights trained" in text
    assert (trained.size, trained.dtype, trained.n_parameters) == (report.size, report.dtype, report.n_parameters)
    assert f"bench memory --size {report.size}" in text
    assert f"{report.n_parameters / 1e9:.2f} billion parameters" in text and f"{report.weights_gb:.2f} GB" in text
    assert f"{report.block_gb:.2f} GB" in text and report.dtype == SIZES[report.size].dtype == "bfloat16"


def test_at_most_two_blocks_are_held_and_of_quantised_ones_one_in_full_precision(report: MemoryReport) -> None:
    rows = {(row.weights, row.offload, row.quantize): row for row in report.rows}
    assert set(rows) == {(weights, *way) for weights in WEIGHTS for way in WITHOUT_FP8}
    for weights in WEIGHTS:
        whole, apart, packed = (rows[weights, *way] for way in WITHOUT_FP8)
        assert whole.digest == apart.digest != packed.digest and apart.most_blocks == 2
        besides = whole.peak_gb - whole.start_gb - whole.held_gb  # libraries, activations, and pages of files
        of_blocks = {row: row.peak_gb - row.start_gb - besides - row.held_gb for row in (apart, packed)}
        assert 2 < of_blocks[apart] / report.block_gb < 3.2  # the pages of a file that is read count, too
        assert 0 < of_blocks[packed] / report.block_gb < 1
        assert packed.held_gb < 0.51 * whole.held_gb and apart.held_gb < 0.01 * whole.held_gb


def test_of_fp8_up_to_two_blocks_come_on_top_and_of_int8_less_than_one(trained: MemoryReport) -> None:
    assert [(row.weights, row.offload, row.quantize) for row in trained.rows] == [("trained", *way) for way in WAYS]
    whole, apart, int8, fp8 = trained.rows
    assert whole.digest == apart.digest and len({whole.digest, int8.digest, fp8.digest}) == 3
    besides = whole.peak_gb - whole.start_gb - whole.held_gb
    tops = [(row.peak_gb - row.start_gb - besides - row.held_gb) / trained.block_gb for row in (int8, fp8)]
    assert 0 < tops[0] < 1 < tops[1] < 2
    assert all(row.held_gb < 0.51 * whole.held_gb for row in (int8, fp8)) and fp8.held_gb < int8.held_gb


def test_the_page_of_models_states_the_recorded_peaks(report: MemoryReport) -> None:
    text = (ROOT / "docs/users/models.md").read_text("utf-8")
    whole, apart = (row.peak_gb - row.start_gb for row in report.rows[:2])
    assert f"with {report.n_parameters / 1e9:.2f} billion parameters in bfloat16" in text
    assert f"{apart:.1f} GB in place of {whole:.1f}" in text
