"""The contract of a probe, as functions that raise AssertionError: for the probes of the package, and for stubs."""

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import load_file

from diffprobe.backbones.cell import Cell
from diffprobe.config.compose import load_run
from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import probes
from diffprobe.probes.caption import CaptionRegressor
from diffprobe.probes.classifier import ClassifierProbe
from diffprobe.probes.classifier.inputs import VECTOR, reads
from diffprobe.probes.direction import Direction
from diffprobe.probes.sae import KSAE
from diffprobe.runs.plan import plan
from diffprobe.runs.train import make_module
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import CLASSES, MAPS, WIDTHS, Maps, Steps, Toy
from tests.toy_captions import CAPTIONS, Captioned

CELL = next(iter(WIDTHS))
MAKERS = ("make", "make_bank", "estimate", "estimate_cv", "estimate_adjusted")
BASE = {
    "classifier": {},
    "direction": {"positive": "noto", "n_random": 20, "n_shuffles": 4},
    "sae": {"k": 2, "n_latents": 96, "dead_window": 20, "init_samples": 64},
    "caption": {"vocabulary": 20, "n_resamples": 20},
}
"""Kind -> params for toy features."""
OWN = {"adjusted_regression": {"nuisances": ["label"]}, "transcoder": {"target_tap": "up_blocks.0"}}
"""Probe -> params that it cannot do without."""
SMALL = {
    "mlp": {"hidden": 16},
    "attentive": {"width": 16, "heads": 2, "blocks": 1, "mlp_ratio": 2, "places": 2},
    "difformer": {"width": 16, "heads": 2, "blocks": 1, "mlp_ratio": 2, "places": 2},
    "diff_c": {"width": 8},
    "hyperfeatures": {"width": 16, "groups": 2, "size": 2},
    "diffdis": {"grid": 1, "width": 8, "heads": 2, "blocks": 1, "ddim_steps": 2},
}
"""Probe -> params that make it small."""
TARGETS = {"classifier": "[label]", "direction": "[style]", "sae": "[]", "caption": "[]"}
OTHER = {
    "controls": [],
    "positive": "twemoji",
    "negative": "twemoji",
    "n_random": 30,
    "n_shuffles": 5,
    "alpha": 3.0,
    "alphas": [3.0, 0.5],
    "shrinkage": 0.5,
    "component": 2,
    "nuisances": [],
    "nuisance_penalty": 3.0,
    "k": 4,
    "expansion": 2,
    "n_latents": 24,
    "k_aux": 2,
    "aux_weight": 0.5,
    "dead_window": 60,
    "row_buffer": 32,
    "pre_bias": "geometric_median",
    "init_samples": 32,
    "datapoint_blend": 0.8,
    "learning_rate": 0.01,
    "label_fraction": 0.4,
    "label_seed": 1,
    "momentum": 0.5,
    "dropout": 0.5,
    "width": 32,
    "heads": 4,
    "places": 1,
    "form": "described",
    "groups": 4,
    "size": 1,
    "warmup_steps": 7,
    "decay": 0.9,
    "adam_eps": 0.01,
    "adam_beta2": 0.5,
    "threshold_decay": 0.5,
    "penalty": "linear",
    "l0_weight": 5.0,
    "bandwidth": 0.2,
    "prefixes": [0.25, 1.0],
    "multi_k_weight": 0.5,
    "l2": [1.0, 0.1],
    "class_weight": "none",
    "linear.class_weight": "balanced",
    "batchnorm_linear.class_weight": "balanced",
    "linear.l2": 0.5,
    "patience": 1,
    "components": 3,
    "one_standard_error": True,
    "group": "style",
    "metric": "euclidean",
    "weights": "uniform",
    "vocabulary": 2,
    "n_resamples": 30,
    "level": 0.5,
    "temperature": 0.5,
    "caption.hidden": 5,
    "diffdis.width": 16,
    "blocks": 2,
    "gamma": 0.3,
    "p_dropout": 0.5,
    "guidance": 1.0,
    "ddim_steps": 4,
    "text_encoder": "emoji-sd",
    "normalise": "none",
    "embedding": 4,
    "skip": True,
    "step": "dense",
    "target_tap": "up_blocks.1",
}
"""Key of a Config, "FILE.KEY" or "KIND.KEY" -> a value other than its default and that of BASE."""
NEEDS = {
    "expansion": {"n_latents": None},
    "init_samples": {"pre_bias": "geometric_median"},
    "decay": {"warmup_steps": 1},
    "group": {"folds": 3},
    "label_seed": {"label_fraction": 0.4},
}
"""Key -> params under which it has an effect."""


ELSEWHERE = {
    "transcoder.target_tap",
    "linear_cv.patience", "ridge.fold_seed", "ridge.text_encoder", "mlp.text_encoder", "contrastive.text_encoder",
    "diffdis.text_encoder", "diffdis.grid",
}  # fmt: skip
"""Keys without an effect on toy features: classes are separable, tests/probes/test_l2_selection.py; caption ridge takes
the same penalty for any folds, tests/probes/test_grouped_folds.py; they have one tap to transcode to,
tests/evaluation/test_trajectory_runs.py; captions have a single text encoder,
tests/backbones/test_caption_encoder.py, and pooled features a single token, tests/probes/caption/test_diffdis.py."""


def settings_of(kind, name, params, epochs, trainer=None):
    return [
        f"probe.kind={kind}",
        f"probe.name={name}",
        f"probe.targets={TARGETS[kind]}",
        *(f"probe.params.{key}={_text(value)}" for key, value in params.items()),
        f"trainer.max_epochs={epochs}",
        "trainer.accelerator=cpu",
        "trainer.enable_progress_bar=false",
        *(f"trainer.{key}={value}" for key, value in (trainer or {}).items()),
    ]


def _text(value):
    return "null" if value is None else str(value).replace("'", "").replace(" ", "")


def source_of(kind, name):
    """Return toy features of one cell, as maps for a classifier that reads them."""
    if kind == "classifier" and reads(name) != VECTOR:
        return Maps(cells=(next(iter(MAPS)),))
    if kind == "caption":
        return Captioned()
    if kind == "sae" and reads_besides(name) != "rows":
        return Steps() if reads_besides(name) == "timesteps" else Toy()
    return Toy(cells=(CELL,))


def reads_besides(name):
    """Return what an autoencoder reads besides its rows."""
    return getattr(probes("sae").load(name), "READS", "rows")


def base_of(kind, name):
    return {**BASE[kind], **OWN.get(name, {}), **SMALL.get(name, {})}


def run(kind, name, folder: Path, params=None, epochs=2, trainer=None):
    """Train a probe on toy features as `diffprobe train` would; return its module and the folders of its probes."""
    planned = plan(load_run(None, settings_of(kind, name, {**base_of(kind, name), **(params or {})}, epochs, trainer)))
    source = source_of(kind, name)
    torch.manual_seed(0)
    module = make_module(planned, source)
    with quiet():
        trainer = make_trainer(planned.config.trainer, run_dir=folder)
        if any(weight.requires_grad for weight in module.parameters()):
            trainer.fit(module, datamodule=source)
        trainer.test(module, datamodule=source, verbose=False)
    return module, module.save(folder / "probes")


def outcome(module, folders):
    """Return what a run leaves behind: its records and the tensors of its probes."""
    records = [record for split in module.scores for record in module.records(split)]
    return records, [load_file(folder / "probe.safetensors") for folder in folders]


def same(one, other):
    tensors = zip(one[1], other[1], strict=True)
    return one[0] == other[0] and all(
        a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a) for a, b in tensors
    )


def check_the_file_trains(kind, name, folder, monkeypatch):
    """What trains comes from the named file, with its own settings, and records name it."""
    file, called = probes(kind).load(name), []
    for maker in MAKERS:
        if hasattr(file, maker):
            original = getattr(file, maker)

            def spy(*args, _original=original, **options):
                called.extend(args)
                return _original(*args, **options)

            monkeypatch.setattr(file, maker, spy)
    module, folders = run(kind, name, folder)
    assert any(type(argument) is file.Config for argument in called), f"{name}: nothing that trains is of its file"
    records, _ = outcome(module, folders)
    assert records and {record.probe for record in records} == {name}
    for path in folders:
        assert name in (path / "probe.json").read_text()


def check_each_key_counts(kind, name, folder):
    """Each key of `probe.params` changes the digest and the outcome, or is refused."""
    file = probes(kind).load(name)
    before = {}
    idle = []
    for field in dataclasses.fields(file.Config):
        context = NEEDS.get(field.name, {})
        given = {**base_of(kind, name), **context}
        at = str(sorted(context.items()))
        try:
            names = (f"{kind}.{field.name}", f"{name}.{field.name}", field.name)
            known = [key for key in names if key in OTHER]
            changed = {**context, field.name: OTHER[known[0]] if known else _another(field)}
            one, other = (
                plan(load_run(None, settings_of(kind, name, params, 2))) for params in (given, {**given, **changed})
            )
        except ConfigError:
            continue
        assert one.run_dir != other.run_dir, f"{name}.{field.name} does not change the digest"
        if at not in before:
            before[at] = outcome(*run(kind, name, folder / f"before-{len(before)}", context))
        if f"{name}.{field.name}" in ELSEWHERE:
            continue
        if same(before[at], outcome(*run(kind, name, folder / field.name, changed))):
            idle.append(field.name)
    assert not idle, f"{name}: {', '.join(idle)} changed nothing"


TRAINER = {"max_epochs": 1, "max_steps": 3, "learning_rate": 0.2, "weight_decay": 0.9, "gradient_clip": 1e-6}
"""Key of `trainer` that belongs to training steps -> a value other than its default."""


def check_each_trainer_key_counts(kind, name, folder):
    """Each key of training steps changes the digest and the outcome, or is refused; max_epochs may be without effect.

    It is set by experiment files of several probes, of which some have a closed form.
    """
    before, idle, refused = outcome(*run(kind, name, folder / "before")), [], []
    for key, value in TRAINER.items():
        try:
            changed = outcome(*run(kind, name, folder / key, trainer={key: value}))
        except ConfigError:
            refused.append(key)
            continue
        if same(before, changed):
            idle.append(key)
    assert set(idle) <= {"max_epochs"}, f"{name}: {', '.join(idle)} changed nothing"
    assert "max_epochs" not in idle or len(refused) == len(TRAINER) - 1, f"{name}: max_epochs changed nothing"


def _another(field):
    assert isinstance(field.default, int | float), f"name another value of '{field.name}' in OTHER"
    return field.default * 2 + 1


def check_saved_equals_trained(kind, name, folder):
    """A probe that is loaded predicts what the trained one does."""
    module, (path,) = run(kind, name, folder)
    source = source_of(kind, name)
    cell = source.cells[0]
    x = source.table("test").features[cell]
    with torch.no_grad():
        if kind == "classifier":
            back, held = ClassifierProbe.from_pretrained(path), module.probe(cell, "label")
            assert back.name == name and back.logits(x).equal(held.eval().logits(x))
        elif kind == "direction":
            back, held = Direction.load(path), module.directions()[0]
            assert back.estimator == name and back.project(x).equal(held.project(x))
        elif kind == "caption":
            back, e = CaptionRegressor.from_pretrained(path), module._encoder(CAPTIONS)
            assert back.name == name and back.scores(x, e).equal(module.regressor.scores(x, e))
        else:
            assert kind == "sae", "say here how a probe of this kind is loaded"
            timestep = Cell.parse(cell).timestep
            assert KSAE.from_pretrained(path).at(timestep)(x)[0].equal(module.sae.at(timestep)(x)[0])


def check_control_is_near_chance(kind, name, folder):
    """Trained on shuffled labels a probe scores near chance, and on true ones above."""
    slow = kind == "classifier" and reads(name) != VECTOR
    module, _ = run(kind, name, folder, {"learning_rate": 0.01} if slow else None, epochs=20)
    record = module.records("test")[0]
    chance = 1 / len(CLASSES) if kind == "classifier" else 0.5
    assert abs(record.controls["shuffled_labels"] - chance) < 0.25, record
    assert record.value > record.controls["shuffled_labels"] + 0.15, record
