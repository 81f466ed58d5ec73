"""Metrics as forms that are resampled all at once equal the metrics evaluated one resample at a time."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.statistics import WeightStatistic, evaluate
from diffprobe.core.errors import ConfigError
from diffprobe.probes.predictions import KeptHead, Predictions, class_scores
from diffprobe.runs.rescore_forms import form_of, is_higher_better, label_form_of
from diffprobe.runs.rescore_metrics import Scored, measures

N = 60
RNG = np.random.default_rng(0)
ROWS = torch.arange(3, N)


def scored(kind, n_classes=4):
    ids = torch.from_numpy(RNG.integers(n_classes, size=(N, 1)))
    ids[7] = -1
    values = {"label": tuple(f"c{i}" for i in range(n_classes))}
    if kind == "classes":
        logits = torch.from_numpy(RNG.normal(size=(N, n_classes))) + torch.nn.functional.one_hot(ids[:, 0] % n_classes)
        kept = class_scores(logits, ids[:, 0])
        head = KeptHead(kind="classes", probe="linear", cell="mid", target="label")
    elif kind == "axis":
        kept = {"scores": torch.from_numpy(RNG.normal(size=(N, 3)).round(1))}
        head = KeptHead(
            kind="axis", probe="ridge", cell="mid", target="label", draws=3, positive_ids=(0,), negative_ids=(1, 2)
        )
    else:
        names = ("n_rows", "residual", "square", "active")
        kept = {name: torch.from_numpy(RNG.integers(1, 9, size=N)) for name in names}
        kept["square"] = kept["square"] * 9.0
        head = KeptHead(kind="rows", probe="topk", cell=None, shift=3.0)
    tensors = {"ids": ids, **{f"{name}.0": part for name, part in kept.items()}}
    keys = tuple(f"k{i:02}" for i in range(N))
    return Scored(Predictions(split="test", keys=keys, values=values, heads=(head,), tensors=tensors), 0)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ("classes", "axis", "rows") for name in measures(kind)]
)
def test_a_form_gives_the_metric_of_each_resample(kind, name):
    head = scored(kind)
    rows = ROWS[ROWS < len(head.rows)]
    form = form_of(head, name, rows)
    for _ in range(5):
        drawn = RNG.integers(len(rows), size=len(rows))
        expected = measures(kind)[name].value(head, rows[torch.from_numpy(drawn)])
        assert evaluate(form, drawn) == pytest.approx(expected, rel=1e-6)
    assert isinstance(form, WeightStatistic) == (name == "auroc")


def test_classes_that_a_resample_lacks_are_left_out():
    head = scored("classes")
    two = (head.truth < 2).nonzero().flatten().numpy()
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc"):
        form = form_of(head, name, torch.arange(len(head.rows)))
        expected = measures("classes")[name].value(head, torch.from_numpy(two))
        assert evaluate(form, two) == pytest.approx(expected, rel=1e-6), name


@pytest.mark.parametrize(("kind", "name"), [("classes", "accuracy"), ("classes", "log_loss"), ("axis", "auroc")])
def test_a_form_of_labels_gives_the_metric_of_permuted_labels(kind, name):
    head = scored(kind)
    rows = ROWS[ROWS < len(head.rows)]
    labels = head.truth[rows].numpy()
    permuted = np.stack([labels, RNG.permutation(labels)])
    found = label_form_of(head, name, rows)(permuted)
    everyone = torch.arange(len(rows))
    assert found[0] == pytest.approx(measures(kind)[name].value(head, rows))
    other = head.relabelled(rows, torch.from_numpy(permuted[1]))
    assert found[1] == pytest.approx(measures(kind)[name].value(other, everyone)) and found[0] != found[1]
    assert (head.truth[rows].numpy() == labels).all()


def test_what_has_no_form_of_labels_is_named():
    with pytest.raises(ConfigError, match="an autoencoder does not have"):
        label_form_of(scored("rows"), "fvu", ROWS)
    with pytest.raises(ConfigError, match=r"40 classes(.|\n)*accuracy"):
        label_form_of(scored("classes", n_classes=40), "log_loss", ROWS)
    assert is_higher_better("accuracy") and is_higher_better("auroc") and not is_higher_better("log_loss")
