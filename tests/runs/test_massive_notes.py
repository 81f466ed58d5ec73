"""Results on features with treated massive channels list them; a run is read with its own channels only."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffprobe.backbones.massive import MassiveChannels
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, StoreMismatch
from diffprobe.core.result import STORE, MetricRecord, RunResult, StartTime, make_result, read_result
from diffprobe.features.live import LiveFeatures
from diffprobe.features.massive_channels import to_recorded
from diffprobe.features.stored import StoredFeatures
from diffprobe.runs.massive_notes import (
    DETAIL,
    channels_key,
    list_massive,
    refuse_treated_run,
    require_same_channels,
    treatment_of,
    with_channels,
    with_channels_of,
)
from diffprobe.runs.train import make_source, train

CELLS = ("mid_block@t20:empty:mean", "mid_block@t40:empty:mean")


def record(cell: str | None) -> MetricRecord:
    return MetricRecord(name="accuracy", value=0.5, split="test", n=4, cell=cell, target="label", detail={"n": 1})


def source_with(found: Any) -> Any:
    source = LiveFeatures.__new__(LiveFeatures)
    source.request = SimpleNamespace(massive=found)  # type: ignore[assignment]
    return source


def stored_with(recorded: dict[str, Any]) -> Any:
    source = StoredFeatures.__new__(StoredFeatures)
    vars(source).update(store=SimpleNamespace(manifest=SimpleNamespace(recorded=recorded)), widths=dict.fromkeys(CELLS))
    return source


def result_of(
    treatment: str = "clip", found: MassiveChannels | None = None, *, control: str = "none", store: str = "s"
) -> RunResult:
    records = with_channels([record(CELLS[0])], {} if found is None else {CELLS[0]: found})
    return make_result(
        run="r", experiment="", kind="direction", seeds={}, metrics=records, started_at=StartTime.now(),
        config={"control": control, "features": {"massive": {"treatment": treatment}}}, artifacts={STORE: store},
    )  # fmt: skip


def manifest_of(treatment: str, found: MassiveChannels) -> Any:
    recorded = {"massive": to_recorded({CELLS[0]: found}, ["a"])}
    data = {} if treatment == "keep" else {"massive": {"treatment": treatment}}
    return SimpleNamespace(digest="other", data=data, recorded=recorded if data else {})


@pytest.mark.parametrize(
    ("trained", "channels", "read", "there", "fits"),
    [
        ("keep", None, "keep", {}, True),
        ("clip", {3: 25.0}, "clip", {3: 27.0}, True),
        ("clip", {3: 25.0}, "clip", {4: 25.0}, False),
        ("clip", {3: 25.0}, "drop", {3: 25.0}, False),
        ("clip", {3: 25.0}, "keep", {}, False),
        ("keep", None, "clip", {3: 25.0}, False),
        ("clip", None, "clip", {3: 25.0}, False),
    ],
)
def test_channels_and_treatment_have_to_be_those_of_the_run(
    trained: str, channels: dict[int, float] | None, read: str, there: dict[int, float], fits: bool
) -> None:
    found = None if channels is None else MassiveChannels(channels, 2.0)
    run, manifest = result_of(trained, found), manifest_of(read, MassiveChannels(there, 2.0 + 1e-6))
    if fits:
        require_same_channels(run, manifest, CELLS[0], Path("store"))
        return
    with pytest.raises(StoreMismatch, match=f"{trained}(.|\n)*{read}"):
        require_same_channels(run, manifest, CELLS[0], Path("store"))


def test_a_limit_counts_where_channels_are_clipped_and_the_own_store_fits_always() -> None:
    own, other = MassiveChannels({3: 25.0}, 2.0), MassiveChannels({3: 25.0}, 2.1)
    require_same_channels(result_of("drop", own), manifest_of("drop", other), CELLS[0], Path("store"))
    with pytest.raises(StoreMismatch, match="limit 2;(.|\n)*limit 2.1"):
        require_same_channels(result_of("clip", own), manifest_of("clip", other), CELLS[0], Path("store"))
    require_same_channels(result_of("clip", store="other"), manifest_of("clip", other), CELLS[0], Path("store"))


def test_the_treatment_of_a_run_is_that_of_what_it_reads() -> None:
    assert treatment_of(result_of("drop")) == "drop"
    assert treatment_of(result_of("drop", control="random_weights")) == "drop"
    assert treatment_of(result_of("drop", control="raw_pixels")) == "keep"
    refuse_treated_run(result_of("drop", control="vae_latents"), "this")
    refuse_treated_run(None, "this")
    with pytest.raises(ConfigError, match="this(.|\n)*treatment=drop"):
        refuse_treated_run(result_of("drop"), "this")
    found = MassiveChannels({3: 25.0}, 2.0)
    assert channels_key(result_of("drop", found)) == channels_key(result_of("drop", MassiveChannels({3: 1.0}, 5.0)))
    assert channels_key(result_of("drop", found)) != channels_key(result_of("drop", MassiveChannels({4: 25.0}, 2.0)))
    assert with_channels_of([record(None)], result_of("drop", found))[0].detail[DETAIL] == {CELLS[0]: found.to_json()}


def test_a_record_lists_the_channels_of_its_cell() -> None:
    found = {CELLS[0]: MassiveChannels({3: 25.0}, 2.0), CELLS[1]: MassiveChannels({}, 1.0)}
    given = [record(CELLS[0]), record(CELLS[1]), record(None)]
    one, other, both = list_massive(given, source_with((found, ["a"])))
    assert one.detail == {"n": 1, DETAIL: {CELLS[0]: {"channels": {"3": 25.0}, "limit": 2.0}}}
    assert other.detail[DETAIL] == {CELLS[1]: {"channels": {}, "limit": 1.0}}
    assert both.detail[DETAIL] == {**one.detail[DETAIL], **other.detail[DETAIL]}
    assert given[0].detail == {"n": 1}
    assert list_massive(given, source_with(None)) == given
    assert list_massive(given, stored_with({})) == given
    recorded = {"massive": to_recorded({**found, "other": MassiveChannels({}, 1.0)}, ["a"])}
    assert list_massive(given, stored_with(recorded)) == [one, other, both]


@pytest.mark.slow
def test_the_result_of_a_live_run_lists_what_was_found_and_kept_features_nothing(run: Callable[..., RunConfig]) -> None:
    settings = ["probe=linear", "probe.targets=[style]", "features.source=live", "trainer.max_epochs=1"]
    treated = ["features.massive.treatment=clip", "features.massive.ratio=2", "features.massive.images=4"]
    config = run(*settings, *treated)
    result = read_result(train(config))
    source = make_source(config)
    source.request.load_extractor(images=True)
    assert source.request.massive is not None
    taps = to_recorded(*source.request.massive)["taps"]
    for one in result.metrics:
        assert one.cell is not None
        tap = one.cell.partition("@")[0]
        assert one.detail[DETAIL] == {one.cell: taps[tap][one.cell]}
    assert any(one["channels"] for cells in taps.values() for one in cells.values())
    plain = read_result(train(run(*settings)))
    assert result.metrics and not any(DETAIL in one.detail for one in plain.metrics)
