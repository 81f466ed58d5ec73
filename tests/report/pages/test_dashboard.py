"""The dashboard page: everything of the runs is on it, nothing of them is markup, and one script may run."""

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from diffprobe.core.result import MetricRecord
from diffprobe.report.curves import Curve
from diffprobe.report.pages.dashboard import MAX_COMPARED, Dashboard, render_dashboard
from diffprobe.report.run_index import IndexedRun
from tests.report.conftest import HOSTILE, make_sae_run

CURVES = [Curve(name="train/loss", steps=(1, 2, 3), values=(3.0, 2.0, 1.0))]


def make(n: int, *, name: str = "runs/{}", curves: list[Curve] = CURVES, **changes: object) -> Dashboard:
    runs = [
        IndexedRun(path=name.format(i), result=make_sae_run(0.1 * i, config={"seed": i}, **changes)) for i in range(n)
    ]
    return Dashboard(
        title="Runs", runs=tuple(runs), curves={run.path: curves for run in runs}, unreadable={"x": "no result"}
    )


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.attributes += attrs


def tags(html: str) -> Tags:
    parser = Tags()
    parser.feed(html)
    return parser


def test_every_run_has_a_row_and_the_first_ones_lines_and_settings() -> None:
    html = render_dashboard(make(MAX_COMPARED + 3))
    assert html.count('<th scope="row"><i') == MAX_COMPARED and "runs/14" in html
    assert html.count("<polyline") == MAX_COMPARED and html.count("<details>") == MAX_COMPARED
    assert "x</code>: no result" in html and "1 result file could not be read" in html
    assert render_dashboard(make(3)) == render_dashboard(make(3))


def test_the_policy_allows_the_script_of_the_page_and_nothing_else() -> None:
    html = render_dashboard(make(2))
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "://" not in html


def test_text_of_the_runs_is_text() -> None:
    record = MetricRecord(name=HOSTILE, value=1.0, split="test", n=1, target=HOSTILE, controls={HOSTILE: 0.5})
    curves = [Curve(name=HOSTILE, steps=(1, 2), values=(0.0, 1.0))]
    hostile = make(2, name=HOSTILE + "{}", curves=curves, metrics=(record,), experiment=HOSTILE, kind=HOSTILE)
    plain, found = tags(render_dashboard(make(2))), tags(render_dashboard(hostile))
    assert found.found == plain.found and not [name for name, _ in found.attributes if name.startswith("on")]


@pytest.mark.slow
def test_the_script_searches_and_sorts(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    html = render_dashboard(make(3))
    act = """<script>addEventListener("load", () => {
      const heads = document.querySelectorAll("thead button");
      heads[3].click(); heads[3].click();
      const search = document.getElementById("search");
      search.value = "runs/2"; search.dispatchEvent(new Event("input"));
      const rows = [...document.querySelectorAll("#runs tbody tr")];
      document.title = rows.map((r) => r.cells[0].textContent + (r.hidden ? "-" : "+")).join(" ") + " "
        + document.getElementById("count").textContent;
    });</script>"""
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', html)
    assert policy is not None
    (tmp_path / "page.html").write_text(html.replace(policy[0], "").replace("</body>", f"{act}</body>"))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([browser, *words, str(tmp_path / "page.html")], capture_output=True, text=True, timeout=120)
    assert "<title>runs/2+ runs/1- runs/0- 1 of 3</title>" in done.stdout
