"""The error of features with weights in 8 bits: the numbers compared with plain ones, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

from diffprobe.benchmarks.quantized import QuantizedReport, QuantizedRow, bench_quantized, compare, render
from diffprobe.core.errors import ConfigError


def test_the_numbers_are_those_of_numpy() -> None:
    one = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    other = one + 0.1 * torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    error, mean, lowest = compare(one, other)
    a, b = one.reshape(3, -1).double().numpy(), other.reshape(3, -1).double().numpy()
    cosines = [float(x @ y / ((x @ x) ** 0.5 * (y @ y) ** 0.5)) for x, y in zip(a, b, strict=True)]
    assert error == pytest.approx((((a - b) ** 2).sum() / (a**2).sum()) ** 0.5, abs=1e-8)
    assert mean == pytest.approx(sum(cosines) / 3, abs=1e-8) and lowest == pytest.approx(min(cosines), abs=1e-8)
    assert compare(one, one) == (0.0, 1.0, 1.0)


def test_each_way_has_a_line_per_cell(tiny_sd: Path, tiny_shards: Path) -> None:
    pytest.importorskip("torchao")
    lines: list[str] = []
    report = bench_quantized(
        str(tiny_sd), str(tiny_shards), taps=["mid_block", "up_blocks.0"], timesteps=[100], n_images=3, device="cpu",
        progress=lines.append, ways=("int8", "fp8"),
    )  # fmt: skip
    assert [(row.way, row.cell) for row in report.rows] == [
        (way, cell) for way in ("int8", "fp8") for cell in ("mid_block@t100", "up_blocks.0@t100")
    ]
    assert all(0 < row.error < 0.2 and 0.98 < row.lowest <= row.cosine < 1 for row in report.rows)
    assert report.n_images == 3 and report.megabytes["int8"] < report.megabytes["float32"]
    assert len(lines) == 3 and json.loads(report.to_json())["rows"][0]["way"] == "int8"


def test_the_table_is_markdown() -> None:
    row = QuantizedRow(way="int8", cell="mid_block@t1", error=0.01, cosine=0.999, lowest=0.99)
    report = QuantizedReport(machine="m", backbone="b", data="d", n_images=1, megabytes={"int8": 1.5}, rows=(row,))
    assert render(report).splitlines()[2] == "| int8 | 1.50 | `mid_block@t1` | 0.0100 | 0.99900 | 0.99000 |"


def test_unknown_ways_and_no_images_are_refused(tiny_sd: Path, tiny_shards: Path) -> None:
    for changes in ({"ways": ("int4",)}, {"n_images": 0}):
        with pytest.raises(ConfigError, match="bench quantize"):
            bench_quantized(
                str(tiny_sd), str(tiny_shards), **{"taps": ["mid_block"], "timesteps": [1], "n_images": 1, **changes}
            )  # type: ignore[arg-type]
