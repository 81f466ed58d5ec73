"""All probes keep the contract of their kind, and stubs do not."""

import sys
from importlib import import_module

import pytest

from diffprobe.core.registry import PROBE_KINDS, PROBE_TRAINING, probes
from tests.runs import contract

PROBES = [(kind, name) for kind in PROBE_KINDS.names() for name in probes(kind).names()]
SUPERVISED = [  # labels fix the sign of pca alone
    (kind, name) for kind, name in PROBES if kind in ("classifier", "direction") and name != "pca"
]


def test_each_kind_has_a_folder_and_a_way_to_train_it():
    assert PROBE_KINDS.names() == PROBE_TRAINING.names() == sorted(contract.BASE)
    for kind in PROBE_TRAINING.names():
        file = PROBE_TRAINING.load(kind)
        for part in ("TAKES_GRID", "WITHOUT_GRID", "validate", "check_cells", "make_module", "summary"):
            assert hasattr(file, part), (kind, part)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), PROBES)
def test_the_named_file_trains_and_is_recorded(kind, name, tmp_path, monkeypatch):
    contract.check_the_file_trains(kind, name, tmp_path, monkeypatch)


@pytest.mark.slow  # some twenty trainings per autoencoder
@pytest.mark.parametrize(("kind", "name"), PROBES)
def test_each_key_changes_the_outcome(kind, name, tmp_path):
    contract.check_each_key_counts(kind, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("classifier", "linear"), ("direction", "ridge"), ("direction", "logistic"), ("sae", "topk")]
)
def test_each_key_of_training_changes_the_outcome_or_is_refused(kind, name, tmp_path):
    contract.check_each_trainer_key_counts(kind, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), PROBES)
def test_a_saved_probe_is_the_trained_one(kind, name, tmp_path):
    contract.check_saved_equals_trained(kind, name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), SUPERVISED)
def test_shuffled_labels_are_near_chance(kind, name, tmp_path):
    contract.check_control_is_near_chance(kind, name, tmp_path)


CLASSIFIER = """
from dataclasses import dataclass
from torch import nn
from diffprobe.probes.classifier import ClassifierConfig

@dataclass(frozen=True, kw_only=True)
class Config(ClassifierConfig):
    hidden: int = 8

def make(config, d_in, n_classes, *, seed):
    return {head}
"""
GOOD = "nn.Sequential(nn.Linear(d_in, config.hidden), nn.ReLU(), nn.Linear(config.hidden, n_classes))"
IDLE = "nn.Linear(d_in, n_classes)  # hidden does nothing"
CONSTANT = "nn.Sequential(nn.Linear(d_in, n_classes), nn.Threshold(1e9, 0.0))  # gives the same for all"


@pytest.fixture
def add_classifier(tmp_path, monkeypatch):
    """Put a file on the search path of the classifiers."""
    package = import_module("diffprobe.probes.classifier")

    def add(name, head):
        folder = tmp_path / "added"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(CLASSIFIER.format(head=head))
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)

    return add


@pytest.mark.slow
def test_an_added_file_keeps_the_contract(add_classifier, tmp_path, monkeypatch):
    add_classifier("added_mlp", GOOD)
    assert "added_mlp" in probes("classifier").names()
    contract.check_the_file_trains("classifier", "added_mlp", tmp_path / "a", monkeypatch)
    contract.check_each_key_counts("classifier", "added_mlp", tmp_path / "b")
    contract.check_saved_equals_trained("classifier", "added_mlp", tmp_path / "c")
    contract.check_control_is_near_chance("classifier", "added_mlp", tmp_path / "d")


@pytest.mark.slow
def test_stubs_do_not_keep_it(add_classifier, tmp_path, monkeypatch):
    add_classifier("idle_stub", IDLE)
    with pytest.raises(AssertionError, match="hidden changed nothing"):
        contract.check_each_key_counts("classifier", "idle_stub", tmp_path / "a")
    add_classifier("constant_stub", CONSTANT)
    with pytest.raises(AssertionError):
        contract.check_control_is_near_chance("classifier", "constant_stub", tmp_path / "b")


def test_a_module_that_trains_another_file_does_not_keep_it(add_classifier, tmp_path, monkeypatch):
    from diffprobe.probes.classifier import linear
    from diffprobe.training import classifier

    add_classifier("bypassed", GOOD)
    always_linear = lambda name, config, *sizes, **options: linear.make_bank(linear.Config(), *sizes)  # noqa: E731
    monkeypatch.setattr(classifier, "make_bank", always_linear)
    with pytest.raises(AssertionError, match="nothing that trains is of its file"):
        contract.check_the_file_trains("classifier", "bypassed", tmp_path, monkeypatch)
