"""What an audit measures at a cell: associations, positions, rates and words per axis; intersections and clusters."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float64

from diffprobe.analysis.audit.association import (
    Associations,
    Estimates,
    associate,
    centred,
    group_effect,
    labels_of,
    random_percentiles,
)
from diffprobe.analysis.audit.clusters import LEAST_SUBJECTS, Clustering, cluster_subjects
from diffprobe.analysis.audit.comparison import FEWEST, Amplification, RankAgreement, amplification, rank_agreement
from diffprobe.analysis.audit.descriptors import RankedWord, both_ends, describe_subjects
from diffprobe.analysis.audit.direction import AxisDirection, direction_of
from diffprobe.analysis.audit.latents import (
    AuditLatents,
    context_differences,
    descriptor_latents,
    end_latents,
    subject_latents,
)
from diffprobe.analysis.audit.rates import SubjectRates, rates_of, sides_of
from diffprobe.analysis.audit.spec import AuditSpec, Axis
from diffprobe.analysis.audit.variants import default_of, positions_of
from diffprobe.analysis.certification.intervals import rank_correlation
from diffprobe.analysis.statistics import Null
from diffprobe.core.errors import EmptyClass
from diffprobe.evaluation.audit_inputs import RateTable
from diffprobe.evaluation.audit_settings import Audit

Floats = Float64[np.ndarray, " subjects"]


@dataclass(frozen=True, kw_only=True, eq=False)
class AxisMeasures:
    """One axis at the main cell."""

    name: str
    direction: AxisDirection
    associations: Associations
    defaults: Estimates | None
    """The default analysis; None without variants."""
    positions: Estimates | None
    """Where each subject is between its variants; None without variants, with a single template, or if the
    direction does not separate the variants of a subject."""
    random_percentiles: Floats
    """Share of random directions with which each subject is associated less."""
    rates: SubjectRates | None
    """Rates from prompt latents; None without variants or with a single template."""
    ends: tuple[list[RankedWord], list[RankedWord]] | None
    """Descriptors at the positive and at the negative end; None with fewer than 2."""
    groups: dict[str, tuple[float, Null]]
    """Group -> effect size of its associations against those of the other subjects."""
    words_only: Floats | None
    """Association of each subject by the text encoder alone."""
    words_agreement: RankAgreement | None
    """Rank correlation of both."""

    @property
    def tested(self) -> Estimates:
        """The estimates that decide about discoveries: positions, or associations where there are no variants."""
        return self.associations.cosine if self.positions is None else self.positions


@dataclass(frozen=True, kw_only=True, eq=False)
class Intersection:
    """Two axes."""

    axes: tuple[str, str]
    cosine: float
    """Cosine of their directions: 0 where moving along one does not move along the other."""
    agreement: RankAgreement | None
    """Rank correlation of the associations of both; None for few subjects."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CellMeasures:
    """All axes at the main cell."""

    n_templates: int
    n_seeds: int
    axes: tuple[AxisMeasures, ...]
    intersections: tuple[Intersection, ...]
    clustering: Clustering | None
    """None for few subjects."""
    similar_words: list[list[RankedWord]]
    """Descriptors most similar to each subject; empty lists without descriptors."""
    compared: RateTable | SubjectRates | None
    """The rates of the main axis that are compared with the reference: of images, else from prompt latents."""
    images: RateTable | None
    """Rates of generated images."""
    reference: Floats
    """Reference rates."""
    amplified: Amplification | None
    """None without rates."""
    image_agreement: RankAgreement | None
    """Rank correlation of the associations with the rates of images."""

    def axis(self, name: str) -> AxisMeasures:
        """Return an axis by its name, which has to exist."""
        return next(axis for axis in self.axes if axis.name == name)


@dataclass(frozen=True, kw_only=True)
class OtherCell:
    """How one axis at another cell compares with the main cell."""

    axis: str
    agreement: float | None
    """Reliability of the direction at this cell."""
    rank_correlation: float
    """Spearman's correlation of the associations with those at the main cell."""


def measure_cell(
    config: Audit, latents: AuditLatents, *, words: AuditLatents | None, images: RateTable | None,
    reference: RateTable | None,
) -> CellMeasures:  # fmt: skip
    """Measure all axes.

    Args:
        latents: those of the main cell.
        words: latents of the same prompts by the text encoder alone.
        images: rates of generated images on the main axis.
        reference: reference rates; None for 0.5.

    Raises: ConfigError for a prompt without latents; EmptyClass for ends or subjects that do not differ.
    """
    subjects = subject_latents(latents, config)
    plain = centred(subjects)
    means = plain.mean((1, 2), dtype=np.float64)
    bank = _bank(latents, config, subjects)
    axes = tuple(_measure_axis(config, axis, latents, subjects, plain, bank, words) for axis in config.axes)
    main = next(axis for axis in axes if axis.name == config.main_axis)
    known = np.full(len(subjects), 0.5) if reference is None else reference.rate
    compared = images if images is not None else main.rates
    enough = len(subjects) >= FEWEST
    return CellMeasures(
        n_templates=subjects.shape[1], n_seeds=subjects.shape[2], axes=axes,
        intersections=tuple(_intersection(config, one, other) for one, other in combinations(axes, 2)),
        clustering=None if len(subjects) < LEAST_SUBJECTS else cluster_subjects(
            means, bank, config.descriptors, most=config.max_clusters, seed=config.seed
        ),
        similar_words=(
            describe_subjects(means, bank, config.descriptors, n=config.n_words) if config.descriptors
            else [[] for _ in subjects]
        ),
        compared=compared, images=images, reference=known,
        amplified=None if compared is None else amplification(compared.rate, compared.low, compared.high, known),
        image_agreement=(
            _agreement(config, main.associations.cosine.value, images.rate) if images is not None and enough else None
        ),
    )  # fmt: skip


def measure_other_cell(config: Audit, latents: AuditLatents, main: CellMeasures) -> list[OtherCell]:
    """Compare each axis at another cell with the main cell. Raises: as `measure_cell`."""
    means = centred(subject_latents(latents, config)).mean((1, 2), dtype=np.float64)
    found = []
    for axis in config.axes:
        direction = direction_of(context_differences(latents, config, axis), seed=config.seed)
        scores = _cosine_with(means, direction)
        known = main.axis(axis.name).associations.cosine.value
        found.append(OtherCell(
            axis=axis.name, agreement=direction.agreement, rank_correlation=rank_correlation(scores, known)
        ))  # fmt: skip
    return found


def _measure_axis(
    config: Audit, axis: Axis, latents: AuditLatents, subjects: np.ndarray, plain: np.ndarray, bank: np.ndarray,
    words: AuditLatents | None,
) -> AxisMeasures:  # fmt: skip
    sampling = config.sampling
    differences = context_differences(latents, config, axis)
    direction = direction_of(differences, seed=config.seed)
    associations = associate(plain, differences, direction, sampling)
    defaults = positions = rates = None
    if config.compare_variants:
        positive, negative = end_latents(latents, config, axis, config.all_subjects)
        defaults = default_of(subjects, positive, negative, sampling)
        if subjects.shape[1] > 1:
            try:
                positions = positions_of(subjects, positive, negative, differences, sampling)
            except EmptyClass:
                pass  # variants that the direction does not separate: the notes state it
            sides = sides_of(subjects, positive, negative, differences)
            rates = rates_of(sides, sampling, how=config.rates_by, positions=positions)
    scores = associations.cosine.value
    groups = {}
    for name, members in labels_of([one.group for one in config.all_subjects]).items():
        try:
            groups[name] = group_effect(scores, members, sampling)
        except EmptyClass:
            continue  # scores that do not vary have no effect size
    text = None if words is None else _words_only(words, config, axis)
    return AxisMeasures(
        name=axis.name, direction=direction, associations=associations, defaults=defaults, positions=positions,
        rates=rates,
        random_percentiles=random_percentiles(plain.mean((1, 2), dtype=np.float64), direction.unit, seed=config.seed),
        ends=None if len(config.descriptors) < 2 else both_ends(
            direction.unit, bank, config.descriptors, n=config.n_words, seed=config.seed
        ),
        groups=groups, words_only=text,
        words_agreement=None if text is None or len(text) < FEWEST else _agreement(config, scores, text),
    )  # fmt: skip


def _words_only(words: AuditLatents, spec: AuditSpec, axis: Axis) -> Floats:
    means = centred(subject_latents(words, spec)).mean((1, 2), dtype=np.float64)
    return _cosine_with(means, direction_of(context_differences(words, spec, axis)))


def _cosine_with(means: Float64[np.ndarray, "subjects d"], direction: AxisDirection) -> Floats:
    return (means @ direction.unit) / np.maximum(np.linalg.norm(means, axis=1), 1e-300)


def _bank(latents: AuditLatents, config: Audit, subjects: np.ndarray) -> Float64[np.ndarray, "words d"]:
    """Return the latents of the descriptors, centred by the mean subject."""
    if not config.descriptors:
        return np.zeros((0, subjects.shape[-1]))
    found = descriptor_latents(latents, config) - subjects.mean(0, keepdims=True)
    return found.mean((1, 2), dtype=np.float64)


def _intersection(config: Audit, one: AxisMeasures, other: AxisMeasures) -> Intersection:
    first, second = one.associations.cosine.value, other.associations.cosine.value
    return Intersection(
        axes=(one.name, other.name), cosine=float(one.direction.unit @ other.direction.unit),
        agreement=_agreement(config, first, second) if len(first) >= FEWEST else None,
    )  # fmt: skip


def _agreement(config: Audit, one: Floats, other: Floats) -> RankAgreement:
    return rank_agreement(
        one, other, n_resamples=config.n_resamples, n_permutations=min(config.n_permutations, 1999),
        level=config.level, seed=config.seed,
    )  # fmt: skip
