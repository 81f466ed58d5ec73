"""Kept predictions give the recorded metrics again, new metrics, intervals over groups, and paired differences."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from diffprobe.analysis.statistics import bootstrap_interval
from diffprobe.config.schema import TrainerConfig
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, EmptyClass, RunFailed, SchemaError, UnknownName
from diffprobe.core.registry import probes
from diffprobe.core.result import StartTime, make_result, predictions_file, write_result
from diffprobe.probes.classifier.linear import Config as LinearConfig
from diffprobe.probes.predictions import save_predictions
from diffprobe.probes.sae.topk import Config as SaeConfig
from diffprobe.runs.rescore import Bootstrap, Permutations, ScoredRun, compare, load_run, not_kept, parse_where, rescore
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.direction import DirectionModule
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import CLASSES, STYLES, WIDTHS, Toy

MID, UP = WIDTHS
SETTINGS = TrainerConfig(accelerator="cpu", enable_progress_bar=False, max_epochs=2, learning_rate=0.02)


def classifier(seed=0):
    classes = {"label": CLASSES, "style": STYLES}
    return ClassifierModule("linear", LinearConfig(), widths=WIDTHS, classes=classes, settings=SETTINGS, seed=seed)


def direction():
    config = probes("direction").load("ridge").Config(positive="noto", negative="twemoji", n_random=20, n_shuffles=3)
    axes = config.axes([MID], {"style": STYLES})
    return DirectionModule("ridge", config, axes=axes, widths={MID: 12}, settings=SETTINGS)


def autoencoder():
    config = SaeConfig(k=3, n_latents=32, dead_window=60, k_aux=4)
    return SparseAutoencoderModule(config, cell=MID, d_in=12, settings=SETTINGS)


def trained(module, folder, kind):
    """Train on toy features and write what a run writes."""
    with quiet():
        trainer = make_trainer(SETTINGS, run_dir=folder)
        if any(parameter.requires_grad for parameter in module.parameters()):
            trainer.fit(module, datamodule=Toy())
        trainer.validate(module, datamodule=Toy(), verbose=False)
        trainer.test(module, datamodule=Toy(), verbose=False)
    assert set(module.predictions) == {"val", "test"}
    artifacts = {}
    for split, predictions in module.predictions.items():
        save_predictions(predictions, folder / predictions_file(split))
        artifacts[predictions_file(split)] = digest_file(folder / predictions_file(split))
    records = [record for split in module.scores for record in module.records(split)]
    result = make_result(
        run=folder.name, experiment="", kind=kind, config={}, seeds={}, metrics=records, artifacts=artifacts,
        started_at=StartTime.now(),
    )  # fmt: skip
    write_result(result, folder / "result.json")
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("rescore")
    made = {"classifier": classifier(), "again": classifier(seed=1), "direction": direction(), "sae": autoencoder()}
    return {name: trained(module, root / name, name.replace("again", "classifier")) for name, module in made.items()}


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(("name", "tolerance"), [("classifier", 0), ("direction", 1e-6), ("sae", 1e-6)])
def test_the_recorded_metrics_come_out_again(runs, name, split, tolerance):
    run = load_run(runs[name], split)
    recorded = {
        (record.name, record.cell, record.target): record for record in run.result.metrics if record.split == split
    }
    found = rescore(run)
    assert len(found) == len(recorded) - len(not_kept(run))
    for record in found:
        before = recorded[record.name, record.cell, record.target]
        assert record.value == pytest.approx(before.value, rel=tolerance, abs=0), record.name
        assert (record.n, record.probe) == (before.n, before.probe)
        if name != "sae":  # controls are kept in 16 bits
            assert record.controls == pytest.approx(before.controls, abs=1e-3 if tolerance else 0)


def test_new_metrics_are_those_of_scikit_learn(runs):
    run = load_run(runs["classifier"])
    names = ["macro_f1", "log_loss", "auroc", "average_precision"]
    found = {r.name: r for r in rescore(run, metrics=names, where={"cell": MID, "target": "label"})}
    scores, head = run.predictions.of("scores", 0).double(), run.predictions.heads[0]
    assert (head.cell, head.target, head.control) == (MID, "label", "none")
    known = run.predictions.truth(0) >= 0
    truth, scores = run.predictions.truth(0)[known].numpy(), scores[known].exp().numpy()
    scores = scores / scores.sum(1, keepdims=True)
    one_hot = np.eye(4)[truth]
    assert found["macro_f1"].value == pytest.approx(sk.f1_score(truth, scores.argmax(1), average="macro"), abs=1e-6)
    assert found["log_loss"].value == pytest.approx(sk.log_loss(truth, scores, labels=range(4)), abs=1e-3)
    assert found["auroc"].value == pytest.approx(sk.roc_auc_score(truth, scores, multi_class="ovr"), abs=1e-3)
    expected = sk.average_precision_score(one_hot, scores, average="macro")
    assert found["average_precision"].value == pytest.approx(expected, abs=2e-3)
    shares = one_hot.mean(0)
    assert found["log_loss"].controls["chance"] == pytest.approx(-(shares * np.log(shares)).sum())
    constant = np.full(len(truth), shares.argmax())
    chance = sk.f1_score(truth, constant, average="macro", labels=np.unique(truth))
    assert found["macro_f1"].controls["chance"] == pytest.approx(chance)
    assert found["average_precision"].controls["chance"] == pytest.approx(0.25)


def test_one_line_per_value_of_an_attribute(runs):
    run = load_run(runs["classifier"])
    found = rescore(run, metrics=["accuracy"], where={"cell": UP, "target": "label"}, per="style")
    assert [record.detail["per"]["style"] for record in found] == list(STYLES)
    whole = rescore(run, metrics=["accuracy"], where={"cell": UP, "target": "label"})[0]
    assert sum(record.n for record in found) == whole.n
    assert sum(record.n * record.value for record in found) == pytest.approx(whole.n * whole.value)
    with pytest.raises(UnknownName, match=r"'styles'(.|\n)*style"):
        rescore(run, per="styles")


def test_an_interval_resamples_groups(runs):
    run = load_run(runs["classifier"])
    where = {"cell": UP, "target": "style"}
    single, grouped = (
        rescore(run, metrics=["accuracy"], where=where, bootstrap=Bootstrap(resamples=200, group_by=group))[0]
        for group in (None, "style")
    )
    assert single.detail["bootstrap"]["n_groups"] == single.n and grouped.detail["bootstrap"]["n_groups"] == 3
    low, high = single.detail["interval"]
    assert low < single.value < high and high - low == pytest.approx(4 * np.sqrt(0.25 / single.n), rel=0.4)
    again = rescore(run, metrics=["accuracy"], where=where, bootstrap=Bootstrap(resamples=200))[0]
    assert again.detail == single.detail
    named = dataclasses.replace(run, predictions=dataclasses.replace(run.predictions, group="style"))  # by the data set
    assert rescore(named, metrics=["accuracy"], where=where, bootstrap=Bootstrap(resamples=200))[0] == grouped
    alone = Bootstrap(resamples=200, group_by="sample")
    assert rescore(named, metrics=["accuracy"], where=where, bootstrap=alone)[0] == single
    drawn = Bootstrap(resamples=200)
    paired = compare(named, load_run(runs["again"]), metrics=["accuracy"], where=where, bootstrap=drawn)[0]
    assert paired.detail["bootstrap"]["group_by"] == "style"
    with pytest.raises(RunFailed, match=r"samples have no value of 'label'.*"):
        rescore(run, metrics=["accuracy"], where=where, bootstrap=Bootstrap(group_by="label"))
    with pytest.raises(ConfigError, match="seed=-1"):
        Bootstrap(seed=-1)


def test_paired_differences_of_runs_and_of_heads(runs):
    one, other = load_run(runs["classifier"]), load_run(runs["again"])
    drawn = Bootstrap(resamples=200)
    ours, theirs = (rescore(run, metrics=["accuracy"]) for run in (one, other))
    for record, a, b in zip(compare(one, other, metrics=["accuracy"], bootstrap=drawn), ours, theirs, strict=True):
        assert record.value == a.value - b.value and record.detail["difference"] == [a.value, b.value]
        assert record.detail["interval"][0] <= record.value <= record.detail["interval"][1]
        assert record.detail["against"]["run"] == "again" and record.detail["against"]["cell"] == record.cell
    heads = compare(one, one, metrics=["accuracy"], where={"cell": MID}, other_where={"cell": UP}, bootstrap=drawn)
    assert [(record.target, record.detail["against"]["cell"]) for record in heads] == [("label", UP), ("style", UP)]
    control = compare(one, one, metrics=["accuracy"], other_where={"control": "shuffled_labels", "cell": UP})
    assert {record.detail["against"]["control"] for record in control} == {"shuffled_labels"}
    with pytest.raises(RunFailed, match="compared with itself"):
        compare(one, one)
    right = [one.predictions.of("predicted", head) == one.predictions.truth(head) for head in (0, 4)]
    known = one.predictions.truth(0) >= 0  # heads 0 and 4: the label from both cells
    gain = (right[0].double() - right[1].double())[known].numpy()
    expected = bootstrap_interval(lambda rows: float(gain[rows].mean()), range(len(gain)), n_resamples=200)
    assert heads[0].detail["interval"] == pytest.approx([expected.low, expected.high])


def test_a_comparison_of_other_samples_or_labels_is_refused(runs):
    one = load_run(runs["classifier"])
    with pytest.raises(RunFailed, match=r"different samples(.|\n)*'test/0'(.|\n)*'val/0'"):
        compare(one, load_run(runs["classifier"], "val"))
    predictions = one.predictions
    ids = predictions.tensors["ids"].clone()
    ids[3, 0] = (ids[3, 0] + 1) % 4
    changed = dataclasses.replace(predictions, tensors={**predictions.tensors, "ids": ids})
    with pytest.raises(RunFailed, match=rf"1 of 21 labels differ, for example '{predictions.keys[3]}'"):
        compare(one, ScoredRun(result=one.result, predictions=changed), metrics=["accuracy"])
    renamed = dataclasses.replace(predictions, values={**predictions.values, "label": ("a", "b", "c", "d")})
    with pytest.raises(RunFailed, match="names of its classes differ"):
        compare(one, ScoredRun(result=one.result, predictions=renamed), metrics=["accuracy"])
    with pytest.raises(RunFailed, match=r"0 counterparts(.|\n)*--against-where"):
        compare(one, load_run(runs["direction"]), metrics=["auroc"], where={"target": "label"})


def test_what_cannot_be_computed_is_refused(runs):
    run = load_run(runs["classifier"])
    with pytest.raises(UnknownName, match=r"'acuracy'(.|\n)*accuracy"):
        rescore(run, metrics=["acuracy"])
    with pytest.raises(RunFailed, match=r"no head with(.|\n)*cell=nowhere(.|\n)*mid_block"):
        rescore(run, where={"cell": "nowhere"})
    with pytest.raises(UnknownName, match=r"'kell'(.|\n)*cell"):
        parse_where(["kell=1"])
    with pytest.raises(ConfigError, match="'cell'"):
        parse_where(["cell"])
    with pytest.raises(EmptyClass, match="1 class"):
        rescore(run, metrics=["auroc"], where={"target": "style"}, per="style")
    many = dataclasses.replace(run.predictions, tensors={**run.predictions.tensors, "top.0": torch.zeros(21, 16)})
    with pytest.raises(ConfigError, match=r"only the scores of the 16 most(.|\n)*up to 32"):
        rescore(ScoredRun(result=run.result, predictions=many), metrics=["auroc"], where={"target": "label"})


def test_a_run_without_its_predictions_is_refused(runs, tmp_path):
    with pytest.raises(RunFailed, match=r"no result.json"):
        load_run(tmp_path)
    result = load_run(runs["sae"]).result
    folder = tmp_path / "run"
    write_result(result, folder / "result.json")
    with pytest.raises(RunFailed, match=r"predictions-test.safetensors' is missing"):
        load_run(folder)
    (folder / "predictions-test.safetensors").write_bytes(b"other")
    with pytest.raises(SchemaError, match=r"digest"):
        load_run(folder)
    write_result(dataclasses.replace(result, artifacts={}), folder / "result.json")
    with pytest.raises(RunFailed, match=r"kept no predictions(.|\n)*diffprobe train"):
        load_run(folder / "result.json")
    names = {"members/k=1/predictions-test.safetensors": "0" * 64}
    write_result(dataclasses.replace(result, artifacts=names), folder / "result.json")
    with pytest.raises(RunFailed, match=r"a grid(.|\n)*diffprobe rescore .*members/k=1"):
        load_run(folder)


def test_null_distributions_keep_groups_and_count_tests(runs):
    run = load_run(runs["classifier"])
    found = rescore(run, metrics=["accuracy", "balanced_accuracy", "log_loss", "macro_f1"], null=Permutations(n=99))
    assert len(found) == 4 * 4
    for record in found:
        null = record.detail["null"]
        assert null["n_tests"] == 16 and null["p"] >= null["smallest_p"] == 0.01 and null["p_adjusted"] >= null["p"]
        assert null["group_by"] == "sample" and null["groups_permuted_within"] == 0
    label = {r.name: r for r in found if (r.cell, r.target) == (MID, "label")}
    assert label["accuracy"].detail["null"]["mean"] == pytest.approx(0.25, abs=0.06)
    for record in label.values():  # of log loss, small values speak against the null hypothesis
        better = (record.detail["null"]["mean"] - record.value) * (1 if record.name == "log_loss" else -1)
        assert (better > 0) == (record.detail["null"]["p"] < 0.5), record.name
    axis = rescore(load_run(runs["direction"]), null=Permutations(n=199, seed=2))[0]
    assert axis.detail["null"]["mean"] == pytest.approx(0.5, abs=0.05)
    with pytest.raises(EmptyClass, match="all permutations are alike"):
        rescore(run, metrics=["accuracy"], where={"target": "style"}, per="style", null=Permutations(n=9))
    whole = Permutations(n=99, group_by="style")
    within = rescore(run, metrics=["accuracy"], where={"target": "label", "cell": MID}, null=Permutations(n=9))
    assert within[0].detail["null"]["groups_permuted_whole"] == within[0].n
    by_style = rescore(run, metrics=["accuracy"], where={"target": "style", "cell": MID}, null=whole)[0].detail["null"]
    assert by_style["smallest_p"] == pytest.approx(1 / 6) and by_style["groups_permuted_whole"] == 3  # 3! permutations
    with pytest.raises(ConfigError, match=r"an autoencoder does not have(.|\n)*random_weights"):
        rescore(load_run(runs["sae"]), null=Permutations(n=9))
    with pytest.raises(ConfigError, match="n=0"):
        Permutations(n=0)
