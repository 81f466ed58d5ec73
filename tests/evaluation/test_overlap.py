"""The overlap of classes beside a confusion, on a tiny model, and the confusion of a finished classifier."""

from pathlib import Path

import pytest
import torch

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.core.result import predictions_file, read_result
from diffprobe.evaluation.overlap import classifier_confusion, images_of_classes, names_of_classes, own_confusion
from diffprobe.evaluation.overlap_settings import OverlapRule
from diffprobe.evaluation.score import score
from diffprobe.evaluation.score_candidates import questions
from diffprobe.evaluation.score_settings import CandidateRule, ScoreConfig, ScoredBackbone
from diffprobe.probes.predictions import KeptHead, Predictions, save_predictions
from tests.evaluation.score_world import COLOURS, encoded


def kept(folder: Path, cells: tuple[str, ...] = ("a",)) -> Path:
    """Write the predictions of a classifier of three colours and one sample without a colour."""
    truth, chosen = torch.tensor([0, 0, 1, 2, -1]), torch.tensor([0, 2, 1, 2, 0])
    heads = tuple(KeptHead(kind="classes", probe="linear", cell=cell, target="colour") for cell in cells)
    tensors = {"ids": torch.stack([torch.zeros(5, dtype=torch.int64), truth], 1).int()}
    for number in range(len(cells)):
        tensors |= {f"predicted.{number}": chosen.short(), f"scores.{number}": torch.zeros(5, 3).half()}
    found = Predictions(
        split="test",
        keys=tuple("abcde"),
        values={"label": ("x",), "colour": ("red", "green", "blue")},
        heads=heads,
        tensors=tensors,
    )
    folder.mkdir(exist_ok=True)
    save_predictions(found, folder / predictions_file("test"))
    return folder


def test_the_confusion_of_a_classifier_is_in_the_order_of_the_classes(tmp_path: Path) -> None:
    found, cell = classifier_confusion(kept(tmp_path / "run"), None, "colour", ["blue", "green", "red"])
    assert cell == "a" and found.tolist() == [[1, 0, 0], [0, 1, 0], [0.5, 0, 0.5]]


def test_another_classifier_is_refused(tmp_path: Path) -> None:
    run = kept(tmp_path / "run")
    with pytest.raises(ConfigError, match="grey"):
        classifier_confusion(run, None, "colour", ["grey", "red"])
    with pytest.raises(ConfigError, match="shape"):
        classifier_confusion(run, None, "shape", ["cat"])
    with pytest.raises(ConfigError, match="predictions-test"):
        classifier_confusion(tmp_path, None, "colour", ["red"])
    two = kept(tmp_path / "two", ("a", "b"))
    with pytest.raises(ConfigError, match="2 cells"):
        classifier_confusion(two, None, "colour", ["red"])
    assert classifier_confusion(two, "b", "colour", ["red"])[1] == "b"
    with pytest.raises(UnknownName, match="'c'"):
        classifier_confusion(two, "c", "colour", ["red"])


def test_the_own_confusion_counts_each_set_of_noise() -> None:
    (question,) = questions(CandidateRule(kind="classes", attribute="colour", template="{}"), encoded(), seed=0)
    right = torch.full((20, 4), 2.0).scatter(1, question.right[:, None], 1.0)
    first = torch.tensor([[0.0, 1, 1, 1]]).expand(20, -1)
    found = own_confusion(question, [right, first])
    expected = torch.eye(4).double() / 2
    expected[:, 0] += 0.5
    assert torch.equal(found, expected)


def test_images_are_of_their_class_and_enough() -> None:
    world = encoded()
    names = names_of_classes(world, "colour")
    assert names == sorted(COLOURS)
    rows = images_of_classes(world.table, "colour", names, 2, seed=0)
    assert [world.table.attributes[row]["colour"] for row in rows] == [name for name in names for _ in range(2)]
    with pytest.raises(EmptyClass, match="has 5"):
        images_of_classes(world.table, "colour", names, 6, seed=0)


@pytest.mark.slow
def test_a_run_records_matrix_and_link(tiny_sd: Path, tiny_shards: Path, tmp_path: Path) -> None:
    config = ScoreConfig(
        experiment="tiny/overlap", backbone=ScoredBackbone(path=str(tiny_sd), device="cpu"),
        data=DataConfig(path=str(tiny_shards)), n_timesteps=2, random_denoiser=False, output=str(tmp_path),
        candidates=CandidateRule(kind="classes", attribute="colour", template="a {} circle"),
        overlap=OverlapRule(images=1, n_permutations=10),
    )  # fmt: skip
    (accuracy, whole, *link) = read_result(score(config)).metrics
    assert (accuracy.name, whole.name) == ("class_accuracy_colour", "class_overlap_colour")
    n, matrix = len(whole.detail["classes"]), torch.tensor(whole.detail["overlap"])
    assert matrix.shape == (n, n) and matrix.diagonal().tolist() == [1.0] * n and 0 < whole.value <= 1
    assert whole.detail["confusion_of"] == "scores" and torch.tensor(whole.detail["confusion"]).sum(1).max() <= 1 + 1e-6
    assert bool(link) != ("link" in whole.detail)
    if link:
        assert -1 <= link[0].value <= 1 and "p" in link[0].detail
