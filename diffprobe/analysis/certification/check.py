"""What a certificate consists of: checks with interval, null and threshold, of the method and of its baselines."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffprobe.core.errors import NonFinite, RunFailed


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a number has to be for its check to pass."""

    keys: str
    """The keys of the configuration that give the thresholds, for example "least_agreement"."""
    low: float | None = None
    """Least allowed value; None for none."""
    high: float | None = None
    """Largest allowed value; None for none."""
    alpha: float | None = None
    """Largest p of the null distribution; None if p does not decide."""
    interval_above: float | None = None
    """The interval has to lie above this; None if it does not decide."""

    def describe(self) -> str:
        """Return the rule as text.

        >>> Rule(keys="least_slope, most_slope", low=0.8, high=1.2).describe()
        '0.8 to 1.2'
        >>> Rule(keys="least_agreement", low=0.8, alpha=0.05).describe()
        'at least 0.8, p at most 0.05'
        """
        if self.low is not None and self.high is not None:
            parts = [f"{self.low:g} to {self.high:g}"]
        else:
            parts = [f"at least {self.low:g}"] if self.low is not None else []
            parts += [f"at most {self.high:g}"] if self.high is not None else []
        parts += [f"interval above {self.interval_above:g}"] if self.interval_above is not None else []
        return ", ".join([*parts, *([f"p at most {self.alpha:g}"] if self.alpha is not None else [])])


@dataclass(frozen=True, kw_only=True)
class Check:
    """One number of a method, with its interval, its null distribution and the rule that decides about it."""

    name: str
    """Name of the measure, for example "agreement"."""
    value: float
    """The number, finite."""
    n: int
    """Number of units behind it: pairs, roles, samples."""
    what: str
    """What the number is, in one sentence."""
    rule: Rule | None = None
    """What it has to be; None for a number that is only reported."""
    interval: tuple[float, float] | None = None
    """Both ends of its interval, at the level of the configuration."""
    null: Mapping[str, float] | None = None
    """The place of the number in its null distribution, as `Null.describe` returns it."""
    target: str | None = None
    """The factor or value it is for, if a certificate has several."""

    def __post_init__(self) -> None:
        numbers = (self.value, *(self.interval or ()))
        if not all(abs(number) < float("inf") for number in numbers):
            raise NonFinite(f"check '{self.name}': {numbers} has a number that is not finite.")

    @property
    def passed(self) -> bool | None:
        """Whether the rule holds; None without a rule."""
        rule = self.rule
        if rule is None:
            return None
        inside = (rule.low is None or self.value >= rule.low) and (rule.high is None or self.value <= rule.high)
        if rule.interval_above is not None:
            inside = inside and self.interval is not None and self.interval[0] > rule.interval_above
        return inside and (rule.alpha is None or (self.null is not None and self.null["p"] <= rule.alpha))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The method, or a baseline that the same checks have to refuse."""

    name: str
    """For example "method" or "random direction"."""
    checks: tuple[Check, ...]
    """Its checks."""
    why: str = ""
    """Of a baseline: what it is and why it is wrong."""

    @property
    def passed(self) -> bool:
        """Whether all checks with a rule passed. Raises: RunFailed if there is none."""
        verdicts = [check.passed for check in self.checks if check.passed is not None]
        if not verdicts:
            raise RunFailed(f"certificate: no check of '{self.name}' has a rule.")
        return all(verdicts)


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """The checks of a method and of its baselines, and what could not be measured."""

    kind: str
    """Kind of method."""
    method: Subject
    """The certified method."""
    baselines: tuple[Subject, ...]
    """Wrong methods, which have to fail."""
    not_measured: Mapping[str, str] = field(default_factory=dict)
    """Measure -> the reason why it was not measured."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Name -> value: world, cell, samples."""
    seeds: Mapping[str, int] = field(default_factory=dict)
    """Name -> seed."""

    @property
    def passing_baselines(self) -> tuple[str, ...]:
        """Names of the baselines that passed: with one of them the checks cannot tell right from wrong."""
        return tuple(baseline.name for baseline in self.baselines if baseline.passed)

    @property
    def verdict(self) -> str:
        """Return "pass", "fail", or "not valid" if a baseline passed."""
        if self.passing_baselines:
            return "not valid"
        return "pass" if self.method.passed else "fail"
