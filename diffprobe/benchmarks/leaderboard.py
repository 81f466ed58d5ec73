"""`diffprobe bench dictionaries`: a leaderboard of dictionaries, each certified on the same samples of one cell.

Our variants and the dictionaries of other libraries are trained on the same rows for an equal time, in several seeds;
dictionaries of one's own are read from their folders. Controls stand below them: the same training in a denoiser with
random weights, labels that are permuted, random directions, raw neurons and principal components.

Trained dictionaries and measured rows are kept, and read again by a later run with the same settings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffprobe import __version__
from diffprobe.analysis.certification.across_seeds import (
    DictionarySummary,
    SeedRules,
    SeedScores,
    Spread,
    summarise,
)
from diffprobe.analysis.certification.dictionary import DictionaryRules, factor_latents
from diffprobe.analysis.certification.pointing import PointingRules, pointing_hits
from diffprobe.analysis.latents.baselines import LinearCodes
from diffprobe.benchmarks.kept_dictionaries import Kept
from diffprobe.benchmarks.leaderboard_ground import Board, Ground, Target, as_rows, read_ground
from diffprobe.benchmarks.machine import machine
from diffprobe.benchmarks.peer_dictionaries import LIBRARIES, PeerLibrary
from diffprobe.benchmarks.timed_dictionaries import (
    OURS,
    PAIRED,
    Trained,
    TrainingSettings,
    optimiser_of,
    train_ours,
    train_peer,
)
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.evaluation.certificates.dictionary import (
    Encode,
    encoded,
    linear_encoder,
    random_encoder,
    saved_encoder,
)
from diffprobe.evaluation.certificates.dictionary_samples import (
    DictionarySamples,
)
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.open_folder import open_autoencoder
from diffprobe.probes.sae.transcoder import Transcoder
from diffprobe.report.leaderboard_table import DictionaryRow, FactorCell, Leaderboard, Number

TITLES = {
    "topk": "TopK", "batch_topk": "BatchTopK", "matryoshka": "Matryoshka", "jumprelu": "JumpReLU",
    "transcoder": "transcoder",
}  # fmt: skip
"""Variant -> name in the table."""
_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One row of the board before it is measured: an encoder per seed."""

    name: str
    kind: str
    encoders: "Iterator[Fitted]"
    note: str = ""
    by: str = ""
    """The optimiser of ours, or the version of another library; empty for what is not trained."""
    version: str | None = None
    samples: DictionarySamples | None = None
    """Other samples than those of the board, for controls."""
    shuffled: bool = False
    """Whether labels are permuted before anything is chosen."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """A dictionary of one seed."""

    encode: Encode
    seed: int
    sae: KSAE | None = None
    target: NDArray[np.float32] | None = None
    """Features of the test images that it reconstructs; None for those that it encodes."""
    steps: int | None = None
    seconds: float | None = None


def bench_dictionaries(
    board: Board,
    *,
    output: Path,
    variants: Sequence[str] = OURS,
    libraries: Mapping[str, PeerLibrary] = LIBRARIES,
    own: Mapping[str, Sequence[Path]] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Leaderboard:
    """Train or read all dictionaries of a board, and certify them.

    Args:
        board: what is measured.
        output: folder of trained dictionaries and measured rows, <output>/<board>/<row>/<seed>.
        variants: variants of this library.
        libraries: other libraries by name; those that are not installed are listed as absent.
        own: name -> folders of one's own dictionaries, one per seed, in a format of `open_autoencoder`.
        progress: called with a line of text before each dictionary.

    Raises: ConfigError for a dictionary of another width, or of a name that is taken; the errors of reading samples.
    """
    for variant in variants:
        if variant not in TITLES:
            raise unknown("variant", variant, TITLES)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the clock of the training counts the time of all threads
    try:
        return _measured(board, output, variants, libraries, own or {}, progress)
    finally:
        torch.set_num_threads(threads)


def _measured(
    board: Board, output: Path, variants: Sequence[str], libraries: Mapping[str, PeerLibrary],
    own: Mapping[str, Sequence[Path]], progress: Callable[[str], None],
) -> Leaderboard:  # fmt: skip
    opened = {name: [open_autoencoder(folder)[0] for folder in folders] for name, folders in own.items()}
    progress(f"features of {board.backbone}, {board.cell}")
    ground = read_ground(board, with_target=PAIRED in variants)
    absent, present = {}, {}
    for name, library in libraries.items():
        reason = library.reason_it_is_absent()
        if reason is None:
            present[name] = library
        else:
            absent[name] = reason
    _check_own(opened, ground, [TITLES[variant] for variant in variants] + list(libraries))
    keep = Kept(output / board.name)
    rows = []
    for candidate in _candidates(board, ground, variants, present, opened, keep, progress):
        rows.append(_kept_row(board, ground, candidate, keep, progress))
    samples, first = ground.samples, SeedRules()
    facts = {
        "backbone": board.backbone,
        "cell": samples.cell,
        **samples.facts,
        "training": f"{len(ground.rows):,} rows of {board.n_fit:,} images, {board.training.seconds:g} s per dictionary",
        "latents": f"{board.training.expansion} x {ground.rows.shape[1]}, k = {board.training.k}",
        **_of_ours(board, variants),
        "step": f"{board.training.batch:,} rows, learning rate {board.training.learning_rate:g}",
        "scored": f"latents chosen on {len(samples.train):,}, scored on {len(samples.test):,} images",
        "null distributions": f"{board.n_permutations:,} permutations each",
    }
    rules = {"least_auroc": first.least_auroc, "most_q": first.most_q, "share_of_seeds": first.share_of_seeds}
    return Leaderboard(
        board=board.name, facts=facts, rules=rules, machine=machine(), rows=tuple(rows), absent=absent,
        not_measured=dict(samples.not_measured),
    )  # fmt: skip


def _of_ours(board: Board, variants: Sequence[str]) -> dict[str, str]:
    facts = {"optimiser of ours": "; ".join(dict.fromkeys(map(optimiser_of, variants)))} if variants else {}
    return facts | ({"transcoder": f"reconstructs {board.target_cell}"} if PAIRED in variants else {})


def _check_own(own: Mapping[str, Sequence[KSAE]], ground: Ground, taken: Sequence[str]) -> None:
    for name, saes in own.items():
        if name in taken or not saes:
            raise ConfigError(f"own dictionary '{name}': {len(saes)} folders; a name that is free, and at least one.")
        for sae in saes:
            if isinstance(sae, Transcoder):
                raise ConfigError(
                    f"'{name}' is a transcoder of '{sae.config.target_tap}'; a dictionary of one's own has to "
                    f"reconstruct the features that it encodes, those of '{ground.samples.cell}'.",
                    fix="an autoencoder; or certify the transcoder by itself, with `diffprobe certify FOLDER`",
                )
            if sae.d_in != ground.rows.shape[1]:
                raise ConfigError(
                    f"'{name}' encodes {sae.d_in} numbers; the features of '{ground.samples.cell}' have "
                    f"{ground.rows.shape[1]}.",
                    fix="a dictionary of this cell",
                )


def _candidates(
    board: Board, ground: Ground, variants: Sequence[str], libraries: Mapping[str, PeerLibrary],
    own: Mapping[str, Sequence[KSAE]], keep: Kept, progress: Callable[[str], None],
) -> Iterator[Candidate]:  # fmt: skip
    def trained(name: str, by: str, train: Callable[[int], Trained], target: Target | None = None) -> Iterator[Fitted]:
        for seed in board.seeds:
            progress(f"{name}, seed {seed}: training")
            settings = _training_settings(board, name, seed, by, target)
            done = keep.trained(name, settings, lambda seed=seed: train(seed))  # type: ignore[misc]
            yield _fitted(done.sae, seed, done, target)

    def ours(name: str, variant: str, of: Ground) -> Iterator[Fitted]:
        target = of.target_of(variant)
        given = None if target is None else target.rows

        def train(seed: int) -> Trained:
            return train_ours(variant, of.rows, board.training, seed=seed, target=given)

        return trained(name, optimiser_of(variant), train, target)

    for variant in variants:
        name = TITLES[variant]
        note = f"reconstructs {board.target_cell}" if ground.target_of(variant) else ""
        yield Candidate(
            name=name, kind="ours", by=optimiser_of(variant), note=note, encoders=ours(name, variant, ground)
        )
    for name, library in libraries.items():
        encoders = trained(name, library.version, _of_library(library, ground.rows, board.training))
        yield Candidate(name=name, kind="peer", by=library.version, encoders=encoders, version=library.version)
    for name, saes in own.items():
        yield Candidate(name=name, kind="own", encoders=starmap(_own, zip(saes, range(len(saes)), strict=True)))
    if variants:
        name, first = TITLES[variants[0]], variants[0]
        yield Candidate(
            name=f"{name}, labels permuted", kind="control", by=optimiser_of(first), shuffled=True,
            encoders=ours(name, first, ground),  # the dictionaries of the first row, read again
            note="the labels of train and of test are permuted before latents are chosen",
        )  # fmt: skip
    mean, k = ground.rows.double().mean(0), board.training.k
    n_latents = board.training.expansion * ground.rows.shape[1]
    yield Candidate(
        name="random directions", kind="control", note="random rows in the place of the encoder's",
        encoders=(
            Fitted(encode=random_encoder(ground.rows.numpy(), n_latents, k, seed=seed), seed=seed)
            for seed in board.seeds
        ),
    )  # fmt: skip
    neurons = LinearCodes.neurons(mean, ground.rows.double().var(0, correction=0), k)
    yield Candidate(
        name="raw neurons", kind="control", note="channels of the features, with both signs",
        encoders=iter([Fitted(encode=linear_encoder(neurons), seed=0)]),
    )  # fmt: skip
    components = LinearCodes.components(mean, torch.cov(ground.rows.double().T, correction=0), k)
    yield Candidate(
        name="principal components", kind="control", note="principal components of the features, with both signs",
        encoders=iter([Fitted(encode=linear_encoder(components), seed=0)]),
    )  # fmt: skip
    if variants:
        progress(f"features of {board.backbone} with random weights")
        random = read_ground(board, random_weights=True, with_target=variants[0] == PAIRED)
        name = f"{TITLES[variants[0]]}, random denoiser"
        yield Candidate(
            name=name, kind="control", by=optimiser_of(variants[0]), samples=random.samples,
            encoders=ours(name, variants[0], random),
            note="trained and certified on the features of a denoiser with random weights",
        )  # fmt: skip


def _of_library(library: PeerLibrary, rows: Tensor, settings: TrainingSettings) -> Callable[[int], Trained]:
    return lambda seed: train_peer(library.make, rows, settings, seed=seed)


def _own(sae: KSAE, seed: int) -> Fitted:
    return _fitted(sae.eval(), seed, None, None)


def _fitted(sae: KSAE, seed: int, trained: Trained | None, target: Target | None) -> Fitted:
    steps, seconds = (None, None) if trained is None else (trained.steps, trained.seconds)
    test = None if target is None else target.test
    return Fitted(encode=saved_encoder(sae), seed=seed, sae=sae, target=test, steps=steps, seconds=seconds)


def _training_settings(board: Board, name: str, seed: int, by: str, target: Target | None) -> dict[str, Any]:
    """Return all that decides the weights of a trained dictionary.

    Args:
        by: the optimiser of ours, or the version of another library, whose defaults it decides.
    """
    found = {
        "name": name, "seed": seed, "by": by, **asdict(board.training), "backbone": board.backbone, "cell": board.cell,
        "data": board.data, "n_fit": board.n_fit, "resolution": board.resolution,
    }  # fmt: skip
    return found if target is None else {**found, "target_cell": board.target_cell}


def _kept_row(
    board: Board, ground: Ground, candidate: Candidate, keep: Kept, progress: Callable[[str], None]
) -> DictionaryRow:
    """Return a row, read again if it was measured before; one's own dictionaries are always measured."""
    if candidate.kind == "own":
        return _row(board, ground, candidate, progress)
    settings = {"name": candidate.name, "by": candidate.by, "board": asdict(board), "diffprobe": __version__}
    return keep.row(candidate.name, settings, lambda: _row(board, ground, candidate, progress))


def _row(board: Board, ground: Ground, candidate: Candidate, progress: Callable[[str], None]) -> DictionaryRow:
    samples = candidate.samples or ground.samples
    seeds, steps, active, n_latents, seconds = [], [], [], 0, None
    for fitted in candidate.encoders:
        progress(f"{candidate.name}, seed {fitted.seed}: certificate")
        own = _permuted(samples, fitted.seed) if candidate.shuffled else samples
        scores, n_active, n_latents = score(board, own, fitted)
        seeds.append(scores)
        active.append(n_active)
        if fitted.steps is not None:
            steps.append(fitted.steps)
            seconds = fitted.seconds
    n = len(samples.test)
    clusters = range(n) if samples.groups is None else samples.groups[1].tolist()
    summary = summarise(seeds, n, clusters, SeedRules(n_resamples=board.n_resamples))
    return as_row(
        summary, name=candidate.name, kind=candidate.kind, n_latents=n_latents, active=float(np.mean(active)),
        steps=tuple(steps), seconds=seconds, version=candidate.version, note=candidate.note,
    )  # fmt: skip


def score(board: Board, samples: DictionarySamples, fitted: Fitted) -> tuple[SeedScores, float, int]:
    """Score one dictionary of one seed.

    Returns: its scores, the mean number of active latents of a row, and the number of latents.
    """
    found = encoded(fitted.encode, samples)
    rules = DictionaryRules(n_permutations=board.n_permutations, n_resamples=board.n_resamples)
    factors = [
        factor_latents(found.codes, *labels, rules, factor=factor, groups=samples.groups)
        for factor, labels in samples.labels.items()
    ]
    pointing = {}
    if found.places is not None:
        of_places = PointingRules(n_permutations=board.n_permutations)
        pointing = {
            factor: pointing_hits(*found.places, *shown.labels, shown.covered, of_places, factor=factor)
            for factor, shown in samples.shown.items()
        }
    residual, square = (None, None) if fitted.sae is None else _errors(fitted, samples.test)
    scores = SeedScores(factors=factors, pointing=pointing, residual=residual, square=square)
    return scores, found.n_active, found.codes.train.shape[1]


@torch.no_grad()
def _errors(fitted: Fitted, test: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the squared error of each test sample, and its squared distance from the mean of the rows.

    Both are of the target of a transcoder, and of the features themselves of the others.

    Raises: ConfigError for a transcoder without its target.
    """
    sae = fitted.sae
    if sae is None or (isinstance(sae, Transcoder) and fitted.target is None):
        raise ConfigError("an error needs a dictionary with a decoder, and that of a transcoder its target.")
    rows = torch.from_numpy(as_rows(test))
    wanted = rows if fitted.target is None else torch.from_numpy(as_rows(fitted.target))
    mean, parts = wanted.double().mean(0), []
    for part, own in zip(rows.split(_AT_ONCE), wanted.split(_AT_ONCE), strict=True):
        residual = (own.double() - sae(part)[0].double()).square().sum(1)
        parts.append(torch.stack([residual, (own.double() - mean).square().sum(1)]))
    residual, square = torch.cat(parts, 1).view(2, len(test), -1).sum(2).numpy()
    return residual, square


def _permuted(samples: DictionarySamples, seed: int) -> DictionarySamples:
    """Return samples with permuted labels; all factors of a sample move together."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(len(part)) for part in (samples.train, samples.test)]

    def moved(labels: tuple[NDArray[np.int64], NDArray[np.int64]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return labels[0][orders[0]], labels[1][orders[1]]

    return replace(
        samples, labels={factor: moved(labels) for factor, labels in samples.labels.items()},
        shown={factor: replace(shown, labels=moved(shown.labels)) for factor, shown in samples.shown.items()},
    )  # fmt: skip


def as_row(summary: DictionarySummary, **facts: Any) -> DictionaryRow:
    """Return a row of the record from a summary, and what else is known of the dictionary."""
    cells = tuple(
        FactorCell(
            factor=one.factor, auroc=_number(one.auroc), q=one.q, n_seeds=one.n_seeds, has_latent=one.has_latent,
            n_values=one.n_values, n_values_with_latent=one.n_values_with_latent,
            pointing=None if one.pointing is None else _number(one.pointing), pointing_null=one.pointing_null,
        )
        for one in summary.factors
    )  # fmt: skip
    return DictionaryRow(
        auroc=_number(summary.auroc), absorption=_number(summary.absorption), factors=cells,
        pointing=None if summary.pointing is None else _number(summary.pointing), pointing_null=summary.pointing_null,
        fvu=None if summary.fvu is None else _number(summary.fvu), **facts,
    )  # fmt: skip


def _number(spread: Spread) -> Number:
    return Number(value=spread.value, low=spread.low, high=spread.high, seeds=spread.seeds)
