"""Certify an audit: rates of an attribute per role, of a model trained on one world and of its twin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.audit import (
    AuditRules,
    Rates,
    coverage_check,
    false_discovery_checks,
    recovery_checks,
    separation_checks,
)
from diffprobe.analysis.certification.check import Certificate, Check, Subject
from diffprobe.config.parse import parse
from diffprobe.config.validators import at_least
from diffprobe.core.audit_file import FORMAT, read_audit_tree
from diffprobe.core.errors import ConfigError, DiffprobeError, SchemaError
from diffprobe.core.json_file import expect, read_json_object
from diffprobe.evaluation.certificates.method import Method, call, load_callable
from diffprobe.evaluation.certificates.settings import WorldSettings, in_unit_range

HELP = "rates of striped clothes per role with intervals: a JSON file of the format 'diffprobe.audit/1'"
SIGNATURE = "(model: str, roles: list of str) -> {role: (rate, low, high)}, the ends of 95 % intervals"
CALLABLE_LEVEL = 0.95
"""Nominal coverage of the intervals that a callable returns."""


class AuditMethod(Protocol):
    """A callable that reads a rate per role from a model."""

    def __call__(self, model: str, roles: Sequence[str]) -> Mapping[str, tuple[float, float, float]]:
        """Return for each role the estimate of P(striped | role), and both ends of its 95 % interval, 0..1.

        Args:
            model: the text of the setting `model` or `twin_model`, for example a folder.
            roles: names of the roles.
        """


@dataclass(frozen=True, kw_only=True)
class Config(WorldSettings, AuditRules):
    """Settings of certificates of audits; the thresholds are those of the checks themselves."""

    twin_world: str = "permuted"
    """World of the twin."""
    twin: str | None = None
    """Audit file of the twin model; the certified file is that of the model of `world`."""
    model: str | None = None
    """What a callable audits as the model of `world`: a folder, or whatever it understands."""
    twin_model: str | None = None
    """What a callable audits as the model of `twin_world`."""
    generated: str | None = None
    """Audit file with the rates that the model of `world` generates, as counted by another way. Coverage is then
    measured against these, since an audit cannot know an error of the model."""
    twin_generated: str | None = None
    """The same of the twin."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(19, n_permutations=self.n_permutations)
        in_unit_range(
            least_spearman=self.least_spearman, most_bias=self.most_bias, most_error=self.most_error,
            least_coverage=self.least_coverage,
        )  # fmt: skip
        at_least(0, least_slope=self.least_slope, most_slope=self.most_slope, least_separation=self.least_separation)
        if self.least_slope > self.most_slope:
            raise ConfigError(f"least_slope={self.least_slope} exceeds most_slope={self.most_slope}.")
        if self.world == self.twin_world:
            raise ConfigError(f"world and twin_world are both '{self.world}': the rates must differ.")


def accepts(path: Path) -> bool:
    """Return whether a file is an audit."""
    try:
        return path.is_file() and read_json_object(path).get("format") == FORMAT
    except DiffprobeError:
        return False


@dataclass(frozen=True, kw_only=True)
class _Rate:
    """One role of an audit file."""

    rate: float
    low: float
    high: float


def certify(method: Method, config: Config) -> Certificate:
    """Measure an audit of both worlds, and an audit that reads only the words.

    Raises: ConfigError without a twin, for rates out of range or roles that are missing; SchemaError for a file of
        another format; the errors of the callable.
    """
    spec = config.load_world()
    roles = list(spec.names("role"))
    worlds = (config.world, config.twin_world)
    truths = [np.array([role.striped[spec.world(world)] for role in spec.roles]) for world in worlds]
    own, twin = _from_files(method, config, roles) if method.path is not None else _from_calls(method, config, roles)
    given = (config.generated, config.twin_generated)
    generated = [None if path is None else read_audit(Path(path), roles).rate for path in given]
    words = "the answers for the first world, given again for its twin: what an audit gives that reads only the words"
    not_measured = {
        f"coverage of rates generated in {world}": "no file of generated rates is given"
        for world, rates in zip(worlds, generated, strict=True) if rates is None
    }  # fmt: skip
    return Certificate(
        kind="audit",
        method=Subject(name="method", checks=_checks((own, twin), truths, generated, worlds, config)),
        baselines=(
            Subject(name="words only", why=words, checks=_checks((own, own), truths, generated, worlds, config)),
        ),
        not_measured=not_measured,
        facts={"worlds": " and ".join(worlds), "world file": spec.digest[:12], "roles": str(len(roles))},
        seeds={"permutation": config.seed, "bootstrap": config.seed},
    )  # fmt: skip


def _checks(
    audits: tuple[Rates, Rates], truths: Sequence[NDArray[np.float64]],
    generated: "Sequence[NDArray[np.float64] | None]", worlds: tuple[str, str], rules: AuditRules,
) -> tuple[Check, ...]:  # fmt: skip
    found: list[Check] = []
    for audit, truth, made, world in zip(audits, truths, generated, worlds, strict=True):
        found += recovery_checks(audit, truth, rules, of=world)
        found.append(coverage_check(audit, truth, rules, of=world, judged=made is None))
        if made is not None:
            found.append(coverage_check(audit, made, rules, of=f"{world}, generated", judged=True))
    found += false_discovery_checks(audits, truths, rules)
    found += separation_checks(*audits, truths[0], truths[1], rules)
    return tuple(found)


def _from_files(method: Method, config: Config, roles: Sequence[str]) -> tuple[Rates, Rates]:
    assert method.path is not None
    if config.twin is None:
        raise ConfigError(
            "an audit is certified on two models that differ only in the planted rates; the twin's is not given.",
            "one audit alone looks the same as an audit that reads only the names of the roles",
            fix="twin=FILE, the same audit of the twin model",
        )
    return read_audit(method.path, roles), read_audit(Path(config.twin), roles)


def _from_calls(method: Method, config: Config, roles: Sequence[str]) -> tuple[Rates, Rates]:
    if config.model is None or config.twin_model is None:
        raise ConfigError("a callable audit needs both models.", fix="model=FOLDER twin_model=FOLDER")
    audit = load_callable(method.name, SIGNATURE, 2)
    found = []
    for model in (config.model, config.twin_model):
        answer = call(audit, method.name, SIGNATURE, model, list(roles))
        found.append(_called(answer, method.name, roles))
    return found[0], found[1]


def _called(answer: object, name: str, roles: Sequence[str]) -> Rates:
    if not isinstance(answer, Mapping):
        raise ConfigError(f"'{name}' returned {type(answer).__name__}.", f"needed: {SIGNATURE}")
    try:
        tree = {role: dict(zip(("rate", "low", "high"), map(float, triple), strict=True))
                for role, triple in answer.items()}  # fmt: skip
    except (TypeError, ValueError) as error:
        raise ConfigError(f"'{name}' returned a role without three numbers: {error}.", f"needed: {SIGNATURE}") from None
    return _rates(tree, CALLABLE_LEVEL, f"'{name}'", roles)


def read_audit(path: Path, roles: Sequence[str]) -> Rates:
    """Read an audit file: `format`, `level`, and `rates`: role -> {rate, low, high}.

    Raises: FileNotFoundError; SchemaError for another format; ConfigError for roles that are missing or unknown, and
        for rates out of range.
    """
    tree = read_audit_tree(path)
    if unknown := sorted(set(tree) - {"format", "level", "rates", "made_by"}):
        raise SchemaError(f"'{path}' has unknown keys: {', '.join(unknown)}.", "allowed: format, level, rates, made_by")
    level = tree.get("level")
    if not isinstance(level, float):
        raise SchemaError(f"'{path}': level is {level!r}, expected a number between 0 and 1.")
    return _rates(expect(tree.get("rates"), dict, where=f"'{path}': rates"), level, f"'{path}'", roles)


def _rates(tree: Mapping[str, Any], level: float, where: str, roles: Sequence[str]) -> Rates:
    missing, extra = [role for role in roles if role not in tree], sorted(set(tree) - set(roles))
    if missing or extra:
        raise ConfigError(
            f"{where} does not have the roles of the world.", f"missing: {', '.join(missing) or 'none'}",
            f"unknown: {', '.join(extra) or 'none'}",
        )  # fmt: skip
    found = [parse(_Rate, tree[role], at=f"rates.{role}") for role in roles]
    columns = (np.array([getattr(one, name) for one in found]) for name in ("rate", "low", "high"))
    rate, low, high = columns
    try:
        return Rates(rate=rate, low=low, high=high, level=level)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error.what}", *error.details, f"roles: {', '.join(roles)}") from None
