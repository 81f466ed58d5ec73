"""Read a saved direction in words (`diffprobe decode`): phrases ranked along it, and the sum of few that is nearest."""

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffprobe.analysis.direction_extremes import DirectionExtremes, direction_extremes
from diffprobe.analysis.phrase_ranking import PhraseBank, RankedPhrase, rank_phrases, standardised
from diffprobe.analysis.statistics import SINGLE_SAMPLES, Groups
from diffprobe.analysis.word_decomposition import Decomposition, decompose
from diffprobe.config.validators import at_least
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, EmptyClass, SplitLeak, StoreMismatch, TooFewGroups, nearest, unknown
from diffprobe.core.result import (
    BACKBONE,
    INPUT,
    RESULT_FILE,
    SHARDS,
    STORE,
    MetricRecord,
    RunResult,
    StartTime,
    make_result,
    read_result,
    write_result,
)
from diffprobe.features.batch import FeatureTable
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.direction import Direction, random_directions
from diffprobe.probes.serialization import SETTINGS
from diffprobe.report.table import csv_value
from diffprobe.runs.massive_notes import require_same_channels
from diffprobe.runs.provenance import backbone_digest

if TYPE_CHECKING:
    from diffprobe.backbones.text_encoders import ClipTextEncoder

KIND = "decode"
"""Kind of the result."""
CAPTIONS = "captions"
"""The bank of all words and n-grams of the captions."""
PHRASES_FILE = "phrases.csv"
"""Table of all phrases, beside the result."""
WORDS_FILE = "words.csv"
"""Table of the phrases of the sums, beside the result."""
_MAX_WORDS, _FOLDS, _CONTROLS = 3, 4, 200


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Settings of `diffprobe decode`."""

    store: str = ""
    """Folder of the feature store whose captions are read, of the backbone and the cell of the direction."""
    split: str = "test"
    """Split whose samples are used; not the one on which the direction was estimated."""
    bank: str = CAPTIONS
    """"captions" for all words and n-grams of the captions, or a text file with one phrase per line."""
    max_words: int | None = None
    """Largest number of words of an n-gram of the captions; None for 3."""
    min_count: int = 10
    """Least number of samples with a phrase, and without it."""
    min_groups: int = 5
    """Least number of groups with a phrase, and without it."""
    group_by: str | None = None
    """Attribute whose samples are not independent, or "sample"; None for that of the run of the direction."""
    text_encoder: str | None = None
    """Name or folder of a pipeline whose CLIP text encoder gives the ranking of the captions alone; None for none."""
    n_random: int = 1000
    """Random directions of equal norm."""
    n_permutations: int = 1000
    """Orders of the captions, shuffled by group."""
    n_resamples: int = 1000
    """Bootstrap resamples of groups."""
    terms: int = 12
    """Largest number of phrases that the direction is written as a sum of; 0 leaves the sum out."""
    folds: int | None = None
    """Folds of whole groups, on which the sum is scored; None for 4."""
    n_controls: int | None = None
    """Random directions, and orders of the captions, that are written as sums too; None for 200."""
    level: float = 0.95
    """Coverage of the intervals."""
    seed: int = 0
    """Seed of random directions, shuffles and resamples."""

    def __post_init__(self) -> None:
        if not self.store:
            raise ConfigError("decoding needs a feature store.", fix="store=FOLDER; see diffprobe store list FOLDER")
        if self.bank != CAPTIONS and self.max_words is not None:
            raise ConfigError(
                f"max_words={self.max_words} has no effect on the phrases of '{self.bank}'.", fix="leave max_words out"
            )
        if not self.terms and (self.folds is not None or self.n_controls is not None):
            raise ConfigError(
                f"folds={self.folds}, n_controls={self.n_controls}: without effect for terms=0.",
                fix="leave them out, or terms=12",
            )
        at_least(0, terms=self.terms)
        at_least(3, folds=_FOLDS if self.folds is None else self.folds)
        at_least(19, n_controls=_CONTROLS if self.n_controls is None else self.n_controls)
        at_least(1, min_count=self.min_count, min_groups=self.min_groups, n_resamples=self.n_resamples)
        at_least(19, n_random=self.n_random, n_permutations=self.n_permutations)


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """A direction in words."""

    direction: Direction
    """The direction."""
    ranked: tuple[RankedPhrase, ...]
    """All phrases, the most positive first."""
    captions: DirectionExtremes
    """The captions at both ends, one per group; their coordinate is in standard deviations from the mean."""
    left_out: tuple[str, ...]
    """Phrases without a score."""
    notes: tuple[str, ...]
    """What could not be checked or measured."""
    words: Decomposition | None = None
    """The direction as a sum of directions of phrases; None where it was left out."""
    text_words: Decomposition | None = None
    """The same in the embeddings of the captions, of the difference of both ends; None where they were not at hand."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _TextEmbedding:
    """The captions in a text encoder."""

    vectors: NDArray[np.float64]
    """Vector of each caption, shape (samples, d)."""
    difference: NDArray[np.float64]
    """Mean over the training captions of the positive end minus that of the negative end, shape (d,)."""

    @property
    def coordinate(self) -> NDArray[np.float64]:
        """Coordinate of each caption along the difference."""
        found: NDArray[np.float64] = self.vectors @ self.difference
        return found


def decode(folder: Path | str, config: DecodeConfig, *, output: Path | str = "runs") -> tuple[Decoded, Path]:
    """Rank phrases along a saved direction and write it as a sum of them; write `result.json` and the tables.

    Args:
        folder: what `Direction.save` wrote, for example a folder below `probes` of a run.
        output: folder of runs. The result is in <output>/decode/<first 12 digits of a digest>.

    Returns: the phrases and the path of the result.
    Raises: StoreMismatch for a store of another backbone or without the cell; SplitLeak for the split that the
        direction was estimated on; UnknownName for a split or attribute; EmptyClass without captions or phrases;
        ConfigError, WeightsMissing, SchemaError, StoreIncomplete.
    """
    started_at = StartTime.now()
    direction, store, run = Direction.load(folder), FeatureStore.open(config.store), run_of(folder)
    notes = require_match(direction, store, run, config.split)
    table = store.load(config.split, [direction.cell])
    _require_captions(table, config)
    group_by = config.group_by or _group_of(run)
    groups = _groups(table, group_by)
    bank = PhraseBank.of(
        table.captions, groups, phrases=_read_bank(config.bank), max_words=config.max_words or _MAX_WORDS,
        min_count=config.min_count, min_groups=config.min_groups,
    )  # fmt: skip
    x = table.features[direction.cell].double()
    coordinate = x @ direction.vector.double()
    random = x @ random_directions(x.shape[1], config.n_random, seed=config.seed)
    text = None if config.text_encoder is None else _embed_text(direction, store, run, config, table.captions)
    ranked = rank_phrases(
        bank, coordinate.numpy(), random.numpy(), groups, text=None if text is None else text.coordinate,
        n_permutations=config.n_permutations, n_resamples=config.n_resamples, level=config.level, seed=config.seed,
    )  # fmt: skip
    z = torch.from_numpy(standardised(coordinate.numpy()))
    ends = direction_extremes(z, table.keys, table.captions, group_by=[str(group) for group in groups])
    names = _group_names(table, store, group_by)
    words, said = _sum_of_words("the direction", bank, x.numpy(), direction.vector.double().numpy(), names, config)
    text_words, of_text = None, None
    if text is not None:
        text_words, of_text = _sum_of_words("its text", bank, text.vectors, text.difference, names, config)
    decoded = Decoded(
        direction=direction, ranked=ranked, captions=ends, left_out=bank.left_out, words=words, text_words=text_words,
        notes=(*notes, *(note for note in (said, of_text) if note)),
    )  # fmt: skip
    inputs = {
        STORE: store.manifest.digest,
        BACKBONE: backbone_digest(store.manifest.backbone),
        f"{INPUT}direction": digest_file(Path(folder) / SETTINGS),
        **({} if config.bank == CAPTIONS else {f"{INPUT}bank": digest_file(Path(config.bank))}),
    }
    tree = {"direction": str(folder), **dataclasses.asdict(config)}
    place = Path(output) / KIND / digest_json({**tree, "inputs": inputs})[:12]
    place.mkdir(parents=True, exist_ok=True)
    result = make_result(
        run=place.name, experiment=KIND, kind=KIND, config=tree, seeds={"draws": config.seed},
        metrics=_records(decoded, config, len(table), group_by), started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    _write_csv(decoded.ranked, place / PHRASES_FILE)
    if words or text_words:
        _write_words(decoded, place / WORDS_FILE)
    write_result(result, place / RESULT_FILE)
    return decoded, place / RESULT_FILE


def run_of(folder: Path | str) -> RunResult | None:
    """Return the result of the run that a direction was saved by; None for a folder outside of `probes` of a run.

    Raises: SchemaError for a result that cannot be read.
    """
    for parent in Path(folder).resolve().parents:
        if parent.name == "probes" and (parent.parent / RESULT_FILE).is_file():
            return read_result(parent.parent / RESULT_FILE)
    return None


def require_match(direction: Direction, store: FeatureStore, run: RunResult | None, split: str) -> tuple[str, ...]:
    """Check that a store has the space of a direction, and samples that it was not estimated on.

    Returns: what could not be compared.
    Raises: StoreMismatch for a store of another backbone, without the cell, or with other massive channels treated;
        UnknownName for a split; SplitLeak.
    """
    manifest = store.manifest
    if direction.cell not in manifest.cells:
        raise StoreMismatch(
            f"the direction is for the cell '{direction.cell}', which store '{store.path}' does not have.",
            f"nearest: {', '.join(nearest(direction.cell, store.cells)) or ', '.join(store.cells)}",
            fix="a store with this cell, or a direction that was estimated in a cell of the store",
        )
    width = manifest.cells[direction.cell]
    if width != len(direction.vector):
        raise StoreMismatch(
            f"the direction has {len(direction.vector)} numbers; cell '{direction.cell}' has {width} in the store."
        )
    if split not in store.splits:
        raise unknown("split of this store", split, store.splits)
    if run is None:
        return ("the backbone and the training samples of the direction are not recorded: they were not compared",)
    ours, theirs = run.artifacts.get(BACKBONE), backbone_digest(manifest.backbone)
    if ours != theirs:
        raise StoreMismatch(
            f"the direction is of another backbone than store '{store.path}' ({manifest.recorded['backbone']}).",
            f"digest of the run: {ours or 'not recorded'}, of the store: {theirs}",
            fix="a store of the backbone that the direction was estimated on",
        )
    require_same_channels(run, manifest, direction.cell, store.path)
    trained = run.config.get("data", {}).get("train_split")
    if trained == split and run.artifacts.get(SHARDS) == manifest.data.get("shard_set"):
        raise SplitLeak(
            f"split '{split}': the direction was estimated on it, and its ends look cleaner there than they are.",
            f"splits of the store: {', '.join(store.splits)}",
            fix="split=test",
        )
    return ()


def _require_captions(table: FeatureTable, config: DecodeConfig) -> None:
    if not any(table.captions):
        raise EmptyClass(f"split '{config.split}' of '{config.store}' has no captions.", fix="a data set with captions")


def _group_of(run: RunResult | None) -> str:
    """Return the attribute that the run of a direction grouped its samples by. Raises: ConfigError without one."""
    for record in run.metrics if run else ():
        how = record.detail.get("control_nulls", {}).get("shuffled_labels", record.detail)
        if how.get("group_by"):
            return str(how["group_by"])
    raise ConfigError(
        "the groups of the samples are not known: the direction is not that of a run.",
        fix=f"group_by=ATTRIBUTE, or group_by={SINGLE_SAMPLES} for independent samples",
    )


def _groups(table: FeatureTable, group_by: str) -> list[int]:
    if group_by == SINGLE_SAMPLES:
        return list(range(len(table)))
    if group_by not in table.attributes:
        raise unknown("attribute of this store", group_by, [*table.attributes, SINGLE_SAMPLES])
    ids: list[int] = Groups.of_values(table.attributes[group_by].numpy()).ids.tolist()
    return ids


def _group_names(table: FeatureTable, store: FeatureStore, group_by: str) -> list[str]:
    """Return the name of the group of each sample, by which folds are drawn: it does not depend on their order."""
    if group_by == SINGLE_SAMPLES:
        return list(table.keys)
    values, ids = store.attributes[group_by], table.attributes[group_by].tolist()
    return [f"value:{values[i]}" if i >= 0 else f"key:{key}" for i, key in zip(ids, table.keys, strict=True)]


def _sum_of_words(
    what: str,
    bank: PhraseBank,
    features: NDArray[np.float64],
    direction: NDArray[np.float64],
    groups: Sequence[str],
    config: DecodeConfig,
) -> tuple[Decomposition | None, str | None]:
    """Return a direction as a sum of phrases, or None with the reason."""
    if not config.terms:
        return None, None
    n = config.n_controls or _CONTROLS
    random = random_directions(features.shape[1], n, seed=config.seed).numpy()
    try:
        return decompose(
            bank, features, direction, random, groups, max_terms=config.terms, n_folds=config.folds or _FOLDS,
            n_permutations=n, seed=config.seed,
        ), None  # fmt: skip
    except (EmptyClass, TooFewGroups) as error:
        return None, f"{what} is not written as a sum of words: {str(error).splitlines()[0]}"


def _read_bank(bank: str) -> list[str] | None:
    """Return the phrases of a file; None for those of the captions. Raises: ConfigError."""
    if bank == CAPTIONS:
        return None
    try:
        lines = Path(bank).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"bank='{bank}' cannot be read as a text file: {error}.", f"allowed: {CAPTIONS}, or a file of phrases"
        ) from error
    phrases = [line.strip() for line in lines if line.strip()]
    if not phrases:
        raise ConfigError(f"bank='{bank}' has no phrase.", fix="one phrase per line")
    return phrases


def open_text_encoder(name: str) -> "ClipTextEncoder":
    """Load the CLIP text encoder of a pipeline folder or of a shipped model.

    Raises: ConfigError for what has no text encoder; WeightsMissing.
    """
    from diffprobe.backbones.locate import locate
    from diffprobe.backbones.text_encoders import load_clip_text

    folder = locate(name).folder
    if folder is None:
        raise ConfigError(f"text_encoder={name} has no text encoder.", fix="a pipeline folder, or emoji-sd")
    return load_clip_text(folder, dtype=torch.float32)


def _embed_text(
    direction: Direction, store: FeatureStore, run: RunResult | None, config: DecodeConfig, captions: Sequence[str]
) -> _TextEmbedding:
    """Return the embeddings of the captions, and the mean difference of both ends in them."""
    train = str(run.config.get("data", {}).get("train_split", "train")) if run else "train"
    table = store.load(train, [])
    names = store.classes(direction.target)
    labels = table.label if direction.target == "label" else table.attributes[direction.target]
    above = set(direction.positive.split("|"))
    others = direction.negative.startswith("other than ")
    below = set(names) - above if others else set(direction.negative.split("|"))
    if not above | below <= set(names):
        raise ConfigError(
            f"the ends '{direction.positive}' and '{direction.negative}' are not values of '{direction.target}'.",
            fix="leave text_encoder out",
        )
    sides = [torch.isin(labels, torch.tensor([names.index(name) for name in end])) for end in (above, below)]
    if not all(bool(side.any()) for side in sides):
        raise EmptyClass(f"split '{train}' lacks captions of an end of '{direction.target}'.")
    encoder = open_text_encoder(str(config.text_encoder))
    means = []
    for side in sides:
        texts = [table.captions[i] for i in side.nonzero().flatten().tolist()]
        means.append(encoder.mean_states(texts).double().mean(0))
    vectors = encoder.mean_states(captions).double().numpy()
    return _TextEmbedding(vectors=vectors, difference=(means[0] - means[1]).numpy())


def _records(decoded: Decoded, config: DecodeConfig, n: int, group_by: str) -> list[MetricRecord]:
    detail: dict[str, Any] = {
        "positive": decoded.direction.positive,
        "negative": decoded.direction.negative,
        "group_by": group_by,
        "n_phrases": len(decoded.ranked),
        "phrases": [_row(one) for one in decoded.ranked],
        "captions": dataclasses.asdict(decoded.captions),
        "left_out": len(decoded.left_out),
        "notes": list(decoded.notes),
    }
    direction = decoded.direction
    shared = {
        "split": config.split, "n": n, "cell": direction.cell, "target": direction.target, "probe": direction.estimator,
    }  # fmt: skip
    found = float(sum(one.q <= 0.05 for one in decoded.ranked))
    records = [MetricRecord(name="phrases_found", value=found, detail=detail, **shared)]  # type: ignore[arg-type]
    for name, words in (("words_cosine", decoded.words), ("text_words_cosine", decoded.text_words)):
        if words is None:
            continue
        nulls = {"random_direction": words.random, "shuffled_captions": words.shuffled}
        records.append(
            MetricRecord(
                name=name, value=words.cosine, controls={control: null.mean for control, null in nulls.items()},
                detail={
                    "terms": [{**dataclasses.asdict(one), "opposite": list(one.opposite)} for one in words.terms],
                    "fitted_cosine": words.fitted_cosine, "path": list(words.path), "group_by": group_by,
                    "n_phrases": words.n_phrases, "left_out": words.n_left_out, "n_folds": words.n_folds,
                    "control_nulls": {control: null.describe() for control, null in nulls.items()},
                },
                **shared,  # type: ignore[arg-type]
            )
        )  # fmt: skip
    return records


def _row(one: RankedPhrase) -> dict[str, Any]:
    row = dataclasses.asdict(one)
    row["same"] = list(one.same)
    row["interval"] = None if one.interval is None else list(one.interval)
    return row


def _write_csv(ranked: Sequence[RankedPhrase], path: Path) -> None:
    heads = ["phrase", "same", "count", "score", "low", "high", "random_quantile", "p", "smallest_p", "q", "text_score"]
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        for one in ranked:
            row = _row(one)
            row["low"], row["high"] = one.interval or ("", "")
            row["same"] = "; ".join(one.same)
            writer.writerow(["" if row[head] is None else csv_value(row[head]) for head in heads])


def _write_words(decoded: Decoded, path: Path) -> None:
    heads = ["space", "phrase", "opposite", "coefficient", "cosine", "n_folds"]
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heads)
        for space, words in (("features", decoded.words), ("text", decoded.text_words)):
            for one in words.terms if words else ():
                values = (one.phrase, "; ".join(one.opposite), one.coefficient, one.cosine, one.n_folds)
                writer.writerow([csv_value(value) for value in (space, *values)])
