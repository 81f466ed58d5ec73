"""The interval of a chosen cell: that of `selected_interval` on kept predictions, and why there may be none."""

import dataclasses

import numpy as np
import pytest

from diffprobe.analysis.statistics import mean_of, selected_interval
from diffprobe.report.default_table import default_tables
from diffprobe.report.table_data import fill_table
from diffprobe.runs import kept_statistics
from diffprobe.runs.choice_interval import with_intervals
from diffprobe.runs.kept_statistics import KeptPredictions
from diffprobe.runs.rescore import load_run
from tests.runs.test_rescore import classifier, direction, trained
from tests.toy import WIDTHS

SPLITS = ("val", "test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return trained(classifier(), tmp_path_factory.mktemp("choice") / "run", "classifier")


def filled(folder, metric="accuracy"):
    """Return the table of the label, and the folders of its results."""
    run = load_run(folder).result
    (spec,) = [one for one in default_tables([run], {"metric": metric}).specs if one.filter["target"] == "label"]
    return fill_table([run], spec), {id(run): folder}


def test_the_interval_is_that_of_the_kept_predictions(folder):
    table, folders = filled(folder)
    (chosen,) = with_intervals(table, KeptPredictions(folders)).chosen
    sides = []
    for split in SPLITS:
        predictions = load_run(folder, split).predictions
        truth = predictions.truth(0)
        known = truth >= 0
        heads = {h.cell: i for i, h in enumerate(predictions.heads) if (h.target, h.control) == ("label", "none")}
        hits = [(predictions.of("predicted", heads[cell]) == truth)[known].numpy() for cell in WIDTHS]
        keys = [key for key, is_known in zip(predictions.keys, known.tolist(), strict=True) if is_known]
        sides += [[mean_of(hit.astype(np.float64)) for hit in hits], keys]
    expected = selected_interval(*sides)
    assert (chosen.interval.low, chosen.interval.high) == (expected.interval.low, expected.interval.high)
    assert chosen.test.value == expected.interval.estimate and chosen.interval.optimism == expected.optimism


def regrouped(monkeypatch, group, values):
    """Let runs be read with another group, whose name for each sample is given by split and number."""
    plain = kept_statistics.load_run

    def load(path, split="test"):
        run = plain(path, split)
        found = dataclasses.replace(run.predictions, group=group)
        names = tuple(values(split, i) for i in range(len(run.predictions.values[group])))
        return dataclasses.replace(
            run, predictions=dataclasses.replace(found, values={**found.values, group: names})
        )  # fmt: skip

    monkeypatch.setattr(kept_statistics, "load_run", load)


def test_groups_are_resampled_whole_and_one_in_both_splits_gives_no_interval(folder, monkeypatch):
    table, folders = filled(folder)
    with monkeypatch.context() as patch:
        regrouped(patch, "style", lambda split, i: f"{split}-{i}")
        (chosen,) = with_intervals(table, KeptPredictions(folders)).chosen
        assert (chosen.interval.unit, chosen.interval.n_groups) == ("values of 'style'", 3)
    with monkeypatch.context() as patch:  # a planted leak: families of val are families of test
        regrouped(patch, "style", lambda split, i: f"family {i}")
        (chosen,) = with_intervals(table, KeptPredictions(folders)).chosen
        assert chosen.interval is None and "3 groups are in both splits" in chosen.no_interval


def test_other_samples_and_metrics_have_a_reason(folder, monkeypatch, tmp_path):
    table, folders = filled(folder)
    spec = dataclasses.replace(table.spec, metric="nothing")
    (chosen,) = with_intervals(dataclasses.replace(table, spec=spec), KeptPredictions(folders)).chosen
    assert chosen.interval is None and "'nothing'" in chosen.no_interval
    other = trained(direction(), tmp_path / "direction", "direction")
    (chosen,) = with_intervals(table, KeptPredictions(dict.fromkeys(folders, other))).chosen
    assert chosen.interval is None and "no head with" in chosen.no_interval
