"""Certify a readout: the accuracy of a classifier of a factor, beside the ladder of controls.

A saved readout is a finished run with the runs of its rungs. A callable is trained and tested on scenes that are drawn
here, and its rungs are linear classifiers of pixels and VAE latents on the same scenes.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Certificate, Check, Rule, Subject
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, DiffprobeError, EmptyClass
from diffprobe.core.result import RESULT_FILE, read_result
from diffprobe.evaluation.certificates.method import Method, call, load_callable
from diffprobe.evaluation.certificates.settings import WorldSettings

if TYPE_CHECKING:
    from diffprobe.analysis.certification.readout import ReadoutRules
    from diffprobe.runs.rescore import ScoredRun
    from diffprobe.shards.scenes.factors import Scenes
    from diffprobe.shards.scenes.spec import WorldSpec

HELP = "a run of a classifier on scenes, with runs of its ladder of controls, or a function that trains and predicts"
SIGNATURE = (
    "(train_features: float32 array (n, d), train_labels: int64 array (n,), test_features: float32 array (m, d)) -> "
    "predicted labels (m,)"
)
_KINDS = ("classifier",)
_OF_CALLABLES = ("backbone", "n_train", "n_test", "resolution", "noise_seed")
"""Settings without an effect on a saved run."""
_PIXELS, _VAE = "raw_pixels", "vae_latents"
"""Rungs that a callable is compared with, named as those of the ladder."""
_FOLDS = 5


class ReadoutMethod(Protocol):
    """A callable that learns a factor from features, and predicts it."""

    def __call__(
        self, train_features: NDArray[np.float32], train_labels: NDArray[np.int64], test_features: NDArray[np.float32]
    ) -> NDArray[np.int64]:
        """Return the predicted label of each test scene, shape (m,).

        Args:
            train_features: of independent scenes, shape (n, d).
            train_labels: code of the factor's value in each of them, from 0.
            test_features: of other scenes, shape (m, d).
        """


@dataclass(frozen=True, kw_only=True)
class Config(WorldSettings):
    """Settings and thresholds of certificates of readouts."""

    cell: str = ""
    """Cell of the classifier; one that was chosen before, on val."""
    backbone: str | None = None
    """Of a callable: folder or name of the backbone whose features it reads."""
    n_train: int = 1000
    """Of a callable: scenes of `train` that it learns from."""
    n_test: int = 500
    """Of a callable: scenes of `test` that are predicted."""
    resolution: int = 64
    """Of a callable: side of the images in pixels, 64 or 32."""
    noise_seed: int = 0
    """Of a callable: seed of the noise of the features."""
    target: str = "label"
    """What is read: "label" (the role) or a factor."""
    metric: Literal["accuracy", "balanced_accuracy"] = "balanced_accuracy"
    """The score."""
    rungs: tuple[str, ...] = ()
    """Folders of runs to compare with; none for the rungs of the ladder that are beside the run."""
    n_permutations: int = 1000
    """Permutations of the labels of the null distribution."""
    least_score: float = 0.5
    """Least score."""
    least_gain: float = 0.2
    """Least gain over each rung; its interval also has to exclude 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(19, n_permutations=self.n_permutations)
        at_least(20, n_train=self.n_train, n_test=self.n_test)
        at_least(0, least_score=self.least_score, least_gain=self.least_gain)
        if not self.cell:
            raise ConfigError("a readout is certified in one cell.", fix="cell=CELL, the one that was chosen on val")


def accepts(path: Path) -> bool:
    """Return whether a folder is a finished run of a classifier."""
    try:
        return path.is_dir() and read_result(path / RESULT_FILE).kind in _KINDS
    except (DiffprobeError, FileNotFoundError):
        return False


def certify(method: Method, config: Config) -> Certificate:
    """Measure a classifier and its gain over each rung; the strongest rung is the baseline that has to fail.

    Raises: ConfigError for settings without an effect, a callable without a backbone or with predictions of another
        form, or a cell with several vectors per sample; UnknownName for a target that is not a factor of the world;
        EmptyClass for a factor of which one value is drawn; RunFailed for a run without kept predictions, without
        rungs, or with other samples than a rung; the errors of opening the backbone and of the callable.
    """
    return _of_callable(method, config) if method.path is None else _of_run(method.path, config)


def _of_run(path: Path, config: Config) -> Certificate:
    from diffprobe.features.cell_selection import choose_cell
    from diffprobe.runs.rescore import load_run
    from diffprobe.runs.rescore_ladder import rungs_of

    default = {one.name: one.default for one in fields(Config)}
    changed = [name for name in _OF_CALLABLES if getattr(config, name) != default[name]]
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} would have no effect: '{path}' is a run, which has its own.",
            fix=f"leave {', '.join(changed)} out",
        )
    spec = config.load_world()
    if config.target != "label":
        spec.names(config.target)
    one = load_run(path)
    rungs = {Path(run).name: Path(run) for run in config.rungs} or rungs_of(path)
    others = {name: load_run(folder) for name, folder in rungs.items()}
    cell = choose_cell(config.cell, sorted({str(head.cell) for head in one.predictions.heads}))
    checks = _checks(one, others, config, cell)
    gains = {check.target: check.value for check in checks if check.name == "gain"}
    strongest = min(gains, key=lambda name: gains[name])
    assert strongest is not None
    why = f"the strongest rung of the ladder ({strongest}), as if it were the method: it gains nothing over itself"
    baseline = Subject(name=strongest, why=why, checks=_checks(others[strongest], others, config, cell))
    return Certificate(
        kind="readout", method=Subject(name="method", checks=checks), baselines=(baseline,),
        facts={"cell": cell, "target": config.target, "world file": spec.digest[:12], "rungs": ", ".join(rungs)},
        seeds={"bootstrap": config.seed, "permutation": config.seed},
    )  # fmt: skip


def _of_callable(method: Method, config: Config) -> Certificate:
    from diffprobe.analysis.certification.readout import ReadoutRules
    from diffprobe.evaluation.certificates.scene_features import SceneReader
    from diffprobe.shards.scenes.factors import sample
    from diffprobe.shards.scenes.splits import split_indices

    if config.rungs:
        raise ConfigError("rungs have no effect on a callable, whose rungs are fitted here.", fix="leave rungs out")
    if config.backbone is None:
        raise ConfigError("a callable readout needs a backbone.", fix="backbone=FOLDER, or backbone=pixels")
    spec = config.load_world()
    target = "role" if config.target == "label" else config.target
    names = spec.names(target)
    read = load_callable(method.name, SIGNATURE, 3)
    reader = SceneReader(
        spec, config.backbone, config.cell, resolution=config.resolution, noise_seed=config.noise_seed
    )  # fmt: skip
    if reader.has_places:
        raise ConfigError(f"cell '{config.cell}' has more than one vector per sample; a readout needs one.")
    train, test = (
        sample(spec, config.seed, split_indices(spec, config.seed, split, n, world=config.world), world=config.world)
        for split, n in (("train", config.n_train), ("test", config.n_test))
    )
    learned, labels = train.factors[target], test.factors[target]
    for split, drawn in (("train", learned), ("test", labels)):
        if len(np.unique(drawn)) < 2:
            raise EmptyClass(f"factor '{target}': one of its values is drawn in {split}; 2 are needed.")
    answer = call(read, method.name, SIGNATURE, reader.read(train), learned.copy(), reader.read(test))
    predicted = _predictions(answer, method.name, len(labels))
    balanced = config.metric == "balanced_accuracy"
    features, missing = _rung_features(spec, config, train, test)
    rungs = {
        name: linear_cv(*pair, learned, n_classes=len(names), balanced=balanced) for name, pair in features.items()
    }
    rules = ReadoutRules(
        metric=config.metric, least_score=config.least_score, least_gain=config.least_gain, alpha=config.alpha,
        level=config.level, n_permutations=config.n_permutations, n_resamples=config.n_resamples, seed=config.seed,
    )  # fmt: skip
    return _compared(predicted, rungs, labels, rules, missing, facts={
        "world": f"{config.world}, digest {spec.digest[:12]}", "backbone": config.backbone, "cell": reader.cell.name,
        "target": f"{target}, {len(names)} values", "scenes": f"{len(learned)} train, {len(labels)} test",
    }, seeds={"scenes": config.seed, "noise": config.noise_seed, "bootstrap": config.seed})  # fmt: skip


def _compared(
    predicted: NDArray[np.int64], rungs: dict[str, NDArray[np.int64]], labels: NDArray[np.int64],
    rules: "ReadoutRules", missing: dict[str, str], *, facts: dict[str, str], seeds: dict[str, int],
) -> Certificate:  # fmt: skip
    from diffprobe.analysis.certification.readout import readout_checks, score_of

    strongest = max(rungs, key=lambda name: score_of(rules.metric, rungs[name], labels))
    why = f"a linear classifier of {strongest}, the strongest rung, as if it were the method: it gains nothing"
    baseline = Subject(name=strongest, why=why, checks=readout_checks(rungs[strongest], rungs, labels, rules))
    return Certificate(
        kind="readout",
        method=Subject(name="method", checks=readout_checks(predicted, rungs, labels, rules)),
        baselines=(baseline,), not_measured=missing, facts={**facts, "rungs": ", ".join(rungs)}, seeds=seeds,
    )  # fmt: skip


def _rung_features(
    spec: "WorldSpec", config: Config, train: "Scenes", test: "Scenes"
) -> "tuple[dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]], dict[str, str]]":
    """Return rung -> features of the train and test scenes, and rung -> why it is missing."""
    from diffprobe.backbones.locate import locate
    from diffprobe.backbones.parts import LATENTS, why_without
    from diffprobe.evaluation.certificates.scene_features import SceneReader

    assert config.backbone is not None
    resolution, noise_seed = config.resolution, config.noise_seed
    readers = {_PIXELS: SceneReader(spec, "pixels", "pixels@t0", resolution=resolution, noise_seed=noise_seed)}
    reason = why_without("vae", locate(config.backbone))
    if reason is None:
        readers[_VAE] = SceneReader(
            spec, config.backbone, f"{LATENTS}@t0", part="vae", resolution=resolution, noise_seed=noise_seed
        )
    found = {name: (reader.read(train), reader.read(test)) for name, reader in readers.items()}
    return found, {} if reason is None else {f"gain over {_VAE}": reason}


def linear_cv(
    train: NDArray[np.float32], test: NDArray[np.float32], labels: NDArray[np.int64], *, n_classes: int, balanced: bool
) -> NDArray[np.int64]:
    """Return the predictions of a linear classifier whose L2 penalty is cross-validated, as `probe=linear_cv` does it.

    Args:
        train, test: features (samples, d).
        labels: class ids of the train samples, from 0.
        balanced: whether classes have equal weight.

    Raises: EmptyClass for labels of one class.
    """
    import torch

    from diffprobe.probes.grouped_folds import grouped_folds
    from diffprobe.probes.l2_selection import DEFAULT_PATH, Task, select_l2

    folds = grouped_folds([str(row) for row in range(len(labels))], labels, n_folds=_FOLDS)
    ((found,),) = select_l2(
        torch.from_numpy(train)[None], [Task(labels, folds)], n_classes=n_classes, path=DEFAULT_PATH,
        balanced=balanced, one_standard_error=False, patience=2, dtype=torch.float32,
    )  # fmt: skip
    logits = torch.from_numpy(test).double() @ found.weight.T + found.bias
    predicted: NDArray[np.int64] = logits.argmax(1).numpy()
    return predicted


def _predictions(answer: object, name: str, n: int) -> NDArray[np.int64]:
    found = np.asarray(answer)
    if found.shape != (n,) or not (np.issubdtype(found.dtype, np.integer) or found.dtype == np.bool_):
        raise ConfigError(
            f"'{name}' returned {found.dtype} of the shape {found.shape} for {n} test samples.", f"needed: {SIGNATURE}"
        )
    return found.astype(np.int64)


def _checks(one: "ScoredRun", others: "dict[str, ScoredRun]", config: Config, cell: str) -> tuple[Check, ...]:
    """Return the score, and the paired gain over each other run; of rungs with other cells, of their only one."""
    from diffprobe.runs.rescore import Bootstrap, Permutations, compare, rescore

    def place(run: "ScoredRun") -> dict[str, str]:
        has_cell = any(head.cell == cell for head in run.predictions.heads)
        return {"target": config.target, **({"cell": cell} if has_cell else {})}

    where = place(one)
    drawn = Bootstrap(resamples=config.n_resamples, level=config.level, seed=config.seed)
    null = Permutations(n=config.n_permutations, seed=config.seed)
    score = rescore(one, metrics=[config.metric], where=where, bootstrap=drawn, null=null)[0]
    found = [
        Check(
            name=config.metric, value=score.value, interval=_interval(score.detail), n=score.n,
            null={key: score.detail["null"][key] for key in ("p", "smallest_p", "mean")},
            rule=Rule(keys="least_score, alpha", low=config.least_score, alpha=config.alpha),
            what="score on test; intervals resample groups, p is from permuted labels",
        )
    ]  # fmt: skip
    for name, other in others.items():
        value, interval, n = 0.0, (0.0, 0.0), score.n  # a rung over itself
        if other is not one:
            gain = compare(
                one, other, metrics=[config.metric], where=where, other_where=place(other), bootstrap=drawn
            )[0]  # fmt: skip
            value, interval, n = gain.value, _interval(gain.detail), gain.n
        found.append(
            Check(
                name="gain", target=name, value=value, interval=interval, n=n,
                rule=Rule(keys="least_gain", low=config.least_gain, interval_above=0.0),
                what=f"{config.metric} minus that of the rung, over the same samples; the interval is paired",
            )
        )  # fmt: skip
    return tuple(found)


def _interval(detail: dict[str, Any]) -> tuple[float, float]:
    low, high = detail["interval"]
    return float(low), float(high)
