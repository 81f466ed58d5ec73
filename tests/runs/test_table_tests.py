"""Entries of a table against their controls, from kept predictions: what ‡ means, and how often it is right."""

import csv
import dataclasses
import io

import numpy as np
import pytest
import torch

from diffprobe.analysis.statistics import benjamini_hochberg
from diffprobe.core.digest import digest_file
from diffprobe.core.result import MetricRecord, StartTime, make_result, predictions_file, write_result
from diffprobe.probes.predictions import KeptHead, Predictions, class_scores, save_predictions
from diffprobe.report.latex import render_latex
from diffprobe.report.pages.page import Page, render_page
from diffprobe.report.table import render_csv, render_markdown
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_spec import ControlColumn, Marks, TableAxis, TableSpec
from diffprobe.runs.kept_statistics import KeptPredictions
from diffprobe.runs.rescore import Bootstrap, ScoredRun, compare
from diffprobe.runs.table_tests import with_tests
from diffprobe.runs.tables import with_predictions

N, N_GROUPS, N_CLASSES = 600, 120, 8
"""Samples, groups and classes of a test split of the size of emoji's."""
KEYS = tuple(f"k{i:03}" for i in range(N))
GROUP = np.arange(N) % N_GROUPS
LABEL = GROUP % N_CLASSES  # of whole groups, as the category of a family
SPEC = TableSpec(
    title="What each cell knows", metric="balanced_accuracy", filter={"split": "test"}, exploratory=True,
    rows=(TableAxis(field="tap"),), columns=TableAxis(field="timestep"), marks=Marks(resamples=400, permutations=400),
    controls=(ControlColumn(name="random_weights", title="random weights"),),
)  # fmt: skip


def answers(rng, share, n_heads=1):
    """Draw predicted classes, (heads, samples), right for a share of them; luck is one third that of whole groups."""
    group = rng.normal(size=(n_heads, N_GROUPS))[:, GROUP] * 0.6
    luck = group + rng.normal(size=(n_heads, N)) * 0.8
    cut = torch.distributions.Normal(0, 1).icdf(torch.tensor(share)).item()
    wrong = (LABEL + rng.integers(1, N_CLASSES, size=(n_heads, N))) % N_CLASSES
    return np.where(luck < cut, LABEL, wrong)


def kept(predicted, *, controls=("none",), group="family", keys=KEYS, label=LABEL):
    """Return predictions of heads, one for each row of `predicted` and control in turn."""
    ids = torch.from_numpy(np.stack([label, GROUP], 1)).int()
    tensors, heads = {"ids": ids}, []
    for i, row in enumerate(predicted):
        logits = torch.nn.functional.one_hot(torch.from_numpy(row), N_CLASSES).float()
        tensors |= {f"{name}.{i}": part for name, part in class_scores(logits, ids[:, 0].long()).items()}
        cell = f"mid_block@t{i // len(controls)}:empty:mean"
        heads.append(
            KeptHead(kind="classes", probe="linear", cell=cell, target="label", control=controls[i % len(controls)])
        )
    values = {"label": tuple("abcdefgh"), "family": tuple(f"f{i}" for i in range(N_GROUPS))}
    return Predictions(split="test", keys=keys, values=values, heads=tuple(heads), tensors=tensors, group=group)


def accuracy_of(row):
    return float(np.mean([(row[c == LABEL] == c).mean() for c in range(N_CLASSES)]))


def run_of(predicted, name="run", control="none", seed=0, of_entry=None):
    """Return the result of a run whose heads are those of `kept`."""
    records = [
        MetricRecord(
            name="balanced_accuracy", value=accuracy_of(row), split="test", n=N, cell=f"mid_block@t{i}:empty:mean",
            target="label", probe="linear", controls=of_entry or {},
        )
        for i, row in enumerate(predicted)
    ]  # fmt: skip
    return make_result(
        run=name, experiment="toy", kind="classifier", config={"control": control, "seed": seed}, seeds={"run": seed},
        metrics=records, started_at=StartTime.now(),
    )  # fmt: skip


class InMemory(KeptPredictions):
    """Predictions that were not written."""

    def __init__(self, pairs):
        super().__init__({})
        self._runs = {id(run): ScoredRun(result=run, predictions=found) for run, found in pairs}

    def of(self, result, split):
        return self._runs[id(result)]


def filled(pairs, spec=SPEC):
    return with_tests(fill_table([run for run, _ in pairs], spec), InMemory(pairs))


def pair(rng, share, control_share, n=1):
    """Return a run of n cells and its random-weights control, with their predictions."""
    ours, theirs = answers(rng, share, n), answers(rng, control_share, n)
    return [
        (run_of(ours), kept(ours)), (run_of(theirs, "random", "random_weights"), kept(theirs)),
    ]  # fmt: skip


def shares(table):
    return np.mean([table.beats_controls(entry) is False for entry in table.entries()])


@pytest.mark.slow
def test_without_a_difference_the_mark_appears_as_often_as_stated():
    """400 cells that know what their control knows: at least 95 % bear the mark, within two standard errors."""
    n = 400
    share = shares(filled(pair(np.random.default_rng(0), 0.5, 0.5, n)))
    assert share >= 0.95 - 2 * (0.05 * 0.95 / n) ** 0.5 and share < 1


@pytest.mark.slow
def test_a_planted_difference_is_found_with_the_stated_power():
    """Of 600 samples in 120 groups, 15 points at 50 % are found in 97 %, ten in 72 %, five in a quarter."""
    n, rng = 400, np.random.default_rng(1)
    for gain, power in ((0.15, 0.97), (0.10, 0.72), (0.05, 0.25)):
        found = 1 - shares(filled(pair(rng, 0.5 + gain, 0.5, n)))
        assert abs(found - power) < 4 * (power * (1 - power) / n) ** 0.5, gain


def test_scores_without_knowledge_bear_the_mark_at_the_stated_rate():
    """Of 200 cells whose answers have nothing to do with the labels, Benjamini-Hochberg leaves none or few unmarked."""
    rng = np.random.default_rng(2)
    guesses = rng.integers(N_CLASSES, size=(200, N_GROUPS))[:, GROUP]  # whole groups alike: no 600 independent answers
    table = filled([(run_of(guesses, of_entry={"chance": 0.125}), kept(guesses))])
    nulls = [entry.tests.null for entry in table.entries()]
    assert {null.n_tests for null in nulls} == {200} and {null.of for null in nulls} == {"labels permuted by group"}
    assert np.mean([null.p <= 0.05 for null in nulls]) < 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    assert [null.p_adjusted for null in nulls] == list(benjamini_hochberg([null.p for null in nulls]).adjusted)
    assert shares(table) >= 0.99  # though 90 of them lie above chance
    assert np.mean([entry.value > 0.125 for entry in table.entries()]) > 0.3


def test_the_difference_is_that_of_rescore_and_averages_seeds():
    rng = np.random.default_rng(3)
    seeds = [pair(rng, 0.6, 0.5) for _ in range(3)]
    (one,) = filled(seeds[0]).entries()
    (found,) = one.tests.differences
    runs = [ScoredRun(result=run, predictions=kept_) for run, kept_ in seeds[0]]
    settings = Bootstrap(resamples=400, method="expanded")
    (record,) = compare(*runs, metrics=["balanced_accuracy"], bootstrap=settings)
    assert [found.value, found.low, found.high] == pytest.approx([record.value, *record.detail["interval"]])
    assert (found.n_groups, found.unit) == (N_GROUPS, "values of 'family'")
    several = [
        (dataclasses.replace(run, run=f"{run.run}-{i}", seeds={"run": i}, config={**run.config, "seed": i}), kept_)
        for i, made in enumerate(seeds)
        for run, kept_ in made
    ]
    (mean,) = filled(several).entries()
    (averaged,) = mean.tests.differences
    assert mean.n_seeds == 3 and averaged.value == pytest.approx(mean.value - mean.controls["random_weights"])
    assert averaged.high - averaged.low < found.high - found.low


def test_a_control_kept_with_the_run_is_paired_too():
    rng = np.random.default_rng(4)
    both = np.stack([answers(rng, 0.6)[0], answers(rng, 0.2)[0]])
    run = run_of(both[:1], of_entry={"shuffled_labels": accuracy_of(both[1]), "chance": 0.125})
    (entry,) = filled([(run, kept(both, controls=("none", "shuffled_labels")))]).entries()
    assert [one.control for one in entry.tests.differences] == ["shuffled_labels"]
    assert set(entry.tests.null_of) == {"shuffled_labels", "chance"} and not entry.tests.points
    assert entry.tests.null.p == entry.tests.null.smallest_p == pytest.approx(1 / 401)


def test_recorded_nulls_of_a_direction_give_its_p():
    nulls = {"random_direction": {"p": 0.01, "smallest_p": 0.0099, "quantile": 1.0, "mean": 0.5}}
    nulls["shuffled_labels"] = {"p": 0.2, "smallest_p": 0.05, "quantile": 0.8, "mean": 0.5}
    rows = answers(np.random.default_rng(5), 0.6)
    run = run_of(rows, of_entry={"random_direction": 0.5, "shuffled_labels": 0.5})
    run = dataclasses.replace(
        run, metrics=tuple(dataclasses.replace(one, detail={"control_nulls": nulls}) for one in run.metrics)
    )
    table = filled([(run, kept(rows))])
    (entry,) = table.entries()
    assert (entry.tests.null.p, entry.tests.null.smallest_p, entry.tests.null.quantile) == (0.2, 0.05, 0.8)
    assert entry.value > max(entry.controls.values()) and table.beats_controls(entry) is False


def test_other_samples_labels_or_groups_are_not_paired():
    (one, other) = pair(np.random.default_rng(6), 0.7, 0.3)
    rows = answers(np.random.default_rng(6), 0.3)
    for changes in ({"keys": tuple(f"x{i}" for i in range(N))}, {"label": (LABEL + 1) % 8}, {"group": None}):
        (entry,) = filled([one, (other[0], kept(rows, **changes))]).entries()
        assert not entry.tests.differences and "same samples" in entry.tests.points["random_weights"]


def test_a_table_says_of_what_predictions_are_missing_and_every_format_has_the_tests(tmp_path):
    """A hostile name of a run cannot leave its place."""
    hostile = "a|b <script>\\x_y"
    folders = []
    for i, (run, predictions) in enumerate(pair(np.random.default_rng(7), 0.7, 0.4)):
        folder = tmp_path / str(i)
        path = folder / predictions_file("test")
        save_predictions(predictions, path)
        record = dataclasses.replace(run.metrics[0], controls={} if i else {"chance": 0.125, "pca": 0.9})
        result = dataclasses.replace(
            run, run=hostile if i else run.run, metrics=(record,), artifacts={path.name: digest_file(path)}
        )
        write_result(result, folder / "result.json")
        folders.append((result, folder))
    results, paths = [result for result, _ in folders], [folder for _, folder in folders]
    plain = fill_table(results, SPEC)
    table = with_predictions(plain, results, paths)
    text = " ".join(render_markdown(table).split())
    assert "95% interval" in text and "400 resamples of 120 values of 'family'" in text and "for 1 entries" not in text
    assert "Point estimates alone are compared for pca" in text and table.beats_controls(table.entries()[0]) is False
    (row,) = csv.DictReader(io.StringIO(render_csv(table)))
    assert row["difference_from"] == "random_weights" and row["compared_by_point"] == "pca"
    assert 0 < float(row["difference_low"]) < float(row["difference"]) < float(row["difference_high"])
    assert (row["below_control"], row["n_tests"], row["p_adjusted"]) == ("True", "1", row["p"])
    page = render_page(Page(title="t", lead="l", facts=(), results=tuple(results), tables=(SPEC,), filled=(table,)))
    assert "difference from random weights" in page and "95% interval" in page
    (paths[1] / predictions_file("test")).unlink()
    table = with_predictions(plain, results, paths)
    markdown, latex = render_markdown(table), render_latex(table)
    assert "random weights" in markdown and "is missing" in markdown and "<script>" not in markdown
    assert r"\textless{}script\textgreater{}" in latex and str(tmp_path) not in markdown
    none = with_predictions(plain, [dataclasses.replace(run, artifacts={}) for run in results], paths)
    assert "point estimates are compared: there are no kept predictions" in " ".join(render_markdown(none).split())
    (row,) = csv.DictReader(io.StringIO(render_csv(none)))
    assert set(row["compared_by_point"].split()) == {"chance", "pca", "random_weights"}


def test_unranked_values_have_no_tests():
    spec = dataclasses.replace(SPEC, ranked=False)
    table = filled(pair(np.random.default_rng(8), 0.5, 0.5), spec)
    assert table.entries()[0].tests is None and "‡" not in render_markdown(table)
