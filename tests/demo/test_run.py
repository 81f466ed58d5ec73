"""The parts of a demo: planning, refusals, shared stores, the samples of its panels, its console.

The whole of it, twice, is in tests/cli/test_demo.py.
"""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from diffprobe.config.controls import LADDER
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.demo.config import PanelConfig
from diffprobe.demo.console import DemoConsole
from diffprobe.demo.page import demo_facts, make_page
from diffprobe.demo.panels import direction_panels, latent_panels
from diffprobe.demo.run import _check_folder, backbone_name, load_demo, run_demo, write_report
from diffprobe.metrics.auroc import auroc
from diffprobe.probes.direction import Direction
from diffprobe.probes.sae.topk import KSAE
from diffprobe.report.pages.page import render_page
from diffprobe.runs.train import make_source
from diffprobe.shards.index import ShardSet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def outcome(tmp_path_factory, request):
    """One finished tiny demo for the tests of this file, with what its console printed."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFPROBE_CONFIGS", str(Path(__file__).parents[1] / "tiny_study"))
        settings = [
            "experiment=tiny/demo",
            f"backbone.path={request.getfixturevalue('tiny_sd')}",
            "backbone.device=cpu",
            f"data.path={request.getfixturevalue('tiny_shards')}",
            f"features.store={folder / 'stores'}",
            f"output={folder / 'out'}",
        ]
        text = io.StringIO()
        view = DemoConsole(Console(file=text, width=100))
        done = run_demo(load_demo(settings), view)
    return done, text


def test_settings_reach_the_runs_in_order_and_the_demo_keeps_its_own(tiny_study):
    demo = load_demo([*tiny_study, "output=elsewhere", "panels.n_latents=5", "trainer.max_epochs=7", "logger=csv"])
    assert demo.config.panels.n_latents == 5 and str(demo.folder) == "elsewhere"
    assert {run.trainer.max_epochs for run in demo.runs} == {7} and {run.logger.kind for run in demo.runs} == {"csv"}
    assert {run.output for run in demo.runs} == {"elsewhere"} and {run.data.batch_size for run in demo.runs} == {8}
    assert [run.experiment for run in demo.runs[:4]] == ["tiny/classifier"] * 3 + ["tiny/sae"]
    assert [backbone_name(run) for run in demo.runs[1:3]] == ["random weights", "raw pixels"]


def test_runs_with_the_same_features_share_a_store(tiny_study):
    demo = load_demo([*tiny_study, "output=elsewhere"])
    assert [backbone_name(run) for run in demo.stores()] == [
        backbone_name(demo.runs[0]), "random weights", "raw pixels",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_shipped_demo_is_what_the_experiment_files_do(tmp_path):
    demo = load_demo([f"output={tmp_path}"])
    assert {run.data.limit for run in demo.runs} == {2560} and {run.seed for run in demo.runs} == {0}
    kinds: dict[tuple[str, str], list[str]] = {}
    for run in demo.runs:
        kinds.setdefault((run.probe.kind, run.probe.name), []).append(run.control)
    assert kinds == {
        ("classifier", "linear_cv"): [*LADDER, "none"],
        ("sae", "topk"): ["none", "random_weights"],
        ("direction", "mean_difference"): [*LADDER, "none"],
        ("direction", "ridge_cv"): [*LADDER, "none"],
    }
    assert {run.features.timesteps for run in demo.runs} == {(25, 200, 500)} and demo.left_out == ()
    assert demo.config.panels == PanelConfig() and ShardSet.load(demo.runs[0].data.path).group == "family"


def test_the_same_run_twice_is_refused(tiny_study):
    with pytest.raises(ConfigError, match="the same"):
        load_demo([*tiny_study, "output=out", "runs=[{experiment: tiny/sae}, {experiment: tiny/sae}]"])


def test_a_demo_is_refused_in_several_processes(tiny_study):
    with pytest.raises(ConfigError, match=r"trainer.devices=2(.|\n)*a demo trains in one process"):
        load_demo([*tiny_study, "trainer.devices=2"])


def test_a_folder_with_results_of_other_settings_is_refused(tiny_study, tmp_path):
    foreign = tmp_path / "out" / "tiny" / "sae" / "0123" / "result.json"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("{}")
    with pytest.raises(ConfigError, match="1 result.s. of other settings"):
        load_demo([*tiny_study, f"output={tmp_path / 'out'}"])


def test_every_run_has_its_result_beside_its_controls(outcome):
    done, _ = outcome
    assert len(done.results) == 8 == len({path for path in done.result_paths if path.is_file()})
    (run, result, folder) = done.of_kind("classifier")[0]
    assert run.control == "none" and folder.name == result.run and len(done.of_kind("direction")) == 2
    table = done.tables[0]
    for control in ("raw pixels", "random weights", "shuffled labels", "chance"):
        assert control in table
    assert "n/a" not in table


def test_directions_are_scored_and_shown_on_test_samples(outcome):
    done, _ = outcome
    (panel,) = direction_panels(done)
    run, result, folder = done.of_kind("direction")[0]
    table = make_source(run).table("test")
    found = Direction.load(next((folder / "probes" / "style").iterdir()))
    projections = found.project(table.features[found.cell])
    positive = table.attributes["style"] == 0  # noto
    assert [e.estimator for e in panel.estimates] == ["mean_difference", "logistic"]
    first = panel.estimates[0]
    assert first.auroc == pytest.approx(float(auroc(projections[:, None], positive)), abs=1e-6)
    assert first.interval[0] <= first.auroc <= first.interval[1]
    assert None not in (first.random_weights, first.raw_pixels, first.shuffled, first.random_mean)
    assert panel.estimates[1].random_weights is None
    ends = {picture.key for picture in (*panel.positive_end, *panel.negative_end)}
    assert ends <= set(table.keys) and panel.positive_end[0].value == pytest.approx(float(projections.max()))
    assert panel.positive_end[0].caption in table.captions
    assert sum(map(sum, panel.histogram.counts.values())) == len(table) == first.n


def test_latents_are_chosen_on_training_and_shown_on_test_samples(outcome):
    done, _ = outcome
    latents = latent_panels(done)
    run, _, folder = done.of_kind("sae")[0]
    sae, source = KSAE.from_pretrained(folder / "probes" / "sae"), make_source(run)
    train, test = source.table("train"), source.table("test")
    with torch.no_grad():
        seen, held_out = (sae.encode(table.features[latents.cell]) for table in (train, test))
    assert len(latents.panels) == 3 and "16 training samples" in latents.rule and "4 test samples" in latents.rule
    for panel in latents.panels:
        fired = (held_out.indices == panel.latent) & (held_out.values > 0)
        assert panel.n_active == int(fired.sum()) and len(panel.pictures) == min(panel.n_active, 4)
        assert {p.key for p in panel.pictures} <= set(test.keys)
        assert int(((seen.indices == panel.latent) & (seen.values > 0)).sum()) >= 2
        assert (panel.label_entropy is None) == (panel.n_active == 0)


def test_a_bar_too_high_for_every_latent_is_named(outcome):
    done, _ = outcome
    config = replace(done.demo.config, panels=PanelConfig(min_active=1000))
    with pytest.raises(EmptyClass, match="1000 or more of 16"):
        latent_panels(replace(done, demo=replace(done.demo, config=config)))


def test_what_is_used_stands_beside_what_is_read(outcome):
    done, _ = outcome
    (used,) = done.use_results
    assert used.kind == "use" and {record.probe for record in used.metrics} == {"patching"}
    assert {str(record.cell).partition("@")[0] for record in used.metrics} == {"mid_block", "up_blocks.0"}
    table = done.tables[1]
    assert "patching" in table and "n/a" not in table
    html = render_page(make_page(done, ()))
    assert "Tiny, used" in html and html.index("Tiny, used") > html.index("<h")


def test_results_of_other_measurements_of_use_are_refused(outcome, tmp_path):
    done, _ = outcome
    folder = tmp_path / "out"
    shutil.copytree(done.demo.folder, folder)
    moved = replace(done.demo, config=replace(done.demo.config, output=str(folder)))
    path = folder / done.use_paths[0].relative_to(done.demo.folder)
    other = path.parent.with_name("0123456789ab") / path.name
    other.parent.mkdir()
    shutil.copy(path, other)
    moved = replace(moved, runs=tuple(replace(run, output=str(folder)) for run in moved.runs))
    _check_folder(moved)  # before the measurement its folder is not known
    with pytest.raises(ConfigError, match="1 result.s. of other settings"):
        _check_folder(moved, [path])


def test_a_ladder_in_a_demo_is_a_run_for_each_rung(tiny_study):
    demo = load_demo([*tiny_study, "output=o", "runs=[{experiment: tiny/classifier, settings: ['control=ladder']}]"])
    assert [run.control for run in demo.runs] == [*LADDER, "none"]


def test_a_table_on_the_page_is_one_of_the_tables(tiny_study):
    with pytest.raises(ConfigError, match="on_page: emoji is not among tables: tiny"):
        load_demo([*tiny_study, "output=elsewhere", "tables=[tiny]", "on_page=[emoji]"])


def test_the_page_holds_everything(outcome):
    done, _ = outcome
    page = make_page(done, direction_panels(done))
    html = render_page(page)
    assert "random weights" in html and "What a tiny model knows" in html
    facts = dict(page.facts)
    assert facts["images"] == "tiny: 16 train, 4 val, 4 test" and facts["timesteps"].startswith("20 of 1,000")
    assert len(facts["stores"].split(", ")) == 3
    limited = load_limited(done)
    assert "2 of 16 train" in dict(demo_facts(limited))["images"]


def test_the_console_writes_to_a_stream_of_few_characters(monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(buffer, encoding="latin-1", newline="\n", write_through=True))
    with DemoConsole().step("train", "a probe") as step:
        step.done("fine")
    assert buffer.getvalue().decode("latin-1").startswith("* train ")


def load_limited(done):
    runs = tuple(replace(run, data=replace(run.data, limit=2)) for run in done.demo.runs)
    return replace(done.demo, runs=runs)


def test_the_console_prints_results_and_paths(outcome):
    done, text = outcome
    view = DemoConsole(Console(file=text, width=100))
    panels = write_report(done, view)
    view.tables(done)
    view.directions(panels, 1)
    view.closing(done)
    printed = text.getvalue()
    assert done.tables[0] in printed and "32 latents, fvu" in printed and "2 targets x 2 cells" in printed
    for line in printed.splitlines():
        assert line.startswith("|") or len(line) <= 112
    assert "strongest control" in printed and "peak memory" in printed and "diffprobe taps emoji-sd" in printed
    assert (done.demo.folder / "report.html").is_file()
    assert json.loads(done.result_paths[0].read_text())["experiment"] == "tiny/classifier"
