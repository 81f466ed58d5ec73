"""Gates: least values, and paired intervals above controls."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.gates import Gate, check_gates


def record(low: float, n_groups: int = 40) -> MetricRecord:
    found = {"estimate": 0.1, "low": low, "high": 0.2, "level": 0.95, "n_groups": n_groups}
    return MetricRecord(name="accuracy", value=0.7, split="test", n=90, detail={"differences": {"words": found}})


def reached(gate: Gate, *records: MetricRecord) -> list[bool]:
    return [check.reached for check in check_gates({"accuracy/test": gate}, records)]


def test_a_gate_is_reached_at_its_value_and_missed_without_a_metric():
    assert reached(Gate(at_least=0.7), record(0.1)) == [True]
    assert reached(Gate(at_least=0.71), record(0.1)) == [False]
    assert reached(Gate(at_least=0.0, above=("words",))) == [False, False]
    [check] = check_gates({"accuracy/val": Gate(at_least=0.0)}, [record(0.1)])
    assert check.line == "accuracy/val was not measured, at least 0 is required"


@pytest.mark.parametrize(("low", "expected"), [(0.001, True), (0.0, False), (-0.01, False)])
def test_an_interval_has_to_be_above_0(low, expected):
    assert reached(Gate(above=("words",)), record(low)) == [expected]


def test_an_interval_of_few_families_is_not_enough():
    gates = {"accuracy/test": Gate(above=("words",))}
    assert check_gates(gates, [record(0.1, n_groups=6)])[0].reached
    [check] = check_gates(gates, [record(0.1, n_groups=5)])
    assert not check.reached and "5 families" in check.line and "too few" in check.line


def test_a_missed_difference_is_named_with_its_interval():
    [check] = check_gates({"accuracy/test": Gate(above=("words",))}, [record(-0.02)])
    assert "accuracy/test is 0.7, +0.1 [-0.02, +0.2] (95%, 40 families) relative to words" in check.line


def test_a_control_without_an_interval_is_not_exceeded():
    [check] = check_gates({"accuracy/test": Gate(above=("chance",))}, [record(0.1)])
    assert not check.reached and "without an interval" in check.line and "chance" in check.line


def test_gates_that_require_nothing_are_refused():
    with pytest.raises(ConfigError, match="at_least"):
        Gate()
    with pytest.raises(ConfigError, match="words, words"):
        Gate(above=("words", "words"))
