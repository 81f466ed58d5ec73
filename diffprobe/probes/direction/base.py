"""What all estimates of a direction share: its two ends, the artifact, fitting in memory, and random directions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError, EmptyClass, SchemaError, unknown
from diffprobe.core.foreign import naming
from diffprobe.core.registry import probes
from diffprobe.core.rng import derive_seed
from diffprobe.metrics.moments import Moments
from diffprobe.probes.full_batch import Array, as_features, as_labels
from diffprobe.probes.grouped_folds import grouped_folds
from diffprobe.probes.serialization import SETTINGS, load_probe, save_probe

KIND, SCHEMA_VERSION = "probe/direction", 2


@dataclass(frozen=True, kw_only=True)
class DirectionConfig:
    """Keys that every estimator has, below `probe.params`."""

    positive: str | tuple[str, ...]
    """Value at the positive end, one for each of probe.targets; several values of one end are joined by "|"."""
    negative: str | tuple[str, ...] = "*"
    """Value at the negative end, one for each of probe.targets; "*" for every other value."""
    n_random: int = 100
    """Number of random directions of the control `random_direction`; p is at least one over one more."""
    n_shuffles: int = 100
    """Number of estimates from shuffled training labels of the control `shuffled_labels`; p as for n_random."""

    def __post_init__(self) -> None:
        if self.n_random < 2 or self.n_shuffles < 2:
            raise ConfigError(
                f"n_random={self.n_random}, n_shuffles={self.n_shuffles}: a control with a spread needs at least 2.",
                "p is at least 1 / (1 + n): 19 allow 0.05, 100 allow 0.0099",
                fix="probe.params.n_random=100 probe.params.n_shuffles=100",
            )

    def axes(self, cells: Sequence[str], classes: Mapping[str, Sequence[str]]) -> list["ContrastPair"]:
        """Return the contrast pair of each target in each cell.

        Args:
            cells: names of the cells.
            classes: target -> names of its values.

        Raises: ConfigError if the number of ends differs from that of the targets, or if the ends of a target overlap
            or leave no value; UnknownName for a value that a target does not have.
        """
        positive, negative = _each(self.positive, len(classes)), _each(self.negative, len(classes))
        if len(positive) != len(classes) or len(negative) != len(classes):
            raise ConfigError(
                f"{len(classes)} targets ({', '.join(classes)}) with {len(positive)} positive and {len(negative)} "
                "negative ends.",
                "probe.params.positive and .negative need one value for each target, in their order",
            )
        made = []
        for (target, names), above, below in zip(classes.items(), positive, negative, strict=True):
            up = _ids(target, above, names)
            down = tuple(i for i in range(len(names)) if i not in up) if below == "*" else _ids(target, below, names)
            if not down or set(up) & set(down):
                raise ConfigError(f"target '{target}': the ends '{above}' and '{below}' must be two different sides.")
            label = "other than " + above if below == "*" else below
            made += [ContrastPair(cell, target, above, label, up, down) for cell in cells]
        return made


class FoldConfig(Protocol):
    """Keys of an estimator that is cross-validated, besides those of `DirectionConfig`."""

    @property
    def folds(self) -> int:
        """Number of folds of whole groups."""

    @property
    def fold_seed(self) -> int:
        """Seed of the folds."""


class NuisanceConfig(Protocol):
    """Keys of an estimator that adjusts for nuisances, besides those of `DirectionConfig`."""

    @property
    def nuisances(self) -> tuple[str, ...]:
        """Names of the attributes; a target among them is left out for itself."""


class AdjustedMoments(NamedTuple):
    """Sums over samples with features x, 0/1 label columns y and nuisances z, float64."""

    labels: Moments
    """Of x and y."""
    nuisances: Moments
    """Of x and z: the sum of x z^T is its `xy`."""
    design: Moments
    """Of z and y, with the sum of z z^T."""


class ChosenPenalty(NamedTuple):
    """How cross-validation chose the penalty of one label column."""

    alpha: float
    """The chosen penalty."""
    at_edge: bool
    """Whether it is an end of the path, so that the best penalty may lie outside."""
    path: tuple[float, ...]
    """The penalties, largest first."""
    errors: tuple[float, ...]
    """Mean squared error of held-out 0/1 labels for each."""


class ContrastPair(NamedTuple):
    """Two ends of one target in the features of one cell."""

    cell: str
    target: str
    positive: str
    negative: str
    positive_ids: tuple[int, ...]
    negative_ids: tuple[int, ...]

    def side(self, label: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Return 1 at the positive end, 0 at the negative end, -1 elsewhere."""
        side = torch.full_like(label, -1)
        side[torch.isin(label, label.new_tensor(self.negative_ids))] = 0
        side[torch.isin(label, label.new_tensor(self.positive_ids))] = 1
        return side


def _each(ends: str | tuple[str, ...], n: int) -> tuple[str, ...]:
    if isinstance(ends, str):  # a single value is for a single target; "*" is for all
        return (ends,) * (n if ends == "*" else 1)
    return ends


def _ids(target: str, ends: str, names: Sequence[str]) -> tuple[int, ...]:
    for name in ends.split("|"):
        if name not in names:
            raise unknown(f"value of target '{target}'", name, names)
    return tuple(sorted(names.index(name) for name in ends.split("|")))


@dataclass(frozen=True, kw_only=True, eq=False)
class Direction:
    """A unit vector in the feature space of one cell.

    Attributes:
        vector: unit norm, float32; points from the negative to the positive end.
        scale: distance between the means of both ends along the vector on the training set, in the unit of the
            features: adding scale * vector to a feature moves a negative sample to the positive mean.
        midpoint: coordinate half way between the means of both ends: where `predict` changes sides.
        target, positive, negative: the attribute and the values at both ends.
        cell: name of the cell whose features it is for.
        estimator: file in `probes/direction` that found it; "paired_mean_difference" for one from prompts.
    """

    vector: Float[Tensor, " d_in"]
    scale: float
    midpoint: float
    target: str
    positive: str
    negative: str
    cell: str
    estimator: str

    @classmethod
    def fit(
        cls,
        x: Array,
        y: Array,
        *,
        estimator: str = "mean_difference",
        target: str = "label",
        positive: str = "1",
        negative: str = "0",
        cell: str = "",
        groups: Sequence[str] | None = None,
        covariates: Array | None = None,
        **params: Any,
    ) -> "Direction":
        """Estimate the direction that separates two groups of features in memory.

        Closed-form estimators give what a run gives, to rounding; a trained one is fitted by full-batch L-BFGS. No
        step is random, so no seed is needed.

        Args:
            x: features (samples, d_in) in any unit.
            y: True or 1 for samples at the positive end, False or 0 for those at the negative end; -1 leaves one out.
            estimator: file in `probes/direction`.
            target, positive, negative, cell: names to record.
            groups: group of each sample, for an estimator with cross-validation, whose folds are of whole groups; None
                for single samples.
            covariates: nuisances (samples, n) for an estimator that adjusts for them, categories as 0/1 columns; None
                for any other.
            params: keys of the estimator's `Config`, for example alpha=0.3.

        Raises: UnknownName for an unknown estimator, ConfigError for unknown or bad params and arrays of the wrong
            shape, EmptyClass if an end has no sample, NonFinite for features with NaN or infinity.
        """
        file = probes("direction").load(estimator)
        if (covariates is not None) != is_adjusted(estimator):
            raise ConfigError(
                f"direction '{estimator}' {'needs' if covariates is None else 'does not take'} covariates.",
                fix="covariates=ARRAY of shape (samples, n)" if covariates is None else "leave covariates out",
            )
        if covariates is not None:
            params.setdefault("nuisances", ("covariates",))
        config = parse(file.Config, {"positive": positive, "negative": negative, **params}, at="params")
        found = as_features(x).detach()
        side = as_labels(y, len(found)).to(device=found.device, dtype=torch.int64)
        if not torch.isin(side, side.new_tensor([-1, 0, 1])).all():
            raise ConfigError("y of a direction must be 0 or 1 (or -1 for samples to leave out).")
        if groups is not None and not is_cross_validated(estimator):
            raise ConfigError(f"groups have no effect on direction '{estimator}'.", fix="leave groups out")
        if groups is not None and len(groups) != len(found):
            raise ConfigError(f"{len(groups)} groups for {len(found)} samples.")
        kept = (side >= 0).nonzero().flatten().tolist()
        columns_of_z = None if covariates is None else as_features(covariates).detach().to(found.device)[side >= 0]
        names_of_groups = [str(i) if groups is None else str(groups[i]) for i in kept]
        found, side = found[side >= 0], side[side >= 0]
        sums = moments_of(found, side == 1, gram=file.NEEDS_GRAM)
        class_means(sums)  # an end without samples is reported before anything is fitted
        if columns_of_z is not None:
            if len(columns_of_z) != len(found):
                raise ConfigError(f"covariates of {len(columns_of_z)} samples for features of {len(found)}.")
            sums_of_z = moments_of(found, columns_of_z, gram=False)
            design = moments_of(columns_of_z, side == 1, gram=True)
            columns = file.estimate_adjusted(AdjustedMoments(sums, sums_of_z, design), config)
        elif is_trained(estimator):
            columns = file.fit(found, side == 1, config)[:, None]
        elif is_cross_validated(estimator):
            folds = grouped_folds(names_of_groups, side.cpu().numpy(), n_folds=config.folds, seed=config.fold_seed).fold
            parts = [torch.from_numpy(folds == k).to(found.device) for k in range(config.folds)]
            columns, _ = file.estimate_cv([moments_of(found[at], side[at] == 1, gram=True) for at in parts], config)
        else:
            columns = file.estimate(sums, config)
        names = {"target": target, "positive": positive, "negative": negative, "cell": cell, "estimator": estimator}
        unit = columns / columns.norm(dim=0, keepdim=True).clamp(min=1e-300)
        return cls.of(unit[:, 0], sums, **names)

    @classmethod
    def of(cls, unit: Float[Tensor, " d_in"], moments: Moments, **names: str) -> "Direction":
        """Return an estimate as an artifact.

        Args:
            unit: the direction, float64, of norm 1.
            moments: sums over the training set; the first column is the side of each sample.
            names: target, positive, negative, cell, estimator.
        """
        above, below = (mean[:, 0] for mean in class_means(moments))
        scale, midpoint = float((above - below) @ unit), float((above + below) @ unit) / 2
        return cls(vector=unit.float().cpu(), scale=scale, midpoint=midpoint, **names)

    def project(self, x: Array) -> Float[Tensor, " batch"]:
        """Return the coordinate of features along the direction, in their unit."""
        found = torch.as_tensor(x)
        return found @ self.vector.to(found)

    def predict(self, x: Array) -> Bool[Tensor, " batch"]:
        """Return whether each sample is nearer to the positive end, by its coordinate."""
        return self.project(x) > self.midpoint

    def score(self, x: Array, y: Array) -> float:
        """Return the area under the ROC curve of the coordinate, in 0..1; samples labelled -1 are left out.

        Raises: EmptyClass if an end has no sample, NonFinite for NaN.
        """
        from diffprobe.metrics.auroc import auroc

        coordinate = self.project(x)
        side = as_labels(y, len(coordinate)).to(coordinate.device, torch.int64)
        known = side >= 0
        return float(auroc(coordinate[known][:, None], side[known] == 1)[0])

    def save(self, folder: Path | str) -> Path:
        """Write the direction to a folder (safetensors and JSON)."""
        settings = asdict(self)
        tensors = {"vector": settings.pop("vector")}
        return save_probe(folder, kind=KIND, schema_version=SCHEMA_VERSION, settings=settings, tensors=tensors)

    @classmethod
    def load(cls, folder: Path | str) -> "Direction":
        """Read what `save` wrote. Raises: SchemaError."""
        settings, tensors = load_probe(folder, kind=KIND, schema_version=SCHEMA_VERSION)
        with naming(Path(folder) / SETTINGS, "the settings of a direction", error=SchemaError):
            if tensors["vector"].ndim != 1:
                raise SchemaError(f"'{folder}': the vector has the shape {tuple(tensors['vector'].shape)}.")
            # a copy is aligned as the trained vector is; a product rounds by where its factors lie in memory
            return cls(vector=tensors["vector"].clone(), **settings)


def is_trained(estimator: str) -> bool:
    """Return whether an estimator is trained by gradient, not in closed form.

    Raises: UnknownName for an unknown estimator; ConfigError for a file that offers neither way or both.
    """
    file = probes("direction").load(estimator)
    offers = [name for name in ("estimate", "estimate_cv", "estimate_adjusted", "make") if hasattr(file, name)]
    if len(offers) != 1:
        raise ConfigError(
            f"direction '{estimator}' must offer one of estimate (closed form), estimate_cv (closed form, by "
            "cross-validation), estimate_adjusted (closed form, with nuisances) and make (trained); it offers: "
            f"{', '.join(offers) or 'none'}."
        )
    return offers == ["make"]


def is_cross_validated(estimator: str) -> bool:
    """Return whether an estimator needs sums over folds. Raises: UnknownName for an unknown estimator."""
    return hasattr(probes("direction").load(estimator), "estimate_cv")


def is_adjusted(estimator: str) -> bool:
    """Return whether an estimator needs sums over nuisances. Raises: UnknownName for an unknown estimator."""
    return hasattr(probes("direction").load(estimator), "estimate_adjusted")


def class_means(moments: Moments) -> tuple[Float[Tensor, "d_in columns"], Float[Tensor, "d_in columns"]]:
    """Return the means of the positive and of the negative side of each column, float64.

    Raises: EmptyClass if a side has no sample.
    """
    n_positive, n_negative = moments.y, moments.n - moments.y
    if (n_positive == 0).any() or (n_negative == 0).any():
        raise EmptyClass(
            f"a direction needs training samples at both ends; there are {int(n_positive.min())} positive and "
            f"{int(n_negative.min())} negative ones.",
        )
    return moments.xy / n_positive, (moments.x[:, None] - moments.xy) / n_negative


def random_directions(d_in: int, n: int, *, seed: int) -> Float[Tensor, "d_in n"]:
    """Draw unit vectors, uniform on the sphere, as columns (float64). They depend on seed, d_in and n alone."""
    generator = torch.Generator().manual_seed(derive_seed("random_direction", seed, d_in))
    columns = torch.randn(d_in, n, generator=generator, dtype=torch.float64)
    return columns / columns.norm(dim=0, keepdim=True)


def moments_of(x: Float[Tensor, "batch d_in"], positive: Tensor, *, gram: bool) -> Moments:
    """Return the moments of a whole set at once, float64; a Trainer gathers the same batch by batch."""
    x, y = x.double(), positive.double().reshape(len(x), -1)
    return Moments(len(x), x.sum(0), x.square().sum(0), y.sum(0), x.T @ y, x.T @ x if gram else None)
