"""Linear classifiers with chosen L2: no steps, saved as ordinary linear probes, every choice on record."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from diffprobe.config.compose import load_run
from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.probes.classifier.linear import LinearProbe
from diffprobe.runs.plan import plan
from diffprobe.runs.train import make_module
from diffprobe.training.linear_cv import LinearCVModule
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import WIDTHS, Families, Toy

CELL = next(iter(WIDTHS))
BASE = ("probe=linear_cv", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false")


def run(tmp_path, *settings: str, source: Toy | None = None) -> LinearCVModule:
    source = source or Toy(cells=(CELL,))
    planned = plan(load_run(None, [*BASE, *settings]))
    module = make_module(planned, source)
    assert isinstance(module, LinearCVModule)
    assert not any(weight.requires_grad for weight in module.parameters())
    with quiet():
        trainer = make_trainer(planned.config.trainer, run_dir=tmp_path)
        trainer.test(module, datamodule=source, verbose=False)
    return module


def test_the_saved_probe_is_scikit_learns_at_the_chosen_penalty(tmp_path):
    module = run(tmp_path, "probe.params.folds=3", "probe.params.l2=[1.0,0.1,0.01]")
    record = module.records("test")[0]
    assert record.probe == "linear_cv" and record.detail["converged"] and record.detail["objective_gap"] <= 1.01e-6
    assert len(record.detail["cv_log_loss"]) == 3 and record.detail["l2"] in (1.0, 0.1, 0.01)
    assert record.detail["group"] == "sample" and record.detail["cv_folds"] == 3
    assert set(record.controls) == {"chance", "shuffled_labels"} and "shuffled_labels" in record.detail["control_l2"]
    probe = LinearProbe.from_pretrained(module.save(tmp_path / "probes")[0])
    assert LinearProbe.from_pretrained(probe.save_pretrained(tmp_path / "again")).name == "linear_cv"
    table = Toy(cells=(CELL,)).table("train")
    known = table.label >= 0
    x, y = table.features[CELL][known], table.label[known]
    scaler = StandardScaler().fit(x.double().numpy())
    model = LogisticRegression(C=1 / (record.detail["l2"] * len(y)), class_weight="balanced", max_iter=5000, tol=1e-8)
    z = scaler.transform(x.double().numpy())
    theirs = torch.tensor(model.fit(z, y.numpy()).predict_proba(z))
    assert torch.allclose(probe.logits(x).softmax(1).double(), theirs, atol=2e-3)


def test_the_group_of_the_data_set_is_the_default(tmp_path):
    source = Toy(cells=(CELL,))
    source.request = SimpleNamespace(shard_set=SimpleNamespace(group="style"))
    module = run(tmp_path, "probe.params.folds=3", "probe.params.l2=[0.1]", source=source)
    assert module.records("test")[0].detail["group"] == "style"
    assert module.records("test")[0].detail["n_groups"] == 3
    with pytest.raises(ConfigError, match=r"target 'label'[\s\S]*'style'[\s\S]*3 groups for 5 folds[\s\S]*folds=3"):
        run(tmp_path, source=source)


def test_shuffled_labels_move_by_the_group_of_the_folds(tmp_path):
    settings = ("probe.params.folds=3", "probe.params.l2=[0.1]", "probe.targets=[kind]")
    table = Families().table("train")
    batch = table.take(torch.arange(len(table)))
    for named, group in (("", "family"), ("probe.params.group=sample", "sample")):
        module = run(tmp_path, *settings, *filter(None, [named]), source=Families(cells=(CELL,)))
        (detail,) = {str(record.detail["shuffled_labels"]["group_by"]) for record in module.records("test")}
        shuffled = module._task_labels(batch)[1]
        constant = all(len(shuffled[i : i + 4].unique()) == 1 for i in range(0, 88, 4))
        assert detail == group and constant == (group == "family")


def test_an_unknown_group_is_refused(tmp_path):
    with pytest.raises(UnknownName, match="colour"):
        run(tmp_path, "probe.params.group=colour")


def test_a_fit_on_components_is_that_of_scikit_learn_on_its_components(tmp_path):
    settings = (
        "probe.params.folds=3",
        "probe.params.l2=[0.01]",
        "probe.params.controls=[]",
        "probe.params.components=4",
    )
    module = run(tmp_path, *settings)
    assert module.records("test")[0].detail["components"] == 4
    probe = module.probe(CELL, "label")
    table = Toy(cells=(CELL,)).table("train")
    x, y = table.features[CELL].double().numpy(), table.label.numpy()
    reduced = make_pipeline(StandardScaler(), PCA(4), StandardScaler())
    z, known = reduced.fit(x).transform(x), y >= 0
    scaler = StandardScaler().fit(z[known])
    model = LogisticRegression(C=1 / (0.01 * known.sum()), class_weight="balanced", max_iter=5000, tol=1e-8)
    theirs = model.fit(scaler.transform(z[known]), y[known]).predict_proba(scaler.transform(z))
    ours = probe.logits(table.features[CELL]).softmax(1).double()
    assert torch.allclose(ours, torch.tensor(theirs), atol=5e-3)
    assert torch.linalg.matrix_rank(probe.weight.double() * probe.inverse_std, atol=1e-4) <= 4


def test_more_components_than_dimensions_are_refused_by_cell(tmp_path):
    with pytest.raises(ConfigError, match=f"components=10000 for cell '{CELL}'"):
        run(tmp_path, "probe.params.folds=3", "probe.params.components=10000")
    with pytest.raises(ConfigError, match="components=0"):
        plan(load_run(None, [*BASE, "probe.params.components=0"]))


class OddFamilies(Toy):
    """Toy features of 12 families, of which one has all samples of the last class."""

    def __init__(self) -> None:
        super().__init__(cells=(CELL,))
        self.attributes = {**self.attributes, "family": tuple(f"f{i}" for i in range(12))}

    def table(self, split):
        table = super().table(split)
        family = torch.arange(len(table.label)) % 11 + 1
        table.attributes["family"] = torch.where(table.label == len(self.classes) - 1, 0, family)
        return table


def test_a_class_of_one_group_is_named_and_learned_but_not_scored(tmp_path):
    settings = ("probe.params.group=family", "probe.params.folds=3", "probe.params.l2=[0.1,0.01]")
    with pytest.warns(UserWarning, match=r"'label'[\s\S]*'family'[\s\S]*owl"):
        module = run(tmp_path, *settings, source=OddFamilies())
    detail = module.records("test")[0].detail
    owls = int((OddFamilies().table("train").label == 3).sum())
    assert detail["single_group_classes"] == ["owl"] and detail["cv_unscored"] == owls and detail["n_groups"] == 12
    assert module.probe(CELL, "label").bias.isfinite().all()


def test_a_target_that_is_constant_within_a_fold_is_refused(tmp_path):
    with pytest.raises(EmptyClass, match=r"target 'style', groups by 'style'[\s\S]*constant"):
        run(tmp_path, "probe.targets=[style]", "probe.params.group=style", "probe.params.folds=2")


def test_a_class_without_a_training_sample_is_never_predicted(tmp_path):
    source = Toy(cells=(CELL,))
    source.classes = (*source.classes, "absent")
    probe = run(tmp_path, "probe.params.l2=[0.1]", source=source).probe(CELL, "label")
    assert probe.logits(Toy().table("test").features[CELL]).softmax(1)[:, 4].max() < 1e-6


@pytest.mark.parametrize(
    "setting",
    ["trainer.learning_rate=0.1", "trainer.weight_decay=0.1", "trainer.gradient_clip=1.0", "trainer.max_steps=5",
     "trainer.devices=2", "probe.params.folds=1", "probe.params.l2=[0.0]", "probe.params.l2=[]"],
)  # fmt: skip
def test_settings_without_effect_or_out_of_range_are_refused(setting):
    with pytest.raises(ConfigError, match=setting.partition("=")[0].rpartition(".")[2]):
        plan(load_run(None, [*BASE, setting]))


@pytest.mark.slow
@pytest.mark.parametrize("l2", [0.3, 0.03])
def test_steps_on_a_stream_end_at_the_same_classifier(tmp_path, l2):
    """The stated tolerance: 0.01 nats of log-loss, and equal predictions for 98 % of the samples.

    All samples have a label: those without one count in the standardisation of a stream, and so for the penalty.
    """
    target = "probe.targets=[kind]"
    settings = [f"probe.params.l2=[{l2}]", "probe.params.controls=[]", target]
    exact = run(tmp_path / "exact", *settings, source=Families(cells=(CELL,))).probe(CELL, "kind")
    steps = ["probe.params.controls=[]", target, "trainer.max_epochs=300", "trainer.learning_rate=0.03"]
    balanced = [f"probe.params.l2={l2}", "probe.params.class_weight=balanced"]
    planned = plan(load_run(None, ["probe=linear", *BASE[1:], *steps, *balanced]))
    source = Families(cells=(CELL,))
    module = make_module(planned, source)
    with quiet():
        make_trainer(planned.config.trainer, run_dir=tmp_path / "steps").fit(module, datamodule=source)
    stepped, table = module.probe(CELL, "kind"), Families(cells=(CELL,)).table("test")
    x, y = table.features[CELL], table.attributes["kind"]
    assert (y >= 0).all()
    ours, theirs = (F.cross_entropy(probe.logits(x).float(), y) for probe in (stepped, exact))
    assert float(ours) == pytest.approx(float(theirs), abs=0.01)
    assert float((stepped.predict(x) == exact.predict(x)).float().mean()) >= 0.98


@pytest.mark.slow
def test_weights_of_classes_and_the_penalty_change_what_steps_learn(tmp_path):
    with pytest.raises(ConfigError, match="l2=-1"):
        plan(load_run(None, [*BASE[1:], "probe=linear", "probe.params.l2=-1"]))
    found = {}
    for name, settings in {
        "plain": [], "balanced": ["probe.params.class_weight=balanced"], "penalty": ["probe.params.l2=10.0"],
    }.items():  # fmt: skip
        source, planned = (
            Toy(cells=(CELL,)),
            plan(
                load_run(
                    None, ["probe=linear", *BASE[1:], "trainer.max_epochs=5", "probe.params.controls=[]", *settings]
                )
            ),
        )
        module = make_module(planned, source)
        with quiet():
            make_trainer(planned.config.trainer, run_dir=tmp_path / name).fit(module, datamodule=source)
        found[name] = module.probe(CELL, "label").weight.detach()
    assert not torch.allclose(found["plain"], found["balanced"], atol=1e-4)
    assert found["penalty"].norm() < 0.7 * found["plain"].norm()
