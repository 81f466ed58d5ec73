"""The page of a certificate."""

from diffprobe.core.result import MetricRecord, StartTime, make_result
from diffprobe.report.pages.certificate import render_certificate, row

DETAIL = {
    "what": "<script>alert(1)</script>", "passed": False, "interval": [0.1, 0.3],
    "null": {"mean": 0.0, "p": 0.25, "smallest_p": 0.01}, "rule": {"text": "at least 0.9", "keys": "least"},
}  # fmt: skip


def test_a_row_has_interval_null_and_rule() -> None:
    found = row("auroc", "size", 0.2, 1000, DETAIL)
    assert found["name"] == "auroc: size" and found["interval"] == "0.100 to 0.300" and found["verdict"] == "fail"
    assert found["null"] == "mean 0.000, p 0.25 (least 0.01)" and found["rule"] == "at least 0.9 (least)"
    assert row("a", None, 1.0, 1, {"what": "", "passed": None})["verdict"] == ""


def test_the_page_escapes_everything_and_needs_nothing() -> None:
    verdict = MetricRecord(
        name="certificate", value=0.0, split="test", n=1, probe="method",
        detail={"verdict": "fail", "passing_baselines": [], "not_measured": {"<u>": "<s>"}, "facts": {"f": "<a>"},
                "baselines": {"<em>": "<q>"}},
    )  # fmt: skip
    checks = [
        MetricRecord(name="auroc", value=0.2, split="test", n=9, probe=probe, detail=DETAIL)
        for probe in ("method", "<em>")
    ]
    result = make_result(
        run="r", experiment="", kind="certificate", config={"method": "<img>\u202e", "kind": "x"}, seeds={},
        metrics=[verdict, *checks], started_at=StartTime.now(),
    )  # fmt: skip
    page = render_certificate(result)
    assert not any(tag in page for tag in ("<script", "<img", "<u>", "<s>", "<a>", "<em>", "<q>", "\u202e", "http://"))
    assert page.count("&lt;script&gt;") == 2 and "at least 0.9" in page
    assert page == render_certificate(result)
