"""The clusters of a first stage against labels: planted agreement, the controls, collapse, and runs that do not fit."""

import dataclasses
from pathlib import Path

import pytest
import torch

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import UnknownName, WeightsMismatch
from diffprobe.core.result import MetricRecord, read_result
from diffprobe.evaluation import clusters as evaluation
from diffprobe.evaluation.clusters import evaluate_clusters, k_means
from diffprobe.evaluation.clusters_settings import ClustersEvaluation
from diffprobe.generative.self_guided import SelfGuided, SelfGuidedTraining
from diffprobe.generative.sinkhorn_prototypes import PrototypeSettings
from tests.toy_generative import toy_trainings

CONTROLS = {"kmeans_features", "kmeans_random_network", "kmeans_pixels", "shuffled_labels"}


def saved(tmp_path: Path, shards: Path, teacher: Path, *, random: bool = False, collapsed: bool = False) -> Path:
    plain = toy_trainings(shards, teacher, tmp_path / "vae")["denoiser"]
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    fields |= {"drop_captions": 1.0, "drop_captions_clean": 1.0}
    settings = PrototypeSettings(n=6, hidden=8, width=6, random_network=random)
    module = SelfGuided(SelfGuidedTraining(**fields, prototypes=settings))
    module.facts = {
        "tap": "mid_block", "timestep": 150, "n_prototypes": 6, "effective_prototypes": 3.0, "collapsed": collapsed,
        "entropy_curve": [[0, 1.5], [1, 0.5]],
    }  # fmt: skip
    folder = tmp_path / f"run-{random}-{collapsed}"
    module.save(folder / "weights")
    return folder


@pytest.fixture
def config(tmp_path: Path, tiny_shards: Path, tiny_sd: Path) -> ClustersEvaluation:
    return ClustersEvaluation(
        experiment="mine/clusters", run=str(saved(tmp_path, tiny_shards, tiny_sd)),
        data=DataConfig(path=str(tiny_shards)), split="train", attributes=("colour", "style"),
        n_resamples=20, output=str(tmp_path / "runs"),
    )  # fmt: skip


def records(path: Path) -> dict[tuple[str, str | None], MetricRecord]:
    return {(record.name, record.target): record for record in read_result(path).metrics}


@pytest.mark.slow
def test_each_attribute_has_three_agreements_with_their_controls(
    config: ClustersEvaluation, tmp_path: Path, tiny_shards: Path, tiny_sd: Path
) -> None:
    found = records(evaluate_clusters(config))
    for measure in ("nmi", "ami", "ari"):
        for attribute in ("colour", "style"):
            record = found[measure, attribute]
            assert set(record.controls) == CONTROLS and record.n == 16 and record.value <= 1
    (usage,) = [record for (name, _), record in found.items() if name == "effective_prototypes"]
    assert 1 <= usage.value <= usage.detail["used"] <= 6 and usage.detail["entropy_curve"] == [[0, 1.5], [1, 0.5]]
    assert "collapse" not in usage.detail
    other = str(saved(tmp_path, tiny_shards, tiny_sd, random=True))
    more = records(evaluate_clusters(dataclasses.replace(config, random_run=other)))
    assert set(more["nmi", "colour"].controls) == {*CONTROLS, "random_network"}
    assert more["nmi", "colour"].value == found["nmi", "colour"].value


@pytest.mark.slow
def test_planted_clusters_agree_with_their_attribute_alone(
    config: ClustersEvaluation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that reads the colour: features and clusters are its number."""
    colours = {"red": 0, "green": 1, "blue": 2}

    def features(_clusters: object, table: evaluation.ImageTable) -> torch.Tensor:
        numbers = [sorted(colours).index(values["colour"]) for values in table.attributes]
        return torch.nn.functional.one_hot(torch.tensor(numbers), 3).float()

    monkeypatch.setattr(evaluation, "features_of", features)
    monkeypatch.setattr(evaluation.Clusters, "assign", lambda _self, values: values.argmax(1))
    found = records(evaluate_clusters(config))
    assert found["nmi", "colour"].value == pytest.approx(1) and found["ari", "colour"].value == pytest.approx(1)
    assert found["ami", "style"].value < 0.3 and found["nmi", "colour"].controls["kmeans_features"] == pytest.approx(1)
    assert found["ami", "colour"].controls["shuffled_labels"] < 0.7
    detail = found["ami", "colour"].detail
    assert detail["interval"] == pytest.approx([1, 1]) and detail["differences"]["kmeans_features"] == [0, 0]
    assert set(detail["differences"]) == CONTROLS - {"shuffled_labels"}
    assert "interval" not in found["nmi", "colour"].detail  # repeats and sample sizes change it


def test_labels_that_a_half_has_one_of_have_no_interval(config: ClustersEvaluation) -> None:
    own = torch.arange(8).numpy() % 2
    rare = ["b", *("a" for _ in range(7))]
    assert evaluation.adjusted_intervals(own, {"other": own}, rare, config) == {}
    found = evaluation.adjusted_intervals(own, {"other": own}, ["a", "b"] * 4, dataclasses.replace(config, seed=1))
    assert found == {} or found["differences"]["other"] == [0, 0]


def test_k_means_ignores_the_scale_of_features(config: ClustersEvaluation) -> None:
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(60) % 3
    features = torch.nn.functional.one_hot(groups, 3) + torch.randn(60, 3, generator=generator) * 0.05
    found = k_means(features * torch.tensor([1.0, 1e3, 1e-3]), 3, config)
    assert len({(int(a), int(b)) for a, b in zip(groups, found, strict=True)}) == 3


@pytest.mark.slow
def test_a_collapse_is_in_the_record(
    config: ClustersEvaluation, tmp_path: Path, tiny_shards: Path, tiny_sd: Path
) -> None:
    run = str(saved(tmp_path, tiny_shards, tiny_sd, collapsed=True))
    result = read_result(evaluate_clusters(dataclasses.replace(config, run=run)))
    assert "0.50 at step 1" in result.metrics[0].detail["collapse"]


def test_other_attributes_and_runs_are_refused(config: ClustersEvaluation) -> None:
    with pytest.raises(UnknownName, match="hat"):
        evaluate_clusters(dataclasses.replace(config, attributes=("hat",)))
    with pytest.raises(WeightsMismatch, match="not trained on random weights"):
        evaluate_clusters(dataclasses.replace(config, random_run=config.run))
