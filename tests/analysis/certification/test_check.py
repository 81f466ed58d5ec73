"""Checks, subjects and verdicts."""

import pytest

from diffprobe.analysis.certification.check import Certificate, Check, Rule, Subject
from diffprobe.core.errors import NonFinite, RunFailed


def check(value: float, *, p: float | None = None, alpha: float | None = None) -> Check:
    null = None if p is None else {"p": p}
    return Check(name="a", value=value, n=3, what="w", rule=Rule(keys="k", low=0.5, high=1.0, alpha=alpha), null=null)


def test_a_rule_is_a_range_and_a_p() -> None:
    assert check(0.5).passed and check(1.0).passed
    assert not check(0.49).passed and not check(1.01).passed
    assert check(0.7, p=0.05, alpha=0.05).passed
    assert not check(0.7, p=0.06, alpha=0.05).passed
    assert not check(0.7, alpha=0.05).passed, "a null that is missing is not passed"
    assert Check(name="a", value=9, n=1, what="w").passed is None


def test_a_rule_can_ask_for_an_interval() -> None:
    rule = Rule(keys="k", low=0.1, interval_above=0.0)
    assert rule.describe() == "at least 0.1, interval above 0"
    for interval, passed in (((0.1, 0.3), True), ((-0.1, 0.5), False), (None, False)):
        assert Check(name="a", value=0.2, n=1, what="w", rule=rule, interval=interval).passed is passed


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(NonFinite, match="nan"):
        check(float("nan"))


def test_a_subject_without_a_judged_check_has_no_verdict() -> None:
    with pytest.raises(RunFailed, match="'x'"):
        _ = Subject(name="x", checks=(Check(name="a", value=1, n=1, what="w"),)).passed


@pytest.mark.parametrize(
    ("method", "baseline", "verdict"), [(1, 0, "pass"), (0, 0, "fail"), (1, 1, "not valid"), (0, 1, "not valid")]
)
def test_the_verdict_needs_baselines_that_fail(method: float, baseline: float, verdict: str) -> None:
    subject = Subject(name="method", checks=(check(method), check(1)))
    wrong = Subject(name="wrong", checks=(check(baseline),), why="w")
    assert Certificate(kind="k", method=subject, baselines=(wrong,)).verdict == verdict
