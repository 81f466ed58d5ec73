"""`diffprobe bench dictionaries`: a leaderboard of dictionaries, each certified on the same samples of one cell.

Our variants and the dictionaries of other libraries are trained on the same rows for an equal time, in several seeds;
dictionaries of one's own are read from their folders. Controls stand below them: the same training in a denoiser with
random weights, labels that are permuted, random directions, raw neurons and principal components.

Trained dictionaries are kept, and read again by a later run with the same settings.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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
from diffprobe.benchmarks.machine import machine
from diffprobe.benchmarks.peer_dictionaries import LIBRARIES, PeerLibrary
from diffprobe.benchmarks.timed_dictionaries import OURS, Trained, TrainingSettings, train_ours, train_peer
from diffprobe.core.artifact import write_json_atomic
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.json_file import read_json_object
from diffprobe.evaluation.certificates.dictionary import (
    SCENE_FACTORS,
    Encode,
    encoded,
    linear_encoder,
    random_encoder,
    saved_encoder,
)
from diffprobe.evaluation.certificates.dictionary_samples import (
    DictionarySamples,
    Reading,
    read_scenes,
    scene_samples,
    scenes_of,
    shard_samples,
)
from diffprobe.evaluation.certificates.settings import WorldSettings
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.open_folder import open_autoencoder
from diffprobe.report.leaderboard_table import DictionaryRow, FactorCell, Leaderboard, Number

TITLES = {"topk": "TopK", "batch_topk": "BatchTopK", "matryoshka": "Matryoshka", "jumprelu": "JumpReLU"}
"""Variant -> name in the table."""
_TRAINING = "training.json"
"""File beside a trained dictionary: its settings, steps and time."""
_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True)
class Board:
    """What is measured."""

    name: str
    """Name of the board."""
    backbone: str
    """Folder or name of the backbone."""
    cell: str
    """Cell of the features; with pool none each place of the map is a row."""
    data: str = ""
    """A shard set whose attributes are the factors; empty for rendered scenes."""
    factors: tuple[str, ...] = SCENE_FACTORS
    """Factors that need a latent."""
    pointing: tuple[str, ...] = ("hat", "tool", "object", "texture", "colour")
    """Of scenes: factors with a part."""
    n_fit: int = 1000
    """Images on whose rows dictionaries are trained; of scenes with seed 0, of a shard set the first of train."""
    n_train: int = 600
    """Images of train on which latents are chosen; of scenes with seed 1."""
    n_test: int = 400
    """Images of test on which they are scored."""
    resolution: int = 64
    """Side of the images in pixels."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights and order of batches."""
    n_permutations: int = 999
    """Permutations of each null distribution."""
    n_resamples: int = 1000
    """Resamples of intervals."""
    most_values: int = 10
    """Of a shard set: values of a factor, the most frequent ones."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    """Settings that all trained dictionaries share."""


BOARDS = {
    "scenes": Board(name="scenes", backbone="scenes-sd", cell="up_blocks.1@t200:empty:none"),
    "emoji": Board(
        name="emoji", backbone="emoji-sd", cell="up_blocks.1@t200:empty:none", data="emoji",
        factors=("style", "skin_tone", "label"), pointing=(), n_fit=1500, n_train=1500, n_test=800,
    ),
}  # fmt: skip
"""Name -> board."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """The samples of a board, and the rows on which its dictionaries are trained."""

    samples: DictionarySamples
    rows: Tensor
    """Features of the training images, one row per place, (rows, d)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One row of the board before it is measured: an encoder per seed."""

    name: str
    kind: str
    encoders: "Iterator[Fitted]"
    note: str = ""
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
        output: folder of trained dictionaries, <output>/<board>/<row>/<seed>.
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
    ground = read_ground(board)
    absent, present = {}, {}
    for name, library in libraries.items():
        reason = library.reason_it_is_absent()
        if reason is None:
            present[name] = library
        else:
            absent[name] = reason
    _check_own(opened, ground, [TITLES[variant] for variant in variants] + list(libraries))
    keep = Kept(board, output / board.name)
    rows = []
    for candidate in _candidates(board, ground, variants, present, opened, keep, progress):
        rows.append(_row(board, ground, candidate, progress))
    samples, first = ground.samples, SeedRules()
    facts = {
        "backbone": board.backbone,
        "cell": samples.cell,
        **samples.facts,
        "training": f"{len(ground.rows):,} rows of {board.n_fit:,} images, {board.training.seconds:g} s per dictionary",
        "latents": f"{board.training.expansion} x {ground.rows.shape[1]}, k = {board.training.k}",
        "step": f"{board.training.batch:,} rows, learning rate {board.training.learning_rate:g}",
        "scored": f"latents chosen on {len(samples.train):,}, scored on {len(samples.test):,} images",
        "null distributions": f"{board.n_permutations:,} permutations each",
    }
    rules = {"least_auroc": first.least_auroc, "most_q": first.most_q, "share_of_seeds": first.share_of_seeds}
    return Leaderboard(
        board=board.name, facts=facts, rules=rules, machine=machine(), rows=tuple(rows), absent=absent,
        not_measured=dict(samples.not_measured),
    )  # fmt: skip


def read_ground(board: Board, *, random_weights: bool = False) -> Ground:
    """Read the features of a board. Raises: the errors of `scene_samples` and `shard_samples`."""
    reading = Reading(
        backbone=board.backbone, cell=board.cell, resolution=board.resolution, random_weights=random_weights
    )
    if board.data:
        samples, fit = shard_samples(
            board.data, reading, n_train=board.n_train, n_test=board.n_test, factors=board.factors,
            most_values=board.most_values, n_fit=board.n_fit,
        )  # fmt: skip
    else:
        spec, world = WorldSettings().load_world(), WorldSettings().world
        samples = scene_samples(
            spec, reading, world=world, seed=1, n_train=board.n_train, n_test=board.n_test, factors=board.factors,
            pointing=board.pointing, tolerance=0,
        )  # fmt: skip
        _, (fit,) = read_scenes(spec, reading, [scenes_of(spec, "train", board.n_fit, world=world, seed=0)])
    if fit is None:
        raise ConfigError(f"board '{board.name}': n_fit={board.n_fit} images to train on; at least 1 is needed.")
    return Ground(samples=samples, rows=torch.from_numpy(as_rows(fit)))


def as_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features with a row per place, (samples x places, d); pooled features as they are."""
    if features.ndim == 2:
        return features
    return np.ascontiguousarray(features.transpose(0, 2, 3, 1).reshape(-1, features.shape[1]))


class Kept:
    """Trained dictionaries on disk, by their settings.

    Args:
        board: the board.
        folder: of its dictionaries.
    """

    def __init__(self, board: Board, folder: Path) -> None:
        self._board, self._folder = board, folder

    def trained(self, name: str, seed: int, train: Callable[[], Trained], version: str = "") -> Trained:
        """Return a dictionary that was trained before with the same settings, or train and save it."""
        board = self._board
        settings: dict[str, Any] = {
            "name": name, "seed": seed, "version": version, **asdict(board.training), "backbone": board.backbone,
            "cell": board.cell, "data": board.data, "n_fit": board.n_fit, "resolution": board.resolution,
        }  # fmt: skip
        folder = self._folder / "-".join(name.lower().replace(",", "").split()) / f"seed{seed}"
        record = folder / _TRAINING
        if record.is_file():
            found = read_json_object(record)
            if found.get("digest") == digest_json(settings):
                return Trained(open_autoencoder(folder)[0].eval(), int(found["steps"]), float(found["seconds"]))
        result = train()
        result.sae.save_pretrained(folder, cell=board.cell)
        write_json_atomic(record, {
            "digest": digest_json(settings), "settings": settings, "steps": result.steps, "seconds": result.seconds,
        })  # fmt: skip
        return result


def _check_own(own: Mapping[str, Sequence[KSAE]], ground: Ground, taken: Sequence[str]) -> None:
    for name, saes in own.items():
        if name in taken or not saes:
            raise ConfigError(f"own dictionary '{name}': {len(saes)} folders; a name that is free, and at least one.")
        for sae in saes:
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
    def training(name: str, train: Callable[[int], Trained], version: str = "") -> Iterator[Fitted]:
        for seed in board.seeds:
            progress(f"{name}, seed {seed}: training")
            done = keep.trained(name, seed, lambda seed=seed: train(seed), version)  # type: ignore[misc]
            yield _fitted(done.sae, seed, done)

    def ours(variant: str, rows: Tensor) -> Callable[[int], Trained]:
        return lambda seed: train_ours(variant, rows, board.training, seed=seed)

    for variant in variants:
        name = TITLES[variant]
        yield Candidate(name=name, kind="ours", encoders=training(name, ours(variant, ground.rows)))
    for name, library in libraries.items():
        encoders = training(name, _of_library(library, ground.rows, board.training), library.version)
        yield Candidate(name=name, kind="peer", encoders=encoders, version=library.version)
    for name, saes in own.items():
        yield Candidate(name=name, kind="own", encoders=starmap(_own, zip(saes, range(len(saes)), strict=True)))
    if variants:
        name, first = TITLES[variants[0]], variants[0]
        yield Candidate(
            name=f"{name}, labels permuted", kind="control", shuffled=True,
            encoders=training(name, ours(first, ground.rows)),  # the dictionaries of the first row, read again
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
        random = read_ground(board, random_weights=True)
        name = f"{TITLES[variants[0]]}, random denoiser"
        yield Candidate(
            name=name, kind="control", samples=random.samples,
            encoders=training(name, ours(variants[0], random.rows)),
            note="trained and certified on the features of a denoiser with random weights",
        )  # fmt: skip


def _of_library(library: PeerLibrary, rows: Tensor, settings: TrainingSettings) -> Callable[[int], Trained]:
    return lambda seed: train_peer(library.make, rows, settings, seed=seed)


def _own(sae: KSAE, seed: int) -> Fitted:
    return _fitted(sae.eval(), seed, None)


def _fitted(sae: KSAE, seed: int, trained: Trained | None) -> Fitted:
    steps, seconds = (None, None) if trained is None else (trained.steps, trained.seconds)
    return Fitted(encode=saved_encoder(sae), seed=seed, sae=sae, steps=steps, seconds=seconds)


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
    residual, square = (None, None) if fitted.sae is None else _errors(fitted.sae, samples.test)
    scores = SeedScores(factors=factors, pointing=pointing, residual=residual, square=square)
    return scores, found.n_active, found.codes.train.shape[1]


@torch.no_grad()
def _errors(sae: KSAE, test: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the squared error of each test sample, and its squared distance from the mean of the rows."""
    rows = torch.from_numpy(as_rows(test))
    mean, parts = rows.double().mean(0), []
    for part in rows.split(_AT_ONCE):
        residual = (part.double() - sae(part)[0].double()).square().sum(1)
        parts.append(torch.stack([residual, (part.double() - mean).square().sum(1)]))
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
