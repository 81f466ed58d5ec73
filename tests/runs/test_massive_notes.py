"""Results on live features with treated massive channels list them; others do not."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from diffprobe.backbones.massive import MassiveChannels
from diffprobe.config.schema import RunConfig
from diffprobe.core.result import MetricRecord, read_result
from diffprobe.features.live import LiveFeatures
from diffprobe.features.massive_channels import to_recorded
from diffprobe.runs.massive_notes import DETAIL, list_massive
from diffprobe.runs.train import make_source, train

CELLS = ("mid_block@t20:empty:mean", "mid_block@t40:empty:mean")


def record(cell: str | None) -> MetricRecord:
    return MetricRecord(name="accuracy", value=0.5, split="test", n=4, cell=cell, target="label", detail={"n": 1})


def source_with(found: Any) -> Any:
    source = LiveFeatures.__new__(LiveFeatures)
    source.request = SimpleNamespace(massive=found)  # type: ignore[assignment]
    return source


def test_a_record_lists_the_channels_of_its_cell() -> None:
    found = {CELLS[0]: MassiveChannels({3: 25.0}, 2.0), CELLS[1]: MassiveChannels({}, 1.0)}
    given = [record(CELLS[0]), record(CELLS[1]), record(None)]
    one, other, both = list_massive(given, source_with((found, ["a"])))
    assert one.detail == {"n": 1, DETAIL: {CELLS[0]: {"channels": {"3": 25.0}, "limit": 2.0}}}
    assert other.detail[DETAIL] == {CELLS[1]: {"channels": {}, "limit": 1.0}}
    assert both.detail[DETAIL] == {**one.detail[DETAIL], **other.detail[DETAIL]}
    assert given[0].detail == {"n": 1}
    assert list_massive(given, source_with(None)) == given
    stored: Any = SimpleNamespace(request=SimpleNamespace(massive=(found, ["a"])))
    assert list_massive(given, stored) == given


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
