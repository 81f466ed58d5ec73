"""kNN as a run: no steps, saved with its training set, its choices on record, what it cannot use refused."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from diffprobe.config.compose import load_run
from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite
from diffprobe.probes.classifier import ClassifierProbe
from diffprobe.probes.classifier import knn as knn_file
from diffprobe.runs.plan import plan
from diffprobe.runs.train import make_module
from diffprobe.training import knn as knn_training
from diffprobe.training.kinds import classifier as kind
from diffprobe.training.knn import KNNModule, check_size
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import WIDTHS, Families, Toy

CELL = next(iter(WIDTHS))
BASE = ("probe=knn", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false")


def run(tmp_path, *settings: str, source: Toy | None = None) -> KNNModule:
    source = source or Toy(cells=(CELL,))
    planned = plan(load_run(None, [*BASE, *settings]))
    module = make_module(planned, source)
    assert isinstance(module, KNNModule)
    assert not any(weight.requires_grad for weight in module.parameters())
    with quiet():
        trainer = make_trainer(planned.config.trainer, run_dir=tmp_path)
        trainer.test(module, datamodule=source, verbose=False)
    return module


def known(split):
    table = Toy(cells=(CELL,)).table(split)
    rows = table.label >= 0
    return table.features[CELL], table.features[CELL][rows], table.label[rows]


def test_the_saved_probe_and_the_score_are_scikit_learns(tmp_path):
    settings = ("k=5", "metric=euclidean", "weights=uniform", "class_weight=none")
    module = run(tmp_path, *(f"probe.params.{setting}" for setting in settings))
    (whole, x, y), (_, x_test, y_test) = known("train"), known("test")
    scaler = StandardScaler().fit(whole.double().numpy())  # of all training samples, those without a label too
    model = KNeighborsClassifier(5, algorithm="brute").fit(scaler.transform(x.double().numpy()), y.numpy())
    theirs = torch.tensor(model.predict(scaler.transform(x_test.double().numpy())))
    probe = ClassifierProbe.from_pretrained(module.save(tmp_path / "probes")[0])
    assert probe.predict(x_test).equal(theirs)
    record = module.records("test")[0]
    assert (record.name, record.probe) == ("accuracy", "knn")
    assert record.value == pytest.approx(float((theirs == y_test).double().mean()))
    assert set(record.controls) == {"chance", "shuffled_labels"}


def test_what_voted_is_on_record(tmp_path):
    record = run(tmp_path).records("test")[0]
    n = len(known("train")[2])
    expected = {"k": 20, "metric": "cosine", "weights": "exponential", "temperature": 0.07, "class_weight": "balanced"}
    assert record.detail | expected == record.detail
    assert record.detail["n_train"] == n and record.detail["saved_bytes"] == 4 * 12 * n
    assert record.detail["absent_classes"] == []


def test_targets_and_controls_share_the_distances(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        knn_file, "nearest", lambda *args, _nearest=knn_file.nearest, **rest: calls.append(1) or _nearest(*args, **rest)
    )
    module = run(tmp_path, "probe.targets=[label,style]")
    assert len(module.heads) == 4 and len(calls) == 2  # batches of 16 of 21 test samples
    bank = module.banks[0]
    assert len(bank._masks) == 2  # those with a label, and all; a permutation keeps them


class Backwards(Toy):
    """Toy features whose training samples are read in another order."""

    def table(self, split):
        table = super().table(split)
        if split == "train":
            order = torch.arange(len(table.label)).flip(0)
            table.features = {cell: x[order] for cell, x in table.features.items()}
            table.keys = [table.keys[i] for i in order]
            table.label = table.label[order]
            table.attributes = {name: values[order] for name, values in table.attributes.items()}
        return table


def test_shuffled_labels_keep_families(tmp_path):
    source = Families(cells=(CELL,))
    settings = TrainerConfig(accelerator="cpu", enable_progress_bar=False)
    classes = {"kind": tuple(source.attributes["kind"])}
    module = KNNModule("knn", knn_file.Config(k=5), widths=source.widths, classes=classes, settings=settings)
    with quiet():
        make_trainer(settings, run_dir=tmp_path).test(module, datamodule=source, verbose=False)
    table = source.table("train")
    true, kind = module._task_labels(table.take(torch.arange(len(table))))
    assert not kind.equal(true)
    for family in range(len(table) // 4):
        assert len(kind[table.attributes["family"] == family].unique()) == 1
    for record in module.records("test"):
        assert record.detail["shuffled_labels"]["group_by"] == "family"


def test_the_order_of_reading_and_the_seed_change_nothing_but_the_shuffled_labels(tmp_path):
    one = run(tmp_path)
    other = run(tmp_path, source=Backwards(batch_size=7, cells=(CELL,)))
    assert one.records("test") == other.records("test") and one.seed_varies == ("shuffled_labels",)
    assert one.probe(CELL, "label").head.features.equal(other.probe(CELL, "label").head.features)
    reseeded = run(tmp_path, "seed=1")
    assert reseeded.probe(CELL, "label").head.labels.equal(one.probe(CELL, "label").head.labels)
    assert not reseeded.banks[0].labels[1].equal(one.banks[0].labels[1])
    assert run(tmp_path, "probe.params.controls=[]").seed_varies == ()


def test_a_run_that_is_the_control_learns_shuffled_labels(tmp_path):
    module = run(tmp_path, "control=shuffled_labels")
    assert len(module.heads) == 1 and module.banks[0].labels[0].equal(run(tmp_path).banks[0].labels[1])


def test_a_class_without_a_training_sample_is_named_and_never_predicted(tmp_path):
    source = Toy(cells=(CELL,))
    source.classes = (*source.classes, "none")
    with pytest.warns(UserWarning, match=r"'label'[\s\S]*1 of 5[\s\S]*none"):
        module = run(tmp_path, source=source)
    assert module.records("test")[0].detail["absent_classes"] == ["none"]
    assert not (module.probe(CELL, "label").predict(known("test")[1]) == 4).any()


class Changed(Toy):
    """Toy features with one thing wrong in the training set."""

    def __init__(self, change):
        super().__init__(cells=(CELL,))
        self.change = change

    def table(self, split):
        table = super().table(split)
        if split == "train":
            self.change(table)
        return table


def test_training_sets_that_cannot_be_used_are_refused(tmp_path):
    n = len(known("train")[2])
    with pytest.raises(ConfigError, match=rf"'label'[\s\S]*k={n + 1}[\s\S]*{n} training[\s\S]*probe.params.k={n}"):
        run(tmp_path, f"probe.params.k={n + 1}")
    with pytest.raises(EmptyClass, match=r"'label'[\s\S]*1 of 4"):
        run(tmp_path, source=Changed(lambda table: table.label.clamp_(max=0)))
    with pytest.raises(NonFinite, match=rf"'{CELL}'[\s\S]*'train/3'"):
        run(tmp_path, source=Changed(lambda table: table.features[CELL][3].fill_(torch.nan)))


def test_features_without_variance_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=rf"'{CELL}'[\s\S]*same features"):
        run(tmp_path, source=Changed(lambda table: table.features[CELL].fill_(3.0)))


def test_the_size_of_the_probes_is_limited_and_stated(tmp_path, monkeypatch):
    assert check_size(100, {"a": 30, "b": 20}, 2, limit=40_000) == 40_000
    with pytest.raises(ConfigError, match=r"100 training samples x 50[\s\S]*2 targets[\s\S]*data.limit=50 "):
        check_size(100, {"a": 30, "b": 20}, 2, limit=20_000)
    monkeypatch.setattr(knn_training, "LIMIT", 1000)
    with pytest.raises(ConfigError, match=r"91 training samples x 12"):
        run(tmp_path)


@pytest.mark.parametrize(
    "setting",
    ["trainer.learning_rate=0.1", "trainer.weight_decay=0.1", "trainer.gradient_clip=1.0", "trainer.max_steps=5",
     "trainer.devices=2", "probe.params.k=0", "probe.params.temperature=0.0"],
)  # fmt: skip
def test_settings_without_effect_or_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0].rpartition(".")[2]):
        plan(load_run(None, [*BASE, setting]))


def test_the_summary_states_what_the_probes_keep(tmp_path):
    from types import SimpleNamespace

    module = run(tmp_path)
    assert module.saving_note == ", with 0.0 MiB of training features"
    records = module.records("test")
    assert (
        kind.summary(SimpleNamespace(metrics=records, config={}))
        == "1 targets, 0.0 MiB of training features in the probes"
    )
