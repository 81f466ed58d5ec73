"""Records of planted comparisons: counts of cells, q over all of them."""

import pytest

from diffprobe.analysis.prompt_agreement import PromptAgreement
from diffprobe.analysis.prompt_directions import HalvesCosine
from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.direction_records import Comparison, records


def compared(
    factor: str, reading: str, cell: str, value: float | None, *, halves: float = 0.9, p: float = 0.01
) -> Comparison:
    """A comparison with a known agreement, reliability of the truth and p."""
    none = value is None
    null = {"p": p, "smallest_p": 0.01, "quantile": 1.0, "mean": 0.0, "percentile_95": 0.1, "n": 99}
    found = PromptAgreement(
        agreement=value, interval=None if none else (value - 0.1, value + 0.1), null=None if none else null,
        corrected=None if none else value + 0.05, by_seed=() if none else (value, value - 0.2),
        others={"size": -0.3, "place": 0.2}, auroc=0.75, auroc_interval=(0.7, 0.8),
        truth_halves=HalvesCosine(mean=halves, low=halves - 0.1, high=halves + 0.1, n=50),
        prompt_halves=HalvesCosine(mean=0.6, low=0.5, high=0.7, n=20), n_pairs=50,
    )  # fmt: skip
    condition = "caption" if reading == "conditional" else "empty"
    return Comparison(
        factor=factor, positive="a", negative="b", reading=reading, cell=f"{cell}:{condition}:mean",
        truth_cell=f"{cell}:empty:mean", n_contexts=20, found=found,
    )  # fmt: skip


def comparisons() -> list[Comparison]:
    return [
        compared("side", "conditional", "mid_block@t9", 0.9),
        compared("side", "conditional", "mid_block@t99", 0.5),
        compared("side", "re-read", "mid_block@t9", 0.95),
        compared("side", "re-read", "mid_block@t99", 0.99, halves=0.2),
        compared("side", "vae_latents", "latents@t0", 0.7),
        compared("side", "raw_pixels", "pixels@t0", None),
        compared("colour", "conditional", "mid_block@t9", 0.95, p=0.5),
        compared("colour", "conditional", "mid_block@t99", None),
        compared("colour", "re-read", "mid_block@t9", None),
        compared("colour", "re-read", "mid_block@t99", None),
    ]


def records_of(found: list[Comparison]) -> list[MetricRecord]:
    return records(
        found, least_split_half=0.5, least_agreement=0.8, alpha=0.05, not_applicable={"build": "not captioned"},
        n_factors=10,
    )  # fmt: skip


def test_cells_are_counted_by_factor_and_reading() -> None:
    found = records_of(comparisons())
    counts = {(r.target, r.detail["reading"]): r for r in found if r.name == "agreeing_cells"}
    assert {key: (r.detail["agreeing"], r.n, r.detail["cells"]) for key, r in counts.items()} == {
        ("side", "conditional"): (1, 2, 2),
        ("side", "re-read"): (1, 1, 2),  # one cell has no direction to agree with
        ("colour", "conditional"): (0, 1, 2),  # as far from chance as half of the random directions
        ("colour", "re-read"): (0, 0, 2),
    }
    assert counts["side", "conditional"].detail["median_agreement"] == pytest.approx(0.7)
    assert counts["colour", "re-read"].detail["median_agreement"] is None


def test_a_comparison_has_four_records_with_controls() -> None:
    found = records_of(comparisons())
    of = {(r.name, r.target, r.cell): r for r in found}
    agreement = of["agreement", "side", "mid_block@t9:caption:mean"]
    assert agreement.value == 0.9 and agreement.controls == {"random_direction": 0.1, "other_factor": 0.3}
    assert agreement.detail["interval"] == pytest.approx([0.8, 1.0]) and agreement.detail["n_tests"] == 5
    assert agreement.detail["q"] == pytest.approx(0.0125) and agreement.detail["by_seed"] == pytest.approx([0.9, 0.7])
    assert of["auroc", "side", "mid_block@t9:caption:mean"].n == 100
    assert of["split_half_prompts", "side", "mid_block@t9:caption:mean"].n == 20
    undefined = of["agreement", "side", "pixels@t0:empty:mean"]
    assert undefined.value == 0 and undefined.detail["defined"] is False and "q" not in undefined.detail
    assert "q" not in of["agreement", "side", "latents@t0:empty:mean"].detail  # a baseline is not among the tests
    assert of["captioned_factors", None, None].detail["not_applicable"].keys() == {"build", "text encoder"}


def test_nothing_defined_is_no_error() -> None:
    found = records_of([compared("side", reading, "mid_block@t9", None) for reading in ("conditional", "re-read")])
    assert all(r.value == 0 for r in found if r.name in ("agreement", "agreeing_cells"))
