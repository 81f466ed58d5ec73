"""The page of any runs: complete, self-contained, and with a reason for what it does not show."""

import dataclasses
import re
import shutil

import pytest

from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError, RunFailed, ShardError
from diffprobe.evaluation.panel_settings import PanelConfig
from diffprobe.evaluation.run_report import ReportOptions, run_report, write_run_report
from diffprobe.report.pages.page import render_page
from diffprobe.shards.index import build_index
from tests.evaluation.page_runs import DIRECTION

pytestmark = pytest.mark.slow

FEW = ReportOptions(panels=PanelConfig(n_latents=2, min_active=1, n_top=3, n_ends=2, n_resamples=20))


@pytest.fixture(scope="session")
def classifier(train_tiny):
    return train_tiny("probe=linear", "probe.targets=[group]", "probe.cell=null")


def test_a_page_of_all_kinds_from_the_command_line(small_sae, large_sae, direction, classifier, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    runs = [str(folder) for folder in (small_sae, large_sae, direction, classifier)]
    assert main(["report", *runs, "--out", str(page), "--latents", "2", "--min-active", "1", "--title", "T & U"]) == 0
    assert f"page: {page}" in capsys.readouterr().out
    html = page.read_text()
    assert "<h1>T &amp; U</h1>" in html and html.count('<article class="direction">') == 1
    assert html.count('<article class="latent">') == 4 and "<h3>k=2</h3>" in html and "<h3>k=8</h3>" in html
    assert 'class="autoencoders beside"' in html and "The autoencoders" in html
    assert "balanced accuracy of group by layer and timestep" in html and "fvu by layer and timestep" in html
    assert not re.findall(r'(?:src|href)="(?!data:|#)', html) and "<script" not in html
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_a_page_of_one_run_has_only_what_it_needs(small_sae):
    page = run_report([small_sae], FEW)
    assert page.tables == () and page.names == {} and len(page.latents) == 1 and page.directions == ()
    html = render_page(page)
    assert "The autoencoder</h2>" in html and "beside" not in html.partition("</style>")[2]


@pytest.mark.slow
def test_a_control_stands_beside_the_autoencoder_whose_settings_it_has(small_sae, large_sae, train_tiny):
    control = train_tiny("probe=topk", "probe.params.n_latents=32", "probe.params.k=2", "control=random_weights")
    page = run_report([small_sae, large_sae, control], FEW)
    html = render_page(page)
    row = html[html.index('<th scope="row">fvu</th>') :].partition("</tr>")[0]
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert ["spread" in cell for cell in cells] == [True, False]
    assert "with 1 control run" in page.lead


@pytest.mark.slow
def test_runs_of_two_data_sets_stand_side_by_side_with_their_names(small_sae, tiny_shards, train_tiny, tmp_path):
    other = tmp_path / "others"
    shutil.copytree(tiny_shards, other)
    (other / "index.json").unlink()
    for tar in other.glob("val-0001.tar"):
        tar.unlink()
    build_index(other, name="others", licence="CC0-1.0")
    second = train_tiny("probe=topk", "probe.params.n_latents=32", "probe.params.k=2", f"data.path={other}")
    page = run_report([small_sae, second], FEW)
    assert [section.name for section in page.latents] == [tiny_shards.name, "others"]
    assert {"images, others", f"images, {tiny_shards.name}"} <= set(dict(page.facts))
    assert page.tables[0].rows[-1].field == "config.data.path"


def test_moved_shards_cost_the_pictures_and_are_found_again(
    small_sae, direction, tiny_shards, train_tiny, tmp_path, monkeypatch
):
    # three colours are in all splits, which a run refuses; here they only name a group on the page
    monkeypatch.setattr("diffprobe.runs.train.require_no_leak", lambda data, shard_set: None)
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(tiny_shards, here)
    (here / "index.json").unlink()
    build_index(here, name="tiny", licence="CC0-1.0", grouped_by="colour")
    runs = [
        train_tiny("probe=topk", "probe.params.n_latents=32", "probe.params.k=2", f"data.path={here}"),
        train_tiny(*DIRECTION, f"data.path={here}"),
    ]
    shutil.move(here, there)
    html = render_page(run_report(runs, FEW))
    assert "<img" not in html and html.count("No pictures are shown") == 2 and "active on" in html
    assert '<figure class="hist">' in html and "values of &#39;colour&#39;" in html  # the group, from the predictions
    again = render_page(run_report(runs, dataclasses.replace(FEW, data_path=str(there))))
    assert "<img" in again and "No pictures" not in again and "values of &#39;colour&#39;" in again
    single = dataclasses.replace(FEW, panels=dataclasses.replace(FEW.panels, group_by="sample"))
    assert "values of &#39;colour" not in render_page(run_report(runs, single))


def test_what_is_not_there_is_said_on_the_page(small_sae, direction, tmp_path):
    folder = tmp_path / "runs"
    for run in (small_sae, direction):
        shutil.copytree(run, folder / run.name)
    shutil.rmtree(folder / small_sae.name / "probes")
    (folder / "begun").mkdir()
    (folder / "begun" / "inputs.json").write_text("{}")
    said = write_run_report([folder], tmp_path / "page.html", FEW)
    assert any("No latents" in line and "no weights" in line for line in said)
    assert any("1 run(s) without a result" in line and "begun" in line for line in said)
    html = (tmp_path / "page.html").read_text()
    assert all(line.split("'")[0] in html for line in said)


@pytest.mark.parametrize(
    ("options", "error", "facts"),
    [
        ({"panels": PanelConfig(group_by="color")}, ConfigError, "color(.|\n)*nearest: colour"),
        ({"data_path": "nowhere"}, ShardError, "nowhere"),
    ],
)
def test_wrong_options_are_refused(small_sae, options, error, facts):
    with pytest.raises(error, match=facts):
        run_report([small_sae], dataclasses.replace(FEW, **options))


def test_controls_alone_are_refused(train_tiny, small_sae, tmp_path):
    control = train_tiny("probe=topk", "probe.params.n_latents=32", "probe.params.k=2", "control=random_weights")
    with pytest.raises(RunFailed, match="all 1 runs are controls(.|\n)*name the run too"):
        run_report([control], FEW)


def test_a_bar_counts_the_runs_whose_features_are_read(small_sae, direction, classifier):
    from contextlib import contextmanager

    seen = []

    @contextmanager
    def bar(total):
        class Count:
            def update(self, n):
                seen.append(n)

        seen.append(total)
        yield Count()

    run_report([small_sae, direction, classifier], FEW, progress=bar)
    assert seen == [2, 1, 1]
