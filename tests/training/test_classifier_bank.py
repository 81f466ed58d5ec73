"""A bank of classifiers ends as its members would alone, in one pass over the data; one that diverges disturbs none."""

import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.registry import probes
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.classifier_bank import ClassifierBankModule, MemberSpec
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import CLASSES, STYLES, Families, Maps

CPU = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 3, "weight_decay": 0.01}
TARGETS = {"label": CLASSES, "style": STYLES}
SMALL = {
    "mlp": {"hidden": 8},
    "attentive": {"width": 8, "heads": 2, "blocks": 1},
    "difformer": {"width": 8, "heads": 2, "blocks": 1},
    "diff_c": {"width": 4},
    "hyperfeatures": {"width": 8, "groups": 2},
}
POINTS = [
    {"learning_rate": 0.01, "label_fraction": 1.0, "seed": 0},
    {"learning_rate": 0.03, "label_fraction": 0.4, "seed": 0},
    {"learning_rate": 0.01, "label_fraction": 1.0, "seed": 1},
]


class Counted(Families):
    """Families whose batches are counted."""

    read = 0

    def loader(self, *args, **options):
        for_batches = super().loader(*args, **options)
        Counted.read += len(for_batches)
        return for_batches


def source_of(name):
    return (Maps if name not in ("linear", "mlp", "batchnorm_linear") else Counted)()


def config_of(name, point, **more):
    params = {key: value for key, value in point.items() if key != "seed"}
    return probes("classifier").load(name).Config(**SMALL.get(name, {}), **params, **more)


def train(module, source, folder):
    with quiet():
        trainer = make_trainer(module.settings, run_dir=folder)
        trainer.fit(module, datamodule=source)
        trainer.validate(module, datamodule=source, verbose=False)
        trainer.test(module, datamodule=source, verbose=False)
    return module


def shared(source):
    return {"widths": source.widths, "sizes": source.sizes, "classes": TARGETS, "settings": TrainerConfig(**CPU)}


def bank(name, folder, points=POINTS, batched=False, source=None):
    source = source or source_of(name)
    specs = [
        MemberSpec(name=f"m{i}", config=config_of(name, point), cells=tuple(source.widths), seed=point["seed"])
        for i, point in enumerate(points)
    ]
    return train(ClassifierBankModule(name, specs, batched=batched, **shared(source)), source, folder)


def alone(name, point, folder):
    source = source_of(name)
    module = ClassifierModule(name, config_of(name, point), seed=point["seed"], **shared(source))
    return train(module, source, folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batched"),
    [("linear", False), ("linear", True), ("mlp", True), ("batchnorm_linear", True), ("diff_c", False),
     ("hyperfeatures", False), ("difformer", False)],
)  # fmt: skip
def test_members_end_as_they_would_alone(name, batched, tmp_path):
    together = bank(name, tmp_path / "bank", batched=batched)
    for i, point in enumerate(POINTS):
        member, single = together.members[i], alone(name, point, tmp_path / str(i))
        for (key, ours), theirs in zip(member.state_dict().items(), single.state_dict().values(), strict=True):
            tolerance = 1e-5 if batched else 0.0
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, msg=f"{key} of {point}")
        for split in ("val", "test"):
            assert member.records(split) == single.records(split) or batched
            assert [r.value for r in member.records(split)] == [r.value for r in single.records(split)]


def test_the_data_are_read_once_for_all_members(tmp_path):
    read = []
    for n in (1, 3):
        Counted.read = 0
        bank("linear", tmp_path / str(n), points=POINTS[:n])
        read.append(Counted.read)
    assert read[0] == read[1] > 0


@pytest.mark.parametrize("name", ["linear", "mlp"])
@pytest.mark.parametrize("batched", [False, True])
def test_a_diverging_member_disturbs_none_and_its_record_says_so(name, batched, tmp_path):
    diverging = {"learning_rate": 1e37, "label_fraction": 1.0, "seed": 0}
    with pytest.warns(UserWarning, match=r"m1: the loss of \d+ of \d+ heads became NaN or infinite at step"):
        mixed = bank(name, tmp_path / "a", points=[POINTS[0], diverging, POINTS[2]], batched=batched)
    clean = bank(name, tmp_path / "b", points=[POINTS[0], POINTS[2]], batched=batched)
    for ours, theirs in ((0, 0), (2, 1)):
        assert mixed.members[ours].records("test") == clean.members[theirs].records("test")
        for cell in mixed.members[0].cells:
            x = source_of(name).table("test").features[cell]
            found = [part.members[i].probe(cell, "label")(x) for part, i in ((mixed, ours), (clean, theirs))]
            torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    records = mixed.members[1].records("test")
    assert {record.name for record in records} == {"diverged_at_step"} and len(records) == 4
    assert all(record.value >= 1 and record.cell and record.target for record in records)
    assert mixed.members[1].save(tmp_path / "none") == []


def test_a_run_all_of_whose_heads_diverge_stops(tmp_path):
    with pytest.raises(NonFinite, match="all heads of 1 members"):
        bank("linear", tmp_path, points=[{"learning_rate": 1e37, "label_fraction": 1.0, "seed": 0}])


def test_what_cannot_train_together(tmp_path):
    source = Families()
    spec = MemberSpec(name="a", config=config_of("linear", POINTS[0]), cells=tuple(source.widths), seed=0)
    with pytest.raises(ConfigError, match="given: none"):
        ClassifierBankModule("linear", [], **shared(source))
    with pytest.raises(ConfigError, match="unique names"):
        ClassifierBankModule("linear", [spec, spec], **shared(source))
    with pytest.raises(ConfigError, match="16-mixed"):
        half = {**shared(source), "settings": TrainerConfig(**CPU, precision="16-mixed")}
        ClassifierBankModule("linear", [spec], **half)
    idle = [
        MemberSpec(name=str(seed), config=config_of("linear", POINTS[0], controls=()), cells=spec.cells, seed=seed)
        for seed in (0, 1)
    ]
    with pytest.raises(ConfigError, match="seed has no effect"):
        ClassifierBankModule("linear", idle, **shared(source))
