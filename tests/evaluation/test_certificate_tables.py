"""The tables of certificates are made from the records alone, of several methods side by side."""

import time

import pytest

from diffprobe.analysis.certification.check import Certificate, Check, Rule, Subject
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import StartTime, make_result
from diffprobe.evaluation.certificate_tables import certificate_tables
from diffprobe.evaluation.certify import records


def made(value: float):
    null = {"mean": 0.0, "p": 0.01, "smallest_p": 0.005, "quantile_95": 0.4, "n_permutations": 200.0}

    def checks(value: float) -> tuple[Check, ...]:
        rule = Rule(keys="least_spearman, alpha", low=0.9, alpha=0.05)
        return (
            Check(name="spearman", value=value, interval=(0.8, 0.99), n=24, what="w", rule=rule, null=null),
            Check(name="twin", target="a|b", value=-0.5, n=24, what="only reported"),
        )

    found = Certificate(
        kind="audit", method=Subject(name="method", checks=checks(value)),
        baselines=(Subject(name="words", why="w", checks=checks(0.1)),),
    )  # fmt: skip
    return make_result(
        run="x", experiment="x", kind="certificate", config={}, seeds={}, metrics=records(found),
        started_at=StartTime(time.time(), 0.0),
    )  # fmt: skip


def test_certificates_stand_side_by_side() -> None:
    lines = certificate_tables([("good", made(0.95)), ("bad", made(0.5))]).splitlines()
    for line in (
        "| good | pass | 1 of 1 | words 0 of 1 |",
        "| bad | fail | 0 of 1 | words 0 of 1 |",
        "| good | spearman | 0.950 | 0.800 to 0.990 | 0.01 (0.005) | at least 0.9, p at most 0.05 | pass | 24 |",
        "| bad | twin: a&#124;b | -0.500 |  |  |  |  | 24 |",
    ):
        assert line in lines, lines
    assert sum(line.startswith("| words") for line in lines) == 0


def test_two_certificates_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="good, good"):
        certificate_tables([("good", made(0.95)), ("good", made(0.5))])
