"""The plan of an extraction, on numbers computed by hand."""

import json
from dataclasses import replace

import pytest

from diffprobe.benchmarks.scaling_plan import (
    CHECKSUM,
    DECODE,
    GPU,
    STORAGE_READ,
    STORAGE_WRITE,
    WRITE,
    Rates,
    Work,
    plan_extraction,
    read_rates,
    render_plan,
)
from diffprobe.core.errors import ConfigError, SchemaError

RATES = Rates(read_mb_s=500.0, checksum_mb_s=1000.0, decode_images_s=250.0, write_mb_s=200.0)
WORK = Work(
    gpu_images_s=50.0, gpus=10, images=1_000_000, image_bytes=1e5, feature_bytes=1e4,
    storage_read_mb_s=1e4, storage_write_mb_s=1e3,
)  # fmt: skip


def test_a_plan_that_the_gpus_limit() -> None:
    """Of an image: 20 ms network, 0.05 ms writing, 0.1 ms checksum; beside it 0.2 ms reading and 4 ms decoding."""
    plan = plan_extraction(RATES, WORK)
    assert plan.limit == GPU
    assert plan.images_s == pytest.approx(10 / 0.02015)
    assert plan.capacity == pytest.approx(
        {
            GPU: 500, WRITE: 10 / 0.00005, CHECKSUM: 10 / 0.0001, DECODE: 10 / 0.0042,
            STORAGE_READ: 1e4 / 0.2, STORAGE_WRITE: 1e3 / 0.01,
        }
    )  # fmt: skip
    assert plan.hours == pytest.approx(1e6 * 0.002015 / 3600)
    assert plan.gpu_hours == pytest.approx(10 * plan.hours) and plan.core_hours == pytest.approx(20 * plan.hours)
    assert plan.store_tb == pytest.approx(0.01) and plan.read_tb == pytest.approx(0.2)
    assert plan.busy[GPU] == pytest.approx(0.02 / 0.02015) and max(plan.busy.values()) <= 1


@pytest.mark.parametrize(
    ("rates", "work", "limit", "images_s"),
    [
        ({"decode_images_s": 20.0}, {}, DECODE, 10 / 0.0502),
        ({}, {"storage_read_mb_s": 10.0}, STORAGE_READ, 50.0),
        ({}, {"storage_read_mb_s": 10.0, "verify": False}, STORAGE_READ, 100.0),
        ({}, {"storage_write_mb_s": 1.0}, STORAGE_WRITE, 100.0),
        ({"write_mb_s": 0.2}, {}, WRITE, 10 / 0.0701),
        ({"checksum_mb_s": 1.0}, {}, CHECKSUM, 10 / 0.12005),
        ({"checksum_mb_s": 1.0}, {"verify": False}, GPU, 10 / 0.02005),
    ],
)
def test_each_resource_can_be_the_limit(rates: dict, work: dict, limit: str, images_s: float) -> None:
    plan = plan_extraction(replace(RATES, **rates), replace(WORK, **work))
    assert plan.limit == limit and plan.images_s == pytest.approx(images_s)
    assert plan.images_s <= min(plan.capacity.values())


def test_twice_the_gpus_halve_the_time_until_the_storage_is_full() -> None:
    one, two = (plan_extraction(RATES, replace(WORK, gpus=n)) for n in (10, 20))
    assert two.hours == pytest.approx(one.hours / 2) and two.gpu_hours == pytest.approx(one.gpu_hours)
    many = plan_extraction(RATES, replace(WORK, gpus=100_000))
    assert many.limit == STORAGE_READ and many.images_s == pytest.approx(5e4)


@pytest.mark.parametrize(
    ("part", "changes"),
    [("work", {"gpus": 0}), ("work", {"image_bytes": -1.0}), ("rates", {"read_mb_s": float("inf")}),
     ("work", {"gpu_images_s": float("nan")})],
)  # fmt: skip
def test_what_is_not_above_zero_is_refused(part: str, changes: dict) -> None:
    rates, work = (replace(RATES, **changes), WORK) if part == "rates" else (RATES, replace(WORK, **changes))
    with pytest.raises(ConfigError, match=next(iter(changes))):
        plan_extraction(rates, work)


def test_the_table_names_the_limit_and_the_costs() -> None:
    text = render_plan(WORK, plan_extraction(RATES, WORK))
    assert text.startswith("1,000,000 images on 10 GPUs: limited by the GPUs.")
    assert "| the GPUs | 500 | 99% |" in text and "| 496 | 0.6 | 6 | 11 | 0.01 | 0.2 |" in text


def test_rates_are_read_from_the_report_and_others_are_refused(tmp_path) -> None:
    file = tmp_path / "rates.json"
    found = {"read_mb_s": 500, "checksum_mb_s": 1000.0, "decode_images_s": 250.0, "write_mb_s": 200.0}
    file.write_text(json.dumps({"rates": found}))
    assert read_rates(file) == RATES
    for wrong, error in (
        ({}, SchemaError),
        ({**found, "write_mb_s": "fast"}, SchemaError),
        ({**found, "write_mb_s": 0}, ConfigError),
    ):
        file.write_text(json.dumps({"rates": wrong}))
        with pytest.raises(error, match="mb_s"):
            read_rates(file)
