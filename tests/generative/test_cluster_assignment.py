"""Saved clusters as the classes of a second training: labels, vocabulary, digests, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.core.errors import ConfigError, SchemaError, WeightsMismatch, WeightsMissing
from diffprobe.generative import cluster_assignment
from diffprobe.generative.cluster_assignment import CONFIG_FILE, FOLDER, Clusters, clusters_digest, label_by_cluster
from diffprobe.generative.denoiser_training import DenoiserTraining
from diffprobe.generative.image_table import load_table
from diffprobe.generative.long_tail import ClassesConfig
from diffprobe.generative.self_guided import SelfGuided, SelfGuidedTraining
from diffprobe.generative.sinkhorn_prototypes import PrototypeSettings
from tests.toy_generative import toy_trainings


@pytest.fixture
def plain(tmp_path: Path, tiny_shards: Path, tiny_sd: Path) -> DenoiserTraining:
    made: DenoiserTraining = toy_trainings(tiny_shards, tiny_sd, tmp_path / "vae")["denoiser"]
    return made


@pytest.fixture
def folder(tmp_path: Path, plain: DenoiserTraining) -> Path:
    """The weights of an untrained first stage, saved with facts as of a training."""
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    fields |= {"drop_captions": 1.0, "drop_captions_clean": 1.0}
    module = SelfGuided(SelfGuidedTraining(**fields, prototypes=PrototypeSettings(n=6, hidden=8, width=6)))
    save(module, tmp_path / "run" / "weights")
    return tmp_path / "run"


def save(module: SelfGuided, weights: Path, **changes: Any) -> None:
    module.facts = {
        "tap": "mid_block", "timestep": 150, "n_prototypes": 6, "effective_prototypes": 3.0, "collapsed": False,
        "entropy_curve": [[step, 1.5 - step / 10] for step in range(9)], **changes,
    }  # fmt: skip
    module.save(weights)


def test_images_are_labelled_alone_as_together_and_once(
    folder: Path, tiny_shards: Path, plain: DenoiserTraining, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load_table(plain.data, "train", resolution=16)
    labelled = label_by_cluster(table, "cluster", str(folder))
    numbers = [values["cluster"] for values in labelled.attributes]
    assert set(numbers) <= {str(number) for number in range(6)} and table.attributes[0].keys() == {
        *labelled.attributes[0].keys() - {"cluster"}
    }
    clusters = Clusters(folder)
    one = clusters.features(table.to_float(slice(3, 4)), table.keys[3:4])
    torch.testing.assert_close(one, clusters.features(table.to_float(slice(0, 8)), table.keys[:8])[3:4])
    assert str(int(clusters.assign(one))) == numbers[3]
    monkeypatch.setattr(cluster_assignment, "_open", lambda *_: pytest.fail("assigned again"))
    again = label_by_cluster(table, "cluster", str(folder / "weights"))
    assert [values["cluster"] for values in again.attributes] == numbers


def test_a_second_stage_is_trained_on_clusters(folder: Path, plain: DenoiserTraining) -> None:
    classes = ClassesConfig(attribute="cluster", clusters=str(folder), template="cluster {value}", min_images=1)
    config = dataclasses.replace(plain, classes=classes)
    config.require_weights()
    assert config.input_digests()["clusters"] == clusters_digest(folder)
    module, images = config.make()
    assert {caption for (caption,) in images.train.captions} == {
        f"cluster {values['cluster']}" for values in images.train.attributes
    }
    assert sum(module.facts["class_counts"].values()) == len(images.train)
    assert all(caption.startswith("cluster ") for (caption,) in images.val.captions)


def test_a_digest_depends_on_the_weights(folder: Path) -> None:
    before = clusters_digest(folder)
    assert clusters_digest(folder / "weights") == before
    path = folder / "weights" / FOLDER / CONFIG_FILE
    path.write_text(path.read_text().replace('"timestep": 150', '"timestep": 151'))
    assert clusters_digest(folder) != before


def test_random_weights_have_other_features(folder: Path, plain: DenoiserTraining) -> None:
    table = load_table(plain.data, "val", resolution=16)
    images, keys = table.to_float(slice(None)), table.keys
    own, other = Clusters(folder).features(images, keys), Clusters(folder, random_network=True).features(images, keys)
    assert own.shape == other.shape and not torch.allclose(own, other, atol=1e-3)


def test_collapsed_clusters_are_no_classes(folder: Path, plain: DenoiserTraining) -> None:
    path = folder / "weights" / FOLDER / CONFIG_FILE
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "collapsed": True, "effective_prototypes": 1.2}))
    table = load_table(plain.data, "train", resolution=16)
    with pytest.raises(ConfigError, match=r"collapsed: 1\.20 effective .* 1\.50 at step 0, 1\.30 at step 2"):
        label_by_cluster(table, "cluster", str(folder))


def test_a_taken_attribute_another_resolution_and_missing_or_damaged_files_are_refused(
    folder: Path, plain: DenoiserTraining
) -> None:
    table = load_table(plain.data, "train", resolution=16)
    with pytest.raises(ConfigError, match="has an attribute 'colour' already"):
        label_by_cluster(table, "colour", str(folder))
    with pytest.raises(WeightsMismatch, match="16 pixels; these have 32"):
        label_by_cluster(load_table(plain.data, "train", resolution=32), "cluster", str(folder))
    classes = ClassesConfig(attribute="cluster", clusters=str(folder / "nothing"))
    with pytest.raises(WeightsMissing, match="no prototypes"):
        dataclasses.replace(plain, classes=classes).require_weights()
    path = folder / "weights" / FOLDER / CONFIG_FILE
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "settings": {**tree["settings"], "n": 5}}))
    with pytest.raises(WeightsMismatch, match="do not fit"):
        Clusters(folder)
    path.write_text("{}")
    with pytest.raises(SchemaError, match="does not describe prototypes"):
        Clusters(folder)
