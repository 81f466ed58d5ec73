"""Read a saved direction in words: phrases of the captions in a feature store, ranked along it (`diffprobe decode`)."""

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffprobe.analysis.direction_extremes import DirectionExtremes, direction_extremes
from diffprobe.analysis.phrase_ranking import PhraseBank, RankedPhrase, rank_phrases, standardised
from diffprobe.analysis.statistics import SINGLE_SAMPLES, Groups
from diffprobe.config.validators import at_least
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, EmptyClass, SplitLeak, StoreMismatch, nearest, unknown
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
from diffprobe.runs.provenance import backbone_digest

KIND = "decode"
"""Kind of the result."""
CAPTIONS = "captions"
"""The bank of all words and n-grams of the captions."""
PHRASES_FILE = "phrases.csv"
"""Table of all phrases, beside the result."""
_MAX_WORDS = 3


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


def decode(folder: Path | str, config: DecodeConfig, *, output: Path | str = "runs") -> tuple[Decoded, Path]:
    """Rank phrases along a saved direction; write `result.json` and `phrases.csv`.

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
    text = None if config.text_encoder is None else _text_coordinate(direction, store, run, config, table.captions)
    ranked = rank_phrases(
        bank, coordinate.numpy(), random.numpy(), groups, text=text, n_permutations=config.n_permutations,
        n_resamples=config.n_resamples, level=config.level, seed=config.seed,
    )  # fmt: skip
    z = torch.from_numpy(standardised(coordinate.numpy()))
    ends = direction_extremes(z, table.keys, table.captions, group_by=[str(group) for group in groups])
    decoded = Decoded(direction=direction, ranked=ranked, captions=ends, left_out=bank.left_out, notes=notes)
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
        metrics=[_record(decoded, config, len(table), group_by)], started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    _write_csv(decoded.ranked, place / PHRASES_FILE)
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
    Raises: StoreMismatch for a store of another backbone or without the cell; UnknownName for a split; SplitLeak.
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


def _text_coordinate(
    direction: Direction, store: FeatureStore, run: RunResult | None, config: DecodeConfig, captions: Sequence[str]
) -> NDArray[np.float64]:
    """Return the coordinate of each caption along the mean difference of both ends in its text embedding."""
    from diffprobe.backbones.locate import locate
    from diffprobe.backbones.text_encoders import load_clip_text

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
    folder = locate(str(config.text_encoder)).folder
    if folder is None:
        raise ConfigError(
            f"text_encoder={config.text_encoder} has no text encoder.", fix="a pipeline folder, or emoji-sd"
        )
    encoder = load_clip_text(folder, dtype=torch.float32)
    means = []
    for side in sides:
        texts = [table.captions[i] for i in side.nonzero().flatten().tolist()]
        means.append(encoder.mean_states(texts).double().mean(0))
    found: NDArray[np.float64] = (encoder.mean_states(captions).double() @ (means[0] - means[1])).numpy()
    return found


def _record(decoded: Decoded, config: DecodeConfig, n: int, group_by: str) -> MetricRecord:
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
    return MetricRecord(
        name="phrases_found", value=float(sum(one.q <= 0.05 for one in decoded.ranked)), split=config.split, n=n,
        cell=decoded.direction.cell, target=decoded.direction.target, probe=decoded.direction.estimator, detail=detail,
    )  # fmt: skip


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
