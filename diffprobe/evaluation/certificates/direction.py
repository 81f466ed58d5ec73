"""Certify a direction: against the changes that counterfactual pairs of one factor make in the features of a cell.

With a generative model of the world, its effect on generated images is measured, too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Certificate, Subject
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, DiffprobeError, EmptyClass
from diffprobe.evaluation.certificates.method import Method, call, load_callable
from diffprobe.evaluation.certificates.scene_features import SceneReader, brightness
from diffprobe.evaluation.certificates.settings import WorldSettings, in_unit_range
from diffprobe.evaluation.certificates.steering import SteeredGenerator, SteeringSettings, steering_effects

if TYPE_CHECKING:
    from diffprobe.shards.scenes.factors import Scenes
    from diffprobe.shards.scenes.spec import WorldSpec

HELP = "a direction in the features of a cell: a folder of `Direction.save`, or an estimator"
_RANDOM = "random direction"
"""Name of the baseline that is steered, too."""
SIGNATURE = "(features: float32 array (n, d), positive: bool array (n,)) -> array (d,), towards the positive samples"


class DirectionMethod(Protocol):
    """A callable that estimates a direction from labelled samples."""

    def __call__(self, features: NDArray[np.float32], positive: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the direction, shape (d,), of any norm but 0.

        Args:
            features: of independent scenes that show either value, shape (n, d).
            positive: whether each scene shows the positive value.
        """


@dataclass(frozen=True, kw_only=True)
class Config(WorldSettings, SteeringSettings):
    """Settings and thresholds of certificates of directions."""

    backbone: str = ""
    """Folder or name of the backbone whose features the direction is for."""
    factor: str | None = None
    """Factor of the world; None for the target of a saved direction."""
    positive: str | None = None
    """Value at the positive end; None for that of a saved direction."""
    negative: str | None = None
    """Value at the negative end; None for that of a saved direction."""
    cell: str | None = None
    """Cell of the features; None for that of a saved direction."""
    other_factors: tuple[str, ...] = ("colour", "build", "size", "pose", "place", "background", "object", "side")
    """Factors whose pairs must move the coordinate less; the certified one is left out."""
    n_pairs: int = 400
    """Scenes that are drawn for the pairs of each factor; those that are held out on one side are not paired."""
    n_train: int = 1000
    """Scenes from which a callable estimates its direction, of other indices than those of the pairs."""
    n_random: int = 1000
    """Random directions of the null distribution; p is at least one over one more."""
    resolution: int = 64
    """Side of the images in pixels, 64 or 32."""
    noise_seed: int = 0
    """Seed of the noise of the features."""
    least_split_half: float = 0.5
    """Least cosine of the counterfactual directions of two halves: below it there is no direction to agree with."""
    least_agreement: float = 0.8
    """Least cosine with the counterfactual direction, relative to its ceiling."""
    least_auroc: float = 0.9
    """Least probability that a positive member has a larger coordinate than a negative one."""
    least_selectivity: float = 0.75
    """Least probability that an own pair moves the coordinate further than a pair of another factor does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(8, n_pairs=self.n_pairs, n_train=self.n_train)
        at_least(19, n_random=self.n_random)
        in_unit_range(
            least_split_half=self.least_split_half, least_agreement=self.least_agreement, least_auroc=self.least_auroc,
            least_selectivity=self.least_selectivity,
        )  # fmt: skip
        if not self.backbone:
            raise ConfigError(
                "a certificate of a direction needs a backbone.", fix="backbone=FOLDER, or backbone=pixels"
            )
        self.check_steering()


def accepts(path: Path) -> bool:
    """Return whether a folder is a saved direction."""
    from diffprobe.probes.serialization import kind_of

    try:
        return path.is_dir() and kind_of(path) == "probe/direction"
    except DiffprobeError:
        return False


@dataclass(frozen=True, kw_only=True)
class _Ends:
    factor: str
    positive: str
    negative: str
    cell: str


def certify(method: Method, config: Config) -> Certificate:
    """Measure a direction, and directions that are wrong.

    Raises: ConfigError for ends or a cell that are not given; UnknownName for a factor or value that the world lacks;
        EmptyClass for too few pairs; the errors of opening the backbone and the generator, and of the callable.
    """
    spec = config.load_world()
    saved, ends = _ends(method, config)
    positive, negative = spec.code(ends.factor, ends.positive), spec.code(ends.factor, ends.negative)
    if positive == negative:
        raise ConfigError(f"both ends of factor '{ends.factor}' are '{ends.positive}': they must differ.")
    for other in config.other_factors:
        spec.names(other)
    estimate = load_callable(method.name, SIGNATURE, 2) if saved is None else None

    from diffprobe.analysis.certification.direction import DirectionRules, PairFeatures, direction_checks

    reader = SceneReader(
        spec, config.backbone, ends.cell, resolution=config.resolution, noise_seed=config.noise_seed
    )  # fmt: skip
    if reader.has_places:
        raise ConfigError(f"cell '{ends.cell}' has more than one vector per sample; a direction needs one.")
    generator = None
    if config.generator is not None:  # opened before the long work, so that errors come at once
        generator = SteeredGenerator(spec, config, reader.cell, seed=config.noise_seed)
    drawn = _draw(spec, config, 0, config.n_pairs)
    low, high = counterfactual_ends(spec, drawn, ends.factor, negative, positive)
    at_low, at_high = reader.read(low).astype(np.float64), reader.read(high).astype(np.float64)
    others = {
        factor: _changes(spec, reader, drawn, factor) for factor in config.other_factors if factor != ends.factor
    }  # fmt: skip
    pairs = PairFeatures(own=at_high - at_low, negative=at_low, positive=at_high, others=others)
    training = _draw(spec, config, config.n_pairs, config.n_train)
    features = reader.read(training)
    if estimate is not None:
        codes = training.factors[ends.factor]
        kept = (codes == positive) | (codes == negative)
        is_positive = codes[kept] == positive
        if not is_positive.any() or is_positive.all():
            raise EmptyClass(f"of {config.n_train} scenes none shows one of the ends.", fix="a larger n_train")
        found = call(estimate, method.name, SIGNATURE, features[kept], is_positive)
        vector = np.asarray(found, dtype=np.float64)
    else:
        assert saved is not None
        vector = saved
    rules = DirectionRules(
        least_split_half=config.least_split_half, least_agreement=config.least_agreement,
        least_auroc=config.least_auroc, least_selectivity=config.least_selectivity, alpha=config.alpha,
        level=config.level, n_random=config.n_random, n_resamples=config.n_resamples, seed=config.seed,
    )  # fmt: skip
    checks = direction_checks(vector, pairs, rules)
    wrong = {name: (why, direction_checks(found, pairs, rules)) for name, why, found in
             _wrong(spec, config, others, features, training)}  # fmt: skip
    if generator is not None:
        unit = vector / np.linalg.norm(vector)
        own, random = steering_effects(
            generator, vector, np.concatenate([at_low @ unit, at_high @ unit]), config, factor=ends.factor,
            value=positive, alpha=config.alpha, level=config.level, n_resamples=config.n_resamples, seed=config.seed,
        )  # fmt: skip
        checks += own
        wrong[_RANDOM] = (wrong[_RANDOM][0], wrong[_RANDOM][1] + random)
    return Certificate(
        kind="direction", method=Subject(name="method", checks=checks),
        baselines=tuple(Subject(name=name, why=why, checks=found) for name, (why, found) in wrong.items()),
        not_measured={} if generator else {"steering": "no generative model of the world is given (generator)"},
        facts={
            "world": f"{config.world}, digest {spec.digest[:12]}", "backbone": config.backbone,
            "cell": reader.cell.name,
            "factor": f"{ends.factor}: {ends.positive} against {ends.negative}", "pairs": f"{len(pairs.own)}",
            **(generator.facts if generator else {}),
        },
        seeds={"scenes": config.seed, "noise": config.noise_seed, "bootstrap": config.seed},
    )  # fmt: skip


def _ends(method: Method, config: Config) -> "tuple[NDArray[np.float64] | None, _Ends]":
    """Return the vector of a saved direction, and both ends: those of the configuration, else its own."""
    named = {"factor": config.factor, "positive": config.positive, "negative": config.negative, "cell": config.cell}
    vector = None
    if method.path is not None:
        from diffprobe.evaluation.decode import run_of
        from diffprobe.probes.direction.base import Direction
        from diffprobe.runs.massive_notes import refuse_treated_run

        saved = Direction.load(method.path)
        refuse_treated_run(run_of(method.path), "a certificate")
        vector = saved.vector.double().numpy()
        own = {"factor": saved.target, "positive": saved.positive, "negative": saved.negative, "cell": saved.cell}
        named = {key: value or own[key] for key, value in named.items()}
    given = {key: value for key, value in named.items() if value}
    missing = [key for key in named if key not in given]
    if missing:
        raise ConfigError(
            f"'{method.name}' does not name {', '.join(missing)}.",
            fix=" ".join(f"{key}={key.upper()}" for key in missing),
        )
    return vector, _Ends(**given)


def _draw(spec: "WorldSpec", config: Config, start: int, n: int) -> "Scenes":
    """Draw scenes of the split `test` for pairs (start 0), and others for training."""
    from diffprobe.shards.scenes.factors import sample
    from diffprobe.shards.scenes.splits import split_indices

    indices = split_indices(spec, config.seed, "test" if start == 0 else "train", n, world=config.world)
    return sample(spec, config.seed, indices, world=config.world)


def counterfactual_ends(
    spec: "WorldSpec", scenes: "Scenes", factor: str, first: int, second: int
) -> "tuple[Scenes, Scenes]":
    """Return the scenes with either value of a factor, without those that are held out with one of them.

    Raises: EmptyClass below 8 pairs.
    """
    from diffprobe.shards.scenes.factors import counterfactual_scenes
    from diffprobe.shards.scenes.splits import splits_of

    one, other = (counterfactual_scenes(scenes, factor, code) for code in (first, second))
    kept = np.flatnonzero(splits_of(spec, one) == splits_of(spec, other))
    if len(kept) < 8:
        raise EmptyClass(f"factor '{factor}': {len(kept)} pairs are not held out; at least 8 are needed.")
    return one.select(kept), other.select(kept)


def _changes(spec: "WorldSpec", reader: SceneReader, scenes: "Scenes", factor: str) -> NDArray[np.float64]:
    """Return how another random value of a factor changes the features, (pairs, d)."""
    from diffprobe.shards.scenes.pairs import pairs_of

    found = pairs_of(spec, scenes, factor)
    return reader.read(found.changed).astype(np.float64) - reader.read(found.base)


def _wrong(
    spec: "WorldSpec", config: Config, others: "dict[str, NDArray[np.float64]]", features: NDArray[np.float32],
    training: "Scenes",
) -> "list[tuple[str, str, NDArray[np.float64]]]":  # fmt: skip
    """Return (name, why, direction) of the baselines that have to fail."""
    width = features.shape[1]
    random: NDArray[np.float64] = np.random.default_rng(config.seed).standard_normal(size=(width,))
    found = [(_RANDOM, "a random direction carries no information about the factor", random)]
    norms = {factor: float(np.linalg.norm(changes.mean(0))) for factor, changes in others.items()}
    largest = max(norms, key=lambda factor: norms[factor], default="")
    if largest and norms[largest] > 0:
        why = f"the mean change by pairs of {largest}, the other factor that moves the features most in one direction"
        found.append((f"direction of {largest}", why, np.asarray(others[largest].mean(0))))
    light = brightness(spec, training, resolution=config.resolution)
    centred = features.astype(np.float64) - features.mean(0)
    follows = centred.T @ (light - light.mean())
    if np.linalg.norm(follows) > 0:
        why = "the covariance of the features with the mean pixel, which the factor does not determine"
        found.append(("pixel mean", why, follows))
    return found
