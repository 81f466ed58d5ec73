"""The tables of weights in 8 bits in docs/users/models.md are those of the recorded measurements."""

import json

import pytest

from diffprobe.benchmarks.quantized import QuantizedReport, QuantizedRow, render
from tests.docs.markdown import ROOT

PAGE = (ROOT / "docs/users/models.md").read_text("utf-8")


def report(name: str) -> QuantizedReport:
    found = json.loads((ROOT / f"docs/results/quantize/{name}.json").read_text("utf-8"))
    return QuantizedReport(**found | {"rows": tuple(QuantizedRow(**row) for row in found["rows"])})


@pytest.mark.parametrize("name", ["emoji-sd", "scenes-flow"])
def test_the_table_is_the_recorded_one(name: str) -> None:
    found = report(name)
    assert render(found) in PAGE and f"{found.megabytes['float32']:.2f} MB in float32" in PAGE
    assert found.n_images == 32


@pytest.mark.parametrize("name", ["emoji-sd", "scenes-flow"])
def test_the_order_of_the_errors_is_the_stated_one(name: str) -> None:
    rows = {(row.way, row.cell): row.error for row in report(name).rows}
    for cell in {cell for _, cell in rows}:
        assert rows["int8", cell] < rows["bfloat16", cell] < rows["fp8", cell]
    assert "int8 changes these features less than bfloat16 does, and fp8 more" in PAGE
