"""What the page of a demo needs is checked before its runs, and the page of what passes is written."""

import dataclasses
import io
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError, EmptyClass, ShardError, UnknownName
from diffprobe.demo.config import PanelConfig
from diffprobe.demo.console import DemoConsole
from diffprobe.demo.needs import check_needs
from diffprobe.demo.panels import direction_panels, latent_panels
from diffprobe.demo.run import load_demo, run_demo, write_report
from diffprobe.features.row_layout import by_place
from diffprobe.probes.sae.topk import KSAE
from diffprobe.runs.train import make_source

pytestmark = pytest.mark.slow

DIRECTION = "runs=[{experiment: tiny/classifier}, {experiment: tiny/direction, settings: ['%s']}]"


def runs(*sae_settings: str) -> str:
    settings = ", ".join(f"'{setting}'" for setting in sae_settings)
    return f"runs=[{{experiment: tiny/classifier}}, {{experiment: tiny/sae, settings: [{settings}]}}]"


@pytest.fixture
def spatial(tiny_study, tmp_path):
    """A finished demo whose autoencoder reads single places, with fixed folders."""
    settings = [*tiny_study, runs("features.pool=none", "probe=batch_topk"), f"output={tmp_path / 'out'}"]
    view = DemoConsole(Console(file=io.StringIO(), width=100))
    demo = load_demo(settings)
    check_needs(demo)
    return run_demo(demo, view), view


@pytest.mark.slow
def test_a_demo_that_passes_the_check_has_its_page_where_the_autoencoder_is_spatial(spatial):
    done, view = spatial
    write_report(done, view)
    html = (done.demo.folder / "report.html").read_text()
    assert html.count('<article class="latent">') == 3
    latents = latent_panels(done)
    run, _, folder = done.of_kind("sae")[0]
    sae, table = KSAE.from_pretrained(folder / "probes" / "sae"), make_source(run).table("test")
    places = by_place(table.features[latents.cell], latents.cell)
    n_places = places.shape[1] * places.shape[2]
    assert f"{n_places} rows (positions and draws)" in latents.rule and "4 test samples" in latents.rule
    with torch.no_grad():
        code = sae.encode(places.reshape(-1, places.shape[-1]))
    dense = torch.zeros(len(places) * n_places, sae.n_latents).scatter_add_(1, code.indices, code.values)
    largest = dense.view(len(places), n_places, -1).amax(1)
    for panel in latents.panels:
        expected = largest[:, panel.latent]
        assert panel.n_active == int((expected > 0).sum()) <= 4
        assert panel.max_activation == pytest.approx(float(expected.max()), abs=1e-6)
        shown = [table.keys.index(picture.key) for picture in panel.pictures]
        assert [p.value for p in panel.pictures] == pytest.approx(expected[shown].tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["features.pool=none"], ConfigError, r"run 1 \(tiny/classifier, linear\): .*one vector(.|\n)*pool=none"),
        (["features.keep_draws=true", "features.draws=2"], ConfigError, "run 1 .*(.|\n)*keep_draws=true"),
        (["panels.group_by=color"], ConfigError, "panels.group_by(.|\n)*nearest: colour"),
        (["data.test_split=tset"], UnknownName, r"run 1 .*data.test_split(.|\n)*test"),
        ([runs("probe.grid.k=[2,4]")], ConfigError, "tiny/sae. is a grid; the page shows the latents of one"),
        (["data.path=nowhere"], ShardError, "run 1 .*'nowhere' not found"),
        ([DIRECTION % "probe.targets=[stile]"], UnknownName, "nearest: style"),
        ([DIRECTION % "probe.params.positive=notto"], UnknownName, "noto"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_the_page_cannot_show_is_refused(tiny_study, tmp_path, settings, error, message):
    short = [] if settings[0].startswith("runs=") else [DIRECTION % "seed=0"]
    with pytest.raises(error, match=message):
        check_needs(load_demo([*tiny_study, *short, *settings, f"output={tmp_path / 'out'}"]))


def test_the_check_refuses_what_the_run_refuses(tiny_study, tmp_path, capsys):
    command = ["demo", *tiny_study, DIRECTION % "seed=0", "features.pool=none", f"output={tmp_path / 'out'}"]
    for words in (["--check"], []):
        assert main([*command, *words]) == 2
        assert re.search("^ConfigError: run 1 .* reads one vector per sample", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_the_fix_of_a_grid_is_accepted(tiny_study, tmp_path):
    """A run of one autoencoder before it, which the page then shows."""
    grid = runs("probe.grid.k=[2,4]")
    one = grid.replace("{experiment: tiny/sae, ", "{experiment: tiny/sae}, {experiment: tiny/sae, ")
    check_needs(load_demo([*tiny_study, one, f"output={tmp_path / 'out'}"]))


@pytest.mark.slow
def test_what_the_data_are_too_few_for_is_left_out_of_the_page_and_named(spatial, monkeypatch):
    done, view = spatial
    panels = PanelConfig(min_active=1000)
    few = dataclasses.replace(
        done, demo=dataclasses.replace(done.demo, config=dataclasses.replace(done.demo.config, panels=panels))
    )
    write_report(few, view)
    html = Path(done.demo.folder / "report.html").read_text()
    assert '<article class="latent">' not in html
    assert "No latents are shown: no latent is active on 1000 or more of 16 samples." in html


@pytest.mark.slow
def test_a_direction_of_too_few_samples_is_left_out_and_named(tiny_study, tmp_path, monkeypatch):
    settings = [
        *tiny_study,
        "runs=[{experiment: tiny/classifier}, {experiment: tiny/direction}]",
        f"output={tmp_path / 'out'}",
    ]
    view = DemoConsole(Console(file=io.StringIO(), width=100))
    done = run_demo(load_demo(settings), view)

    def undefined(*args, **kwargs):
        raise EmptyClass("bootstrap: the statistic is not defined in 11 of 20 resamples.")

    monkeypatch.setattr("diffprobe.evaluation.direction_panels.bootstrap_interval", undefined)
    with pytest.raises(EmptyClass):
        direction_panels(done)
    assert write_report(done, view) == ()
    html = (done.demo.folder / "report.html").read_text()
    assert "The direction &#39;style&#39; (mean_difference) is not shown: bootstrap: the statistic" in html
