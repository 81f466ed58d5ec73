"""The page of a certificate: one self-contained HTML file without a script, all text escaped."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from diffprobe.core.result import RunResult
from diffprobe.core.terminal import printable

VERDICTS = {
    "pass": "The method passed every check, and every baseline failed.",
    "fail": "The method failed at least one check.",
    "not valid": "A baseline that has to fail passed: with these settings the checks cannot tell right from wrong.",
}
"""Verdict -> what it means."""


def render_certificate(result: RunResult) -> str:
    """Render the page of a result of kind "certificate".

    Returns: the HTML, identical for the same result.
    """
    environment = Environment(
        loader=PackageLoader("diffprobe.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    verdict, *checks = result.metrics
    detail = verdict.detail
    names = list(dict.fromkeys(record.probe or "" for record in checks))
    return environment.get_template("certificate.html.j2").render(
        result=result,
        verdict=detail["verdict"],
        meaning=VERDICTS[detail["verdict"]],
        detail=detail,
        subjects=[
            {
                "name": name,
                "why": detail["baselines"].get(name, ""),
                "rows": [row(record.name, record.target, record.value, record.n, record.detail) for record in checks
                         if record.probe == name],
            }
            for name in names
        ],
    )  # fmt: skip


def row(name: str, target: str | None, value: float, n: int, detail: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of one check: name, value, interval, null, rule, verdict, n, and what it is."""
    interval, null, rule = detail.get("interval"), detail.get("null"), detail.get("rule")
    return {
        "name": f"{name}: {target}" if target else name,
        "value": f"{value:.3f}",
        "interval": "" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        "null": "" if null is None else f"mean {null['mean']:.3f}, p {null['p']:.2g} (least {null['smallest_p']:.2g})",
        "rule": "" if rule is None else f"{rule['text']} ({rule['keys']})",
        "verdict": {True: "pass", False: "fail", None: ""}[detail["passed"]],
        "n": f"{n:,}",
        "what": detail["what"],
    }


def _shown(value: object) -> object:
    """Show control characters of a text as text; browsers obey those that reverse the order of letters."""
    return type(value)(printable(value)) if isinstance(value, str) else value
