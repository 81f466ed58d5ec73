"""`diffprobe certify`: scores a method against the planted truth of `scenes`, and writes a result and a page."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from diffprobe.analysis.certification.check import Certificate, Check, Subject
from diffprobe.config.parse import Origin, parse, record_tree
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import CERTIFICATES
from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult, StartTime, make_result, write_result
from diffprobe.evaluation.certificates.method import Method, is_callable_name
from diffprobe.report.pages.certificate import render_certificate

KIND = "certificate"
"""Kind of the results."""
PAGE_FILE = "certificate.html"
"""Name of the page beside the result."""
_RULES = 1
"""Raised when a measure changes, so that certificates of both versions have different folders."""


def open_method(text: str, kind: str | None = None) -> tuple[Method, str]:
    """Find out what kind of method a text names, without loading it.

    Args:
        text: a file or folder, or `module:callable`.
        kind: name of the kind; None to take the only one that accepts the file or folder.

    Returns: the method, with `call` unset, and its kind.
    Raises: ConfigError for a text that names nothing, a callable without a kind, or a path of another kind; UnknownName
        for an unknown kind.
    """
    if kind is not None:
        CERTIFICATES.load(kind)
    if is_callable_name(text):
        if kind is None:
            raise ConfigError(
                f"'{text}' is a Python callable, so its kind has to be named.", *_kinds(signatures=True),
                fix=f"--kind {CERTIFICATES.names()[0]}",
            )  # fmt: skip
        return Method(name=text), kind
    path = Path(text)
    if not path.exists():
        raise ConfigError(
            f"'{text}' is neither a file or folder that exists nor the name of a callable.",
            "allowed: a saved method, or module:callable", *_kinds(),
        )  # fmt: skip
    accepting = [name for name in CERTIFICATES.names() if CERTIFICATES.load(name).accepts(path)]
    if kind is not None and kind not in accepting:
        found = f"it is of kind {', '.join(accepting)}" if accepting else "it is of no kind that is known"
        raise ConfigError(
            f"'{text}' is not a method of kind '{kind}': {found}.", f"needed: {CERTIFICATES.load(kind).HELP}",
            fix=f"--kind {accepting[0]}" if accepting else None,
        )  # fmt: skip
    if kind is None and len(accepting) != 1:
        found = f"it could be of the kinds {', '.join(accepting)}" if accepting else "no kind accepts it"
        raise ConfigError(f"the kind of '{text}' is not known: {found}.", *_kinds(), fix="--kind KIND")
    return Method(name=text, path=path), kind or accepting[0]


def load_settings(kind: str, settings: Mapping[str, Any], origin: Origin | None = None) -> Any:
    """Return the `Config` of a kind. Raises: ConfigError with all errors; UnknownName for an unknown kind."""
    return parse(CERTIFICATES.load(kind).Config, settings, origin)


def certify(text: str, kind: str | None, config: Any, *, output: Path | str = "runs") -> tuple[Certificate, Path]:
    """Measure a method and its baselines, and write `result.json` and `certificate.html`.

    Args:
        text: a file or folder, or `module:callable`.
        kind: name of the kind, or None; see `open_method`.
        config: the `Config` of the kind.
        output: folder of runs. The result is in <output>/certify/<kind>/<first 12 digits of a digest>.

    Returns: the certificate, and the path of the result.
    Raises: as `open_method`; the errors of the kind.
    """
    started_at = StartTime.now()
    method, found_kind = open_method(text, kind)
    module: ModuleType = CERTIFICATES.load(found_kind)
    certificate: Certificate = module.certify(method, config)
    tree = {"method": text, "kind": found_kind, **record_tree(config)}
    inputs = method.digests()
    folder = Path(output) / "certify" / found_kind / digest_json({**tree, "inputs": inputs, "rules": _RULES})[:12]
    folder.mkdir(parents=True, exist_ok=True)
    result = make_result(
        run=folder.name, experiment=f"certify/{found_kind}", kind=KIND, config=tree, seeds=certificate.seeds,
        metrics=records(certificate), started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_page(result, folder / PAGE_FILE)
    write_result(result, folder / RESULT_FILE)
    return certificate, folder / RESULT_FILE


def write_page(result: RunResult, path: Path) -> None:
    """Write the page of a certificate atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(render_certificate(result), encoding="utf-8")


def records(certificate: Certificate) -> list[MetricRecord]:
    """Return the records of a certificate: its verdict, then the checks of the method and of each baseline.

    The verdict is 1 for "pass", else 0; its detail names the verdict, the baselines that passed, and what was not
    measured. Of a check, `probe` is "method" or the name of a baseline, and the detail has the rule and whether it
    holds.
    """
    checks = certificate.method.checks
    verdict = MetricRecord(
        name="certificate", value=float(certificate.verdict == "pass"), split="test", n=len(checks), probe="method",
        detail={
            "verdict": certificate.verdict, "passing_baselines": list(certificate.passing_baselines),
            "not_measured": dict(certificate.not_measured), "facts": dict(certificate.facts),
            "baselines": {baseline.name: baseline.why for baseline in certificate.baselines},
        },
    )  # fmt: skip
    subjects = (certificate.method, *certificate.baselines)
    return [verdict, *(_record(subject, check) for subject in subjects for check in subject.checks)]


def _record(subject: Subject, check: Check) -> MetricRecord:
    rule = check.rule
    detail: dict[str, Any] = {"what": check.what, "passed": check.passed}
    if check.interval is not None:
        detail["interval"] = list(check.interval)
    if check.null is not None:
        detail["null"] = dict(check.null)
    if rule is not None:
        detail["rule"] = {
            "keys": rule.keys,
            "low": rule.low,
            "high": rule.high,
            "alpha": rule.alpha,
            "text": rule.describe(),
        }
    return MetricRecord(
        name=check.name, value=check.value, split="test", n=check.n, probe=subject.name, target=check.target,
        detail=detail,
    )  # fmt: skip


def _kinds(*, signatures: bool = False) -> list[str]:
    loaded = {name: CERTIFICATES.load(name) for name in CERTIFICATES.names()}
    return [f"{name}: {module.SIGNATURE if signatures else module.HELP}" for name, module in loaded.items()]
