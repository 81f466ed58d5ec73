"""Fields of results by name."""

import dataclasses

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.report.query import cells_of, config_value, field_of, matches, parse_cell, parse_condition


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metric", "accuracy"), ("split", "test"), ("target", "group"), ("probe", "linear"), ("tap", "mid_block"),
        ("timestep", 25), ("condition", "empty"), ("pool", "mean"), ("kind", "classifier"), ("run", "bank-0"),
        ("experiment", "toy/classifier"), ("config.backbone.path", "toy"), ("config.data.limit", None),
    ],
)  # fmt: skip
def test_each_field_has_its_value(results, name, value):
    run = next(run for run in results if run.run == "bank-0")
    assert field_of(run, run.metrics[0], name) == value


def test_an_unknown_field_is_refused_with_the_nearest(results):
    with pytest.raises(ConfigError, match="nearest: timestep"):
        field_of(results[0], results[0].metrics[0], "timesteps")
    with pytest.raises(ConfigError, match="nearest: target"):
        parse_condition("tarjet=group")


def test_conditions(results):
    run = results[0]
    record = run.metrics[0]
    assert matches(run, record, {"experiment": "toy", "target": ["label", "group"]})
    assert matches(run, record, {"experiment": "toy/classifier"})
    assert not matches(run, record, {"experiment": "toy/class"})  # folders, not prefixes
    assert not matches(run, record, {"target": "label"})
    assert not matches(run, record, {"config.seed": False})  # 0 is not false


def test_conditions_are_read_as_yaml():
    assert parse_condition("timestep=100") == ("timestep", 100)
    assert parse_condition("config.data.limit=null") == ("config.data.limit", None)
    assert parse_condition("tap=[a, b]") == ("tap", ["a", "b"])
    with pytest.raises(ConfigError, match="expected: FIELD=VALUE"):
        parse_condition("timestep")


@pytest.mark.parametrize("value", ["[25", "{a", "'a", "2020-13-45"])
def test_a_value_that_is_not_yaml_is_reported(value):
    with pytest.raises(ConfigError, match="YAML") as raised:
        parse_condition(f"timestep={value}")
    assert f"'timestep={value}'" in str(raised.value) and "timestep=[1,2]" in raised.value.fix


@pytest.mark.parametrize("value", ["[" * 5000, "&a [*a]", ".nan", "9" * 5000], ids=lambda value: value[:10])
def test_a_value_that_has_no_end_is_reported(value):
    with pytest.raises(ConfigError, match="^invalid filter 'timestep="):
        parse_condition(f"timestep={value}")


def test_a_cell_with_a_timestep_of_thousands_of_digits_is_refused():
    with pytest.raises(ConfigError, match="is not a cell"):
        parse_cell(f"mid_block@t{'9' * 5000}")


def test_config_value_stops_at_what_is_no_block():
    assert config_value({"a": {"b": 1}}, "a.b.c") is None


def test_a_head_on_several_cells_is_found_by_all_of_them(results):
    run = next(run for run in results if run.run == "bank-0")
    cells = ["mid_block@t25:empty:mean", "mid_block@t200:empty:mean"]
    joint = dataclasses.replace(run.metrics[0], cell=None, detail={"cells": cells})
    assert cells_of(joint) == tuple(cells) and field_of(run, joint, "cell") == " + ".join(cells)
    assert [field_of(run, joint, name) for name in ("tap", "timestep", "pool")] == ["mid_block", "25 + 200", "mean"]
    assert matches(run, joint, {"tap": "mid_block"}) and not matches(run, joint, {"timestep": 25})
    for detail in ({}, {"cells": 3}):  # nothing, or a number of cells
        none = dataclasses.replace(joint, detail=detail)
        assert cells_of(none) == () and field_of(run, none, "cell") is None and field_of(run, none, "tap") is None
