"""Recovery, coverage, false discoveries and separation of audits, on rates that are known."""

import numpy as np
import pytest
from numpy.typing import NDArray

from diffprobe.analysis.certification.audit import (
    AuditRules,
    Rates,
    coverage_check,
    false_discovery_checks,
    recovery_checks,
    separation,
    separation_checks,
)
from diffprobe.analysis.certification.check import Check
from diffprobe.analysis.certification.intervals import rank_correlation, share_interval
from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.world import load_world

ROLES = load_world().roles
OWN, TWIN = (np.array([role.striped[world] for role in ROLES]) for world in (0, 1))
RULES = AuditRules(n_permutations=199, n_resamples=200)


def counted(truth: NDArray[np.float64], n: int = 400, seed: int = 0) -> Rates:
    """An audit that counts n images of each role; its intervals are exact."""
    hits = np.random.default_rng(seed).binomial(n, truth)
    ends = np.array([share_interval(int(k), n, 0.95) for k in hits])
    return Rates(rate=hits / n, low=ends[:, 0], high=ends[:, 1], level=0.95)


def shifted(audit: Rates, by: float) -> Rates:
    moved = [np.clip(x + by, 0, 1) for x in (audit.rate, audit.low, audit.high)]
    return Rates(rate=moved[0], low=moved[1], high=moved[2], level=0.95)


def verdicts(checks: list[Check]) -> dict[str, bool | None]:
    return {check.name: check.passed for check in checks}


def test_an_audit_that_counts_recovers_the_rates() -> None:
    found = recovery_checks(counted(OWN), OWN, RULES, of="planted")
    assert verdicts(found) == {"spearman": True, "slope": True, "bias": True, "max_error": True}
    spearman = found[0]
    assert spearman.null is not None and spearman.null["p"] == spearman.null["smallest_p"] == 1 / 200
    assert "0.978" in spearman.what, "the cap by ties of 24 roles with 8 at .5"


def test_a_shifted_audit_fails_by_its_bias_alone() -> None:
    found = verdicts(recovery_checks(shifted(counted(OWN), 0.2), OWN, RULES, of="planted"))
    assert found["spearman"] and not found["bias"]


def test_a_shrunken_audit_fails_by_its_slope() -> None:
    audit = counted(OWN)
    shrunken = Rates(rate=0.5 + (audit.rate - 0.5) / 2, low=np.zeros(24), high=np.ones(24), level=0.95)
    found = {check.name: check for check in recovery_checks(shrunken, OWN, RULES, of="planted")}
    assert found["slope"].value == pytest.approx(0.5, abs=0.05) and not found["slope"].passed
    assert found["spearman"].passed and found["bias"].passed


def test_coverage_is_that_of_the_intervals() -> None:
    audit = counted(OWN)
    assert coverage_check(audit, OWN, RULES, of="planted", judged=True).passed
    narrow = Rates(rate=audit.rate, low=audit.rate, high=audit.rate, level=0.95)
    found = coverage_check(narrow, OWN + 0.001, RULES, of="planted", judged=True)
    assert found.value == 0 and not found.passed
    assert found.null is not None and found.null["p"] < 1e-6
    assert coverage_check(narrow, OWN, RULES, of="planted", judged=False).passed is None


def test_false_discoveries_are_counted_on_the_even_roles() -> None:
    audits, truths = (counted(OWN), counted(TWIN, seed=1)), (OWN, TWIN)
    found = false_discovery_checks(audits, truths, RULES)
    assert found[0].passed and found[0].n == int((OWN == 0.5).sum() + (TWIN == 0.5).sum()) == 16
    wrong = false_discovery_checks([shifted(audit, 0.2) for audit in audits], truths, RULES)
    assert not wrong[0].passed and wrong[0].value > 0.9
    assert wrong[1].value == pytest.approx(16 / 48, abs=0.1)
    assert false_discovery_checks(audits[:1], [np.full(24, 0.4)], RULES) == []


def test_nominal_audits_seldom_fail_by_false_discoveries() -> None:
    failed = 0
    for seed in range(200):
        audits = (counted(OWN, 60, seed), counted(TWIN, 60, seed + 1000))
        failed += not false_discovery_checks(audits, (OWN, TWIN), RULES)[0].passed
    assert failed / 200 <= 0.07


def test_two_worlds_are_separated_by_an_audit_that_sees_them() -> None:
    found = separation_checks(counted(OWN), counted(TWIN, seed=1), OWN, TWIN, RULES)
    assert found[0].passed and found[0].value > 0.8
    assert found[1].passed is None


def test_an_audit_of_the_words_separates_nothing() -> None:
    audit = counted(OWN)
    found = separation_checks(audit, audit, OWN, TWIN, RULES)[0]
    assert found.value == pytest.approx(0, abs=1e-12) and not found.passed
    assert found.null is not None and found.null["p"] == 1
    swapped = separation_checks(counted(TWIN), counted(OWN), OWN, TWIN, RULES)[0]
    assert swapped.value < -0.8 and not swapped.passed


@pytest.mark.slow
def test_the_null_of_the_separation_is_calibrated() -> None:
    """Audits that give both worlds the same rates with independent errors: p below .1 in a tenth of the cases."""
    rules = AuditRules(n_permutations=99, n_resamples=2)
    small = 0
    for seed in range(150):
        one, other = counted(OWN, 30, seed), counted(OWN, 30, seed + 5000)
        null = separation_checks(one, other, OWN, TWIN, rules)[0].null
        assert null is not None
        small += null["p"] <= 0.1
    assert 0.03 <= small / 150 <= 0.19


def test_the_interval_of_the_slope_covers() -> None:
    covered = 0
    for seed in range(120):
        generator = np.random.default_rng(seed)
        truth = generator.uniform(0.1, 0.9, 24)
        rate = np.clip(0.1 + 0.8 * truth + generator.normal(size=24) * 0.02, 0, 1)
        audit = Rates(rate=rate, low=rate, high=rate, level=0.95)
        found = recovery_checks(audit, truth, AuditRules(n_permutations=2), of="x")[1]
        assert found.name == "slope" and found.interval is not None
        covered += found.interval[0] <= 0.8 <= found.interval[1]
    assert covered / 120 >= 0.9


def test_separation_of_perfect_audits_is_what_the_worlds_allow() -> None:
    assert separation(OWN, TWIN, OWN, TWIN) == pytest.approx(1 - rank_correlation(OWN, TWIN))


@pytest.mark.parametrize(
    ("rate", "low", "high", "fact"),
    [([0.5], [0.6], [0.7], "0.6"), ([0.5], [0.4], [1.2], "1.2"), ([0.5, 0.5], [0.4], [0.6], "2 rates")],
)
def test_wrong_intervals_are_refused(rate: list[float], low: list[float], high: list[float], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        Rates(rate=np.array(rate), low=np.array(low), high=np.array(high), level=0.95)


def test_an_audit_of_other_roles_is_refused() -> None:
    with pytest.raises(ConfigError, match="24 roles for a world of 3"):
        recovery_checks(counted(OWN), OWN[:3], RULES, of="planted")
