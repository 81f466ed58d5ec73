"""Numbers and names of latents in the form of the explorer: choices on train, measurements on a held-out split.

The measures are in `analysis/latents/`; here they are computed for all targets of a data set, the best target of each
latent is chosen on train, and all become columns and names of `report/explorer/records.py`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.best_value import BestValues, BestValueSettings, LabelledCodes, best_values
from diffprobe.analysis.latents.logistic_probe import ProbeScores, probe_scores
from diffprobe.analysis.latents.monosemanticity import monosemanticity
from diffprobe.analysis.latents.names import CaptionedCodes, NameSettings
from diffprobe.analysis.latents.names import latent_names as names_of
from diffprobe.analysis.latents.permutation_tests import PermutationSettings, adjusted
from diffprobe.analysis.latents.redundancy import absorption, nearest_rows
from diffprobe.analysis.latents.sparse_codes import SparseCodes
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.groups import Groups
from diffprobe.report.explorer.records import Column, Name

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_RATE = 0.05
"""False discovery rate at which the discoveries of baselines are counted."""
Kind = Literal["number", "share", "count", "p"]


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitCodes:
    """Codes of a split with everything that is known of its images, in the order of `codes.keys`.

    Raises: ConfigError for columns of another number of images.
    """

    codes: SparseCodes
    """Activations, one code per image."""
    targets: Mapping[str, Ints]
    """Name of a target ("class" or an attribute) -> value of each image, -1 for none, int64 (images,)."""
    groups: Groups
    """Group of each image."""
    captions: Sequence[str] | None = None
    """Caption of each image, "" for none; None without captions."""
    embeddings: NDArray[np.float32] | None = None
    """Embedding of each image by some encoder, (images, d); None without embeddings."""

    def __post_init__(self) -> None:
        n = self.codes.n_images
        columns: dict[str, int] = {name: len(values) for name, values in self.targets.items()}
        columns["groups"] = len(self.groups.ids)
        for name, column in (("captions", self.captions), ("embeddings", self.embeddings)):
            if column is not None:
                columns[name] = len(column)
        wrong = {name: size for name, size in columns.items() if size != n}
        if wrong:
            name, size = next(iter(wrong.items()))
            raise ConfigError(f"'{name}' has {size} entries for {n} images of the codes.")


@dataclass(frozen=True, kw_only=True)
class NumberSettings:
    """How numbers and names are computed."""

    best_value: BestValueSettings = BestValueSettings()
    """Purity, entropy, AUROC and average precision, and the permutations of all tests but those of names."""
    ridge: float = 0.01
    """Penalty of the logistic probes' slopes."""
    embedding_permutations: int = 1000
    """Permutations of the test of the MonoSemanticity score."""
    names: NameSettings = NameSettings()
    """Names."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentNumbers:
    """The numbers of all latents."""

    columns: tuple[Column, ...]
    """One column per number."""
    best_values: tuple[str, ...]
    """What each latent is about, "target=value", chosen on train; "" for a latent that is never active there."""
    smallest_p: float
    """The smallest p of a class or value that permutations can count; smaller ones are of a fitted tail."""
    notes: tuple[str, ...]
    """Sentences on what was not measured, and why."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chosen:
    """The numbers of each latent for its best target, and those of each target."""

    target: Ints
    """Number of the best target, -1 for none."""
    numbers: dict[str, Floats]
    by_target: dict[str, BestValues]
    value: Ints
    chance: dict[str, float]
    smallest_p: float
    notes: tuple[str, ...]


def latent_numbers(
    train: SplitCodes,
    test: SplitCodes,
    values: Mapping[str, Sequence[str]],
    settings: NumberSettings | None = None,
    *,
    decoder: NDArray[np.float32] | None = None,
    encoder: str = "",
    baselines: Mapping[str, tuple[SplitCodes, SplitCodes]] | None = None,
) -> LatentNumbers:
    """Compute the numbers of all latents.

    Args:
        train: where targets, values and probes are chosen and fitted.
        test: where they are measured.
        values: names of the values of each target, by their number.
        settings: how; None for the defaults.
        decoder: decoder rows, (latents, d); None for no cosine.
        encoder: name of the encoder of the embeddings, such as "VAE latents"; needed with embeddings.
        baselines: name -> codes of the same splits by `analysis/latents/baselines.py`. Their medians are controls.

    Raises: ConfigError for targets that differ between the splits or have no names, or embeddings of an unnamed
        encoder. A target that cannot be measured is left out, with a note.
    """
    settings = NumberSettings() if settings is None else settings
    _check(train, test, values, encoder)
    chosen = _choose(train, test, values, settings)
    controls: dict[str, list[tuple[str, float]]] = {key: [("chance", value)] for key, value in chosen.chance.items()}
    for name, (of_train, of_test) in (baselines or {}).items():
        other = _choose(of_train, of_test, values, settings).numbers
        if of_test.embeddings is not None:
            other["monosemanticity"], other["monosemanticity_q"], _ = _embedded(of_test, settings)
        for key, column in other.items():
            if not np.isnan(column).all():
                controls.setdefault(key, []).append(_summary(name, key, column))
    columns = [
        _column(key, chosen.numbers[key], controls.get(key, ()))
        for key in _TEXTS
        if key in chosen.numbers
    ]  # fmt: skip
    if len(chosen.by_target) > 1:
        columns += [column for name, found in chosen.by_target.items() for column in _of_target(name, found)]
    if test.embeddings is not None:
        score, q, chance = _embedded(test, settings)
        which = f" Encoder: {encoder}."
        beside = [("all pairs of images", chance), *controls.get("monosemanticity", [])]
        columns += [
            _column("monosemanticity", score, beside, which),
            _column("monosemanticity_q", q, controls.get("monosemanticity_q", ()), which),
        ]
    if decoder is not None:
        columns.append(_column("redundancy", np.abs(nearest_rows(decoder).cosine), ()))
    return LatentNumbers(
        columns=tuple(columns), best_values=_texts(chosen.target, chosen.value, list(chosen.by_target), values),
        smallest_p=chosen.smallest_p, notes=chosen.notes,
    )  # fmt: skip


def latent_names(
    train: SplitCodes,
    test: SplitCodes,
    settings: NumberSettings | None = None,
    *,
    answers: Mapping[int, str] | None = None,
) -> list[list[Name]]:
    """Return the candidate names of each latent, those that passed the held-out test first; none without captions.

    Args:
        train, test: splits with captions.
        settings: how; None for the defaults.
        answers: latent -> name by a person or a model (`analysis/latents/namers.py`), which is tested like the others.
    """
    if train.captions is None or test.captions is None:
        return [[] for _ in range(train.codes.n_latents)]
    found = names_of(
        CaptionedCodes(codes=train.codes, captions=train.captions, groups=train.groups),
        CaptionedCodes(codes=test.codes, captions=test.captions, groups=test.groups),
        NameSettings() if settings is None else settings.names, answers=answers,
    )  # fmt: skip
    return [
        [Name(text=one.phrase, score=one.score, auroc=one.auroc, q=one.q, shown=one.shown) for one in names]
        for names in found
    ]


def _check(train: SplitCodes, test: SplitCodes, values: Mapping[str, Sequence[str]], encoder: str) -> None:
    if set(train.targets) != set(test.targets):
        raise ConfigError(
            f"targets of train ({', '.join(train.targets)}) and of test ({', '.join(test.targets)}) differ."
        )
    for name, labels in [*train.targets.items(), *test.targets.items()]:
        if name not in values or int(labels.max(initial=-1)) >= len(values[name]):
            raise ConfigError(
                f"target '{name}' has the value {int(labels.max(initial=-1))}, of which the name is not given.",
                "needed: the names of all its values, by their number",
            )
    if test.embeddings is not None and not encoder:
        raise ConfigError("embeddings of an unnamed encoder: a score is of its encoder.", fix='encoder="VAE latents"')


def _choose(
    train: SplitCodes, test: SplitCodes, values: Mapping[str, Sequence[str]], settings: NumberSettings
) -> _Chosen:
    """Measure all targets, and take for each latent the numbers of the one with the least chance on train."""
    n = train.codes.n_latents
    found: dict[str, BestValues] = {}
    probes: dict[str, ProbeScores] = {}
    absorbed: list[Floats] = []
    notes = []
    for name in train.targets:
        parts = [LabelledCodes.known(part.codes, part.targets[name], part.groups) for part in (train, test)]
        try:
            best = best_values(parts[0], parts[1], len(values[name]), settings.best_value)
        except EmptyClass as error:
            notes.append(f"Target '{name}' is not measured: {error.what}")
            continue
        if best.why_no_p and settings.best_value.permutations is not None:
            notes.append(f"Target '{name}' has no p: {best.why_no_p}")
        found[name] = best
        probes[name] = probe_scores(
            parts[0], parts[1], best.value, len(values[name]), ridge=settings.ridge,
            permutations=settings.best_value.permutations,
        )  # fmt: skip
        absorbed.append(absorption(parts[0], parts[1], best.value, len(values[name])))
    if not found:
        none = np.full(n, -1, dtype=np.int64)
        return _Chosen(
            target=none, numbers={}, by_target={}, value=none, chance={},
            smallest_p=1.0, notes=tuple(notes),
        )  # fmt: skip
    target = _best(np.stack([_surprise(best) for best in found.values()]))
    of_best, of_probe = list(found.values()), list(probes.values())
    numbers = {
        key: _take(target, [getattr(best, key) for best in of_best])
        for key in ("auroc", "precision", "purity", "entropy")
    }
    prevalence = _take(target, [best.prevalence for best in of_best])
    numbers["absorption"] = _take(target, absorbed)
    numbers["probe_bits"] = _take(target, [probe.bits for probe in of_probe])
    numbers["auroc_q"] = adjusted(_take(target, [best.p for best in of_best]))
    numbers["purity_q"] = adjusted(_take(target, [best.purity_p for best in of_best]))
    numbers["probe_q"] = adjusted(_take(target, [probe.p for probe in of_probe]))
    measured = ~np.isnan(prevalence)
    typical = float(prevalence[measured].mean()) if measured.any() else float("nan")
    entropies = np.tile(np.array([best.chance_entropy for best in of_best])[:, None], (1, n))
    chance = {"auroc": 0.5, "precision": typical, "purity": typical, "probe_bits": 0.0}
    if measured.any():
        chance["entropy"] = float(np.nanmean(_take(target, list(entropies))))
    return _Chosen(
        target=target, numbers=numbers, by_target=found,
        value=_take(target, [best.value.astype(np.float64) for best in of_best], -1).astype(np.int64),
        chance=chance, smallest_p=max(best.smallest_p for best in of_best), notes=tuple(notes),
    )  # fmt: skip


def _surprise(best: BestValues) -> Floats:
    """Return the negative logarithm of the p of each latent's z, times the number of values it was chosen from.

    Without the factor, a target of many values would win by their number.
    """
    from scipy.stats import norm  # heavy

    found: Floats = -(norm.logsf(best.z) + np.log(best.n_values))
    return found


def _summary(name: str, key: str, column: Floats) -> tuple[str, float]:
    """Return what a column of a baseline is, in one number: the median, or the share of discoveries."""
    known = column[~np.isnan(column)]
    if _TEXTS[key][1] == "p":
        return f"{name} (share with q <= {_RATE})", float((known <= _RATE).mean())
    return f"{name} (median)", float(np.median(known))


def _best(scores: Floats) -> Ints:
    """Return the number of the largest score of each latent, -1 where none is known, from (targets, latents)."""
    known = np.where(np.isnan(scores), -np.inf, scores)
    return np.where(np.isinf(known.max(0)), -1, known.argmax(0)).astype(np.int64)


def _take(target: Ints, columns: Sequence[Floats], missing: float = np.nan) -> Floats:
    """Return for each latent the entry of its target's column."""
    stacked = np.stack(columns)
    return np.where(target >= 0, stacked[np.maximum(target, 0), np.arange(len(target))], missing)


def _embedded(test: SplitCodes, settings: NumberSettings) -> tuple[Floats, Floats, float]:
    """Return MonoSemanticity score, its q, and its value over all pairs of images."""
    assert test.embeddings is not None
    seed = settings.best_value.permutations.seed if settings.best_value.permutations is not None else 0
    permutations = PermutationSettings(most=settings.embedding_permutations, seed=seed)
    found = monosemanticity(test.codes, test.embeddings, test.groups, permutations)
    return found.score, found.q, found.chance


def _texts(target: Ints, value: Ints, names: Sequence[str], values: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(
        f"{names[t]}={values[names[t]][v]}" if t >= 0 and v >= 0 else ""
        for t, v in zip(target.tolist(), value.tolist(), strict=True)
    )


_TEXTS: dict[str, tuple[str, Kind, str]] = {
    "auroc": ("AUROC", "number", "AUROC of the activation for the latent's best class or attribute value, chosen on "
              "train; on held-out images."),
    "auroc_q": ("q of AUROC", "p", "Benjamini-Hochberg over all latents, of the AUROC against labels permuted by "
                "group."),
    "precision": ("average precision", "share", "Average precision of the activation for the same value; on held-out "
                  "images."),
    "purity": ("purity", "share", "Share of the same value among the latent's most active held-out images."),
    "purity_q": ("q of purity", "p", "Benjamini-Hochberg over all latents, of the purity against labels permuted by "
                 "group."),
    "entropy": ("entropy", "number", "Entropy of the values of the latent's most active held-out images, as a share of "
                "the largest possible: 0 for one value."),
    "probe_bits": ("probe gain", "number", "How many bits per held-out image a logistic regression on the latent alone "
                   "saves when it predicts the same value; 0 for none."),
    "probe_q": ("q of probe gain", "p", "Benjamini-Hochberg over all latents, of the probe gain against labels "
                "permuted by group."),
    "absorption": ("absorption", "share", "Share of the held-out images with the latent's value on which it is "
                   "inactive while another latent of that value is active."),
    "monosemanticity": ("monosemanticity", "number", "Mean cosine of the embeddings of held-out images, weighted by "
                        "the product of both activations."),
    "monosemanticity_q": ("q of monosemanticity", "p", "Benjamini-Hochberg over all latents, of the score between "
                          "groups against embeddings permuted between groups."),
    "redundancy": ("nearest cosine", "number", "Largest absolute cosine with another decoder row."),
}  # fmt: skip
"""Key of a column -> title, kind and help."""


def _column(key: str, values: Floats, controls: Sequence[tuple[str, float]], more: str = "") -> Column:
    title, kind, text = _TEXTS[key]
    return Column(
        key=key, title=title, help=text + more, values=_optional(values), kind=kind,
        controls=tuple((name, value) for name, value in controls if not np.isnan(value)),
    )  # fmt: skip


def _of_target(name: str, found: BestValues) -> list[Column]:
    """Return AUROC and q of one target."""
    key = re.sub(r"\W", "_", name)
    return [
        Column(
            key=f"auroc_of_{key}", title=f"AUROC, {name}", values=_optional(found.auroc), kind="number",
            help=f"As AUROC, for the best value of '{name}' alone.", controls=(("chance", 0.5),),
        ),
        Column(
            key=f"q_of_{key}", title=f"q, {name}", values=_optional(found.q), kind="p",
            help=f"Benjamini-Hochberg over all latents, of the AUROC for '{name}'.",
        ),
    ]  # fmt: skip


def _optional(values: Floats) -> tuple[float | None, ...]:
    return tuple(None if np.isnan(value) else float(value) for value in values)
