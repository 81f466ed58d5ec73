"""`eval labels` on a tiny run, and its stream against plain NumPy on features at hand."""

import dataclasses

import numpy as np
import pytest
import torch

from diffprobe.analysis.label_scores import ChanceSettings
from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError, EmptyClass, RunFailed, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation import sample_codes as codes_module
from diffprobe.evaluation.labels import LabelledSplit, LabelsEvaluation, _scores, evaluate_labels, summary_lines
from diffprobe.features.batch import FeatureTable
from diffprobe.probes.sae.topk import Config, TopK
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import Published, TableAxis, TableSpec

CELL = "mid_block@t20:empty:mean"
D, L, N_CLASSES, N_TOP = 8, 48, 5, 4
SETTINGS = LabelsEvaluation(experiment="x", top=(5, 20), n_top_images=N_TOP, n_permutations=5, n_renumberings=5)


def table_of(n, seed, *, unlabelled=()):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, N_CLASSES, (n,), generator=generator)
    features = torch.randn(n, D, generator=generator) + 2 * torch.eye(D)[label]
    label[list(unlabelled)] = -1
    return FeatureTable({CELL: features}, [f"{seed}-{i:03d}" for i in range(n)], label, {})


def split_of(table, name="train"):
    return LabelledSplit(name, table, table.label, None, N_CLASSES)


@pytest.fixture
def sae():
    return TopK(Config(k=6, n_latents=L), D, seed=0)


@pytest.fixture
def tables():
    return table_of(150, 1, unlabelled=(3, 77)), table_of(60, 2, unlabelled=(0,))


def scores(sae, tables, reading):
    splits = [split_of(table, name) for table, name in zip(tables, ("train", "test"), strict=True)]
    return {
        (split, score.measure, score.top): score
        for split, _, _, found in _scores(SETTINGS, sae, CELL, reading, splits)
        for score in found
    }


def ref_scores(sae, tables, reading, m):
    """Return the measures by split, from one dense matrix of activations."""
    dense, labels = [], []
    for table in tables:
        with torch.no_grad():
            activation = sae.preactivations(table.features[CELL])
        if reading == "described":
            activation = torch.where(activation >= activation.topk(6, dim=1).values[:, -1:], activation, 0.0)
        known = table.label >= 0
        dense.append(activation.relu()[known].numpy())
        labels.append(table.label[known].numpy())
    n_active = (dense[0] > 0).sum(0)
    mean = dense[0].sum(0) / np.maximum(n_active, 1) * (n_active > N_TOP)
    chosen = np.argsort(-mean, kind="stable")[: min(m, int((n_active > N_TOP).sum()))]
    found = {}
    for split, (activation, label) in zip(("train", "test"), zip(dense, labels, strict=True), strict=True):
        for name in ("sigma_label", "purity", "auroc"):
            found[split, name] = []
        for latent in chosen:
            best = [i for i in np.argsort(-activation[:, latent], kind="stable")[:N_TOP] if activation[i, latent] > 0]
            ids = label[best].tolist()
            if split == "train":
                found["class", latent] = max(ids, key=lambda i: (ids.count(i), -ids.index(i)))
            of_class = label == found["class", latent]
            if len(ids) > 1:
                found[split, "sigma_label"].append(np.std(ids, ddof=1))
            if ids:
                found[split, "purity"].append(np.mean([i == found["class", latent] for i in ids]))
            a, b = activation[of_class, latent][:, None], activation[~of_class, latent][None]
            found[split, "auroc"].append(((a > b) + 0.5 * (a == b)).mean())
    return found


@pytest.mark.parametrize("reading", ["described", "released"])
def test_the_stream_equals_one_dense_matrix(sae, tables, reading):
    found = scores(sae, tables, reading)
    for m in SETTINGS.top:
        expected = ref_scores(sae, tables, reading, m)
        for split in ("train", "test"):
            for name in ("sigma_label", "purity", *(["auroc"] if split == "test" else [])):
                score = found[split, name, m]
                assert score.n_latents == len(expected[split, name])
                assert score.value == pytest.approx(np.mean(expected[split, name]), rel=1e-6)
    assert ("train", "auroc", 5) not in found


def test_the_readings_differ(sae, tables):
    described, released = (scores(sae, tables, reading) for reading in ("described", "released"))
    assert described["train", "sigma_label", 20].value != released["train", "sigma_label", 20].value


@pytest.mark.parametrize("reading", ["described", "released"])
def test_batches_and_the_order_of_images_do_not_matter(sae, tables, reading, monkeypatch):
    whole = {key: score.value for key, score in scores(sae, tables, reading).items()}
    monkeypatch.setattr(codes_module, "_ROWS", 7)
    monkeypatch.setattr(codes_module, "_DENSE_VALUES", 7 * L)
    order = [torch.randperm(len(table), generator=torch.Generator().manual_seed(4)) for table in tables]
    mixed = [table.select(rows) for table, rows in zip(tables, order, strict=True)]
    again = {key: score.value for key, score in scores(sae, mixed, reading).items()}
    assert again == pytest.approx(whole, rel=1e-9)


def test_equally_active_images_are_ordered_by_key(sae, tables):
    train, test = tables
    train.features[CELL] = train.features[CELL][:1].expand(len(train), -1).clone()
    first = scores(sae, (train, test), "released")["train", "sigma_label", 5].value
    ids = train.label[train.label >= 0][:N_TOP]  # keys are in order
    assert first == pytest.approx(float(ids.double().std()))
    back = train.select(torch.arange(len(train)).flip(0))
    assert scores(sae, (back, test), "released")["train", "sigma_label", 5].value == pytest.approx(first)


def test_splits_that_cannot_be_scored_are_named():
    for change, pattern in (
        (lambda label: label.fill_(-1), "split 'test': none of 20 images has a 'species'"),
        (lambda label: label.fill_(2), "split 'test': the 20 images with a 'species' are of 1 class"),
        (lambda label: label[3:].fill_(-1), r"split 'test' has 3 images with a 'species'(.|\n)*n_top_images=2"),
    ):
        table = table_of(20, 0)
        table.label[:2] = torch.tensor([0, 1])
        change(table.label)
        with pytest.raises(EmptyClass, match=pattern):
            split_of(table, "test").require(N_TOP, "species")
    split_of(table_of(20, 0)).require(N_TOP, "species")


@pytest.fixture(scope="module")
def config(large_sae, tmp_path_factory):
    return LabelsEvaluation(
        experiment="tiny/labels", run=str(large_sae), target="group", top=(4, 8), n_top_images=2, n_permutations=20,
        n_renumberings=20, device="cpu", output=str(tmp_path_factory.mktemp("labels")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(config):
    (path,) = evaluate_labels(config)
    return read_result(path)


def test_the_result_has_both_readings_on_all_splits_and_walks_back_to_the_run(evaluated, config, large_sae):
    source = read_result(large_sae / "result.json")
    assert (evaluated.kind, evaluated.experiment) == ("sae_labels", source.experiment or "tiny/labels")
    assert evaluated.config["probe"] == source.config["probe"] and evaluated.config["run"] == source.run
    assert evaluated.config["labels"]["target"] == "group" and "output" not in evaluated.config["labels"]
    assert evaluated.artifacts["input/probes/sae"] == source.artifacts["probes/sae"]
    names = {(record.name, record.split) for record in evaluated.metrics}
    for reading in ("described", "released"):
        for split in ("train", "val", "test"):
            assert (f"sigma_label_{reading}", split) in names and (f"purity_{reading}@4", split) in names
            assert ((f"auroc_{reading}", split) in names) == (split != "train")
    for record in evaluated.metrics:
        assert (record.cell, record.target, record.probe) == (CELL, "group", "topk")
        assert record.n == (16 if record.split == "train" else 4)
        assert record.detail["n_latents"] <= 8 and "chance" in record.controls
        if record.name.startswith("sigma_label"):
            assert record.controls["chance"] == pytest.approx(0.3535, abs=0.05)  # two classes, two images
            assert record.detail["renumbered"]["low"] <= record.detail["renumbered"]["high"]


def test_it_prints_what_was_measured(evaluated):
    text = "\n".join(summary_lines(evaluated))
    assert f"{CELL}, test, released: " in text and "auroc_described = " in text and "@4" not in text


def test_the_same_evaluation_has_the_same_numbers(evaluated, config, tmp_path):
    (path,) = evaluate_labels(dataclasses.replace(config, output=str(tmp_path)))
    again = read_result(path)
    assert again.metrics == evaluated.metrics and again.run == evaluated.run


def test_a_table_shows_it_beside_a_published_number(evaluated):
    spec = TableSpec(
        title="sigma_label", metric="sigma_label_released", filter={"kind": "sae_labels", "split": "train"},
        rows=(TableAxis(field="tap"),), columns=TableAxis(field="timestep"), higher_is_better=False,
        published=(
            Published(where={"tap": "mid_block", "timestep": 20}, value=9.35, tolerance=1, source="T-A",
                      provenance="second hand"),
        ),
    )  # fmt: skip
    (row,) = fill_table([evaluated], spec).rows
    (record,) = (r for r in evaluated.metrics if (r.name, r.split) == (spec.metric, "train"))
    assert row.entries[0].value == record.value
    assert row.entries[0].comparison.delta == pytest.approx(record.value - 9.35)


def test_evaluations_with_other_settings_are_not_mixed(evaluated, config, tmp_path):
    (path,) = evaluate_labels(dataclasses.replace(config, n_top_images=3, output=str(tmp_path)))
    spec = TableSpec(
        title="t", metric="purity_released", filter={"split": "val"}, rows=(TableAxis(field="tap"),),
        columns=TableAxis(field="timestep"),
    )  # fmt: skip
    with pytest.raises(RunFailed, match=r"labels\.n_top_images: (2 and 3|3 and 2)"):
        fill_table([evaluated, read_result(path)], spec)


def test_only_the_asked_splits_and_readings_are_measured(config, tmp_path):
    some = dataclasses.replace(config, held_out=("val",), readings=("released",), output=str(tmp_path))
    (path,) = evaluate_labels(some)
    records = read_result(path).metrics
    assert {record.split for record in records} == {"train", "val"}
    assert all("released" in record.name for record in records)


def test_settings_that_do_not_fit_are_refused(config):
    def changed(**settings):
        return dataclasses.replace(config, **settings)

    for settings, pattern in (
        ({"top": (8, 4)}, r"top=\[8, 4\]"), ({"top": ()}, r"top=\[\]"), ({"n_top_images": 1}, "n_top_images=1"),
        ({"readings": ()}, "readings is empty"), ({"readings": ("released", "released")}, "readings has duplicates"),
        ({"n_permutations": 0}, "n_permutations=0"), ({"device": "gpu"}, "device=gpu"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=pattern):
            changed(**settings)
    with pytest.raises(UnknownName, match="'grup'"):
        evaluate_labels(changed(target="grup"))
    with pytest.raises(UnknownName, match="'color'"):
        evaluate_labels(changed(group_attribute="color"))
    with pytest.raises(ConfigError, match="held_out has the training split 'train'"):
        evaluate_labels(changed(held_out=("train",)))
    with pytest.raises(EmptyClass, match=r"split 'val' has 4 images(.|\n)*n_top_images=3"):
        evaluate_labels(changed(n_top_images=5))
    with pytest.raises(ConfigError, match="not the folder of a finished run"):
        evaluate_labels(changed(run="nowhere"))


def test_the_experiment_of_the_emoji_set_is_one_of_this_kind():
    found = load("emoji/labels/evaluate", ["run=runs/x"])
    assert isinstance(found, LabelsEvaluation) and (found.run, found.target) == ("runs/x", "group")
    assert found.top[-1] == 1000 and found.n_top_images == 10
    assert ChanceSettings().n_permutations == found.n_permutations
