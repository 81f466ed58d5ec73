"""The explorer of tiny trained runs and of planted ones, into a writer that records."""

import dataclasses
import shutil
from functools import partial

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation import explore as explore_module
from diffprobe.evaluation.explore import Findings, explore
from diffprobe.evaluation.explore_files import columns_of_files
from diffprobe.evaluation.explore_parts import part_numbers
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.report.explorer.records import Column, Name
from tests.evaluation.page_runs import SAE
from tests.evaluation.planted_run import POOLED, SPATIAL, Recorder, planted_run, planted_sae, planted_tables

CONFIG = ExploreConfig(device="cpu", n_top=4)


def planted(monkeypatch, *runs):
    found = iter(runs)
    monkeypatch.setattr(explore_module, "open_explored", lambda path, config, seeds=(): next(found))
    monkeypatch.setattr(explore_module, "run_names", lambda results: ["a", "b"])


def test_all_pages_of_a_planted_run_agree(monkeypatch):
    planted(monkeypatch, planted_run(planted_tables(60, cells=SPATIAL), SPATIAL))
    writer = Recorder()
    explore(["run"], CONFIG, writer)
    facts = writer.runs[0]["facts"]
    assert (facts.run, facts.experiment, facts.model) == ("0123", "planted/sae", "tiny")
    assert (facts.n_images, facts.n_latents, facts.k, facts.cells) == (60, 6, 2, SPATIAL)
    notes = " ".join(facts.notes)
    for what in ("6 rows", "1 of 6 latents are never active", "20 of 60 images have no caption", "they were moved",
                 "seeds=[RUN,...]"):  # fmt: skip
        assert what in notes
    for latent in writer.runs[0]["latents"]:
        assert len(latent.top) <= 4
        for top in latent.top:
            shown = {active.latent: active for active in writer.image(top.image).latents}
            assert shown[latent.latent].activation == top.activation and shown[latent.latent].map == top.map


def test_two_runs_are_matched(monkeypatch):
    runs = [planted_run(planted_tables(30)), planted_run(planted_tables(30), sae=planted_sae((1, 0, 2, 3, 4, 5)))]
    planted(monkeypatch, *runs)
    writer = Recorder()
    explore(["a", "b"], CONFIG, writer)
    assert [run["facts"].run for run in writer.runs] == ["a", "b"]
    assert [match.other for match in writer.matches] == [1, 0, 2, 3, 4, 5]
    assert any("cosine" in note for note in writer.runs[0]["facts"].notes)


def test_measured_columns_and_names_are_shown(monkeypatch):
    column = Column(key="frequency", title="held out", help="", values=[0.5] * 6)
    name = Name(text="flat", score=1.0, auroc=None, q=None, shown=False)

    def measure(run):
        return Findings(columns=[column], names={2: [name]}, notes=["Measured."])

    planted(monkeypatch, planted_run(planted_tables(12)))
    writer = Recorder()
    explore(["run"], CONFIG, writer, measures=[measure])
    assert writer.column("frequency") is column and writer.latent(2).names == (name,)
    assert "Measured." in writer.runs[0]["facts"].notes
    planted(monkeypatch, planted_run(planted_tables(12)))
    with pytest.raises(ConfigError, match="frequency"):
        explore(["run"], CONFIG, Recorder(), measures=[measure, measure])


def test_missing_captions_and_classes_are_said(monkeypatch):
    tables = planted_tables(12)
    for table in tables:
        table.captions = [""] * len(table)
    run = planted_run(tables)
    run = dataclasses.replace(run, features=dataclasses.replace(run.features, classes=()))
    planted(monkeypatch, run)
    writer = Recorder()
    explore(["run"], ExploreConfig(device="cpu", max_values=2), writer)
    notes = writer.runs[0]["facts"].notes
    assert "No image has a caption." in notes and "The data set has no classes." in notes
    assert any("'style' is not shown: it has 3 values" in note for note in notes)


def test_settings_without_effect_and_three_runs_are_refused():
    with pytest.raises(ConfigError, match="n_match_images"):
        explore(["run"], ExploreConfig(n_match_images=50), Recorder())
    with pytest.raises(ConfigError, match="3"):
        explore(["a", "b", "c"], CONFIG, Recorder())


def test_a_trained_run_has_pictures_and_the_same_records_each_time(small_sae):
    first, second = Recorder(), Recorder()
    for writer in (first, second):
        explore([str(small_sae)], CONFIG, writer)
    assert first.runs == second.runs
    assert first.runs[0]["facts"].n_images == len(first.runs[0]["images"]) > 0
    assert all(image.thumbnail.startswith(b"\x89PNG") for image in first.runs[0]["images"])
    assert POOLED[0] in first.runs[0]["facts"].cells


def test_without_images_pages_have_no_pictures_and_a_reason(small_sae, tiny_shards, tmp_path):
    moved = tmp_path / "shards"
    shutil.copytree(tiny_shards, moved)
    for tar in moved.glob("test*.tar"):
        tar.unlink()
    writer = Recorder()
    explore([str(small_sae)], ExploreConfig(device="cpu", data_path=str(moved)), writer)
    assert all(image.thumbnail is None for image in writer.runs[0]["images"])
    assert any("images are not at hand" in note for note in writer.runs[0]["facts"].notes)


def test_seeds_of_a_grid_recur(train_tiny):
    run = train_tiny(*SAE, "probe.params.k=2", "probe.grid.seed=[0,1,2]")
    writer = Recorder()
    explore([str(run)], CONFIG, writer)
    assert [one.run for one in writer.latent(0).recurrence] == ["seed 1", "seed 2"]
    assert all(-1 <= value <= 1 for value in writer.column("recurrence").values)


def test_held_out_numbers_come_after_activity_and_replace_those_of_the_pass(monkeypatch):
    planted(monkeypatch, planted_run(planted_tables(30)))
    writer = Recorder()
    purity = Column(key="purity", title="purity", help="", values=[0.5] * 6)
    explore(["run"], CONFIG, writer, measures=[lambda run: Findings(columns=[purity])])
    keys = list(writer.runs[0]["columns"])
    assert keys[:5] == ["frequency", "n_active", "mean_activation", "max_activation", "purity"]
    assert not any(key.startswith("purity_") for key in keys) and any(key.startswith("entropy_") for key in keys)


def test_a_run_of_places_beside_a_pooled_one(monkeypatch):
    """Both are shown, matched by activations; what the pooled one lacks is said on its page alone."""
    planted(monkeypatch, planted_run(planted_tables(30, cells=SPATIAL), SPATIAL), planted_run(planted_tables(30)))
    writer = Recorder()
    explore(["a", "b"], CONFIG, writer, measures=[part_numbers])
    places, pooled = (" ".join(run["facts"].notes) for run in writer.runs)
    assert "pooled differently" in places and "pooled differently" in pooled
    assert "the features are pooled (" in pooled and "the features are pooled (" not in places
    assert writer.latent(0, 0).top[0].map is not None and writer.latent(0, 1).top[0].map is None
    assert [match.other for match in writer.matches][:3] == [0, 1, 2]


def test_columns_of_files_are_those_of_the_first_run(monkeypatch, tmp_path):
    planted(monkeypatch, planted_run(planted_tables(12)), planted_run(planted_tables(12)))
    file = tmp_path / "use.csv"
    file.write_text("latent,delta_mse,verdict\n2,0.25,used\n")
    writer = Recorder()
    explore(["a", "b"], CONFIG, writer, of_first=[partial(columns_of_files, [str(file)])])
    assert writer.column("delta_mse").values == [None, None, 0.25, None, None, None]
    assert writer.runs[0]["texts"]["verdict"].values[2] == "used"
    assert "delta_mse" not in writer.runs[1]["columns"] and not writer.runs[1]["texts"]
