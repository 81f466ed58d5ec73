"""Predict the class of every image of a shard set, and write the predictions as a table of columns.

The table is what `features.columns` reads. It holds no probabilities, so that its bytes do not depend on the batch.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from diffprobe.backbones.zero_shot import ZeroShotClassifier
from diffprobe.core.artifact import write_artifact
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError
from diffprobe.core.progress import Bar
from diffprobe.features.column_table import KEY, SOURCE, SPLIT
from diffprobe.shards.annotation import Caps, Fields
from diffprobe.shards.decode import Sample
from diffprobe.shards.index import ShardSet
from diffprobe.shards.stream import SampleStream

COLUMN = "predicted_class"
"""Column of the predicted class, for templates."""
KIND, SCHEMA_VERSION = "class_predictions", 1


@dataclass(frozen=True, kw_only=True)
class SplitPredictions:
    """The counts of one split."""

    n: int
    """Number of samples with a prediction."""
    n_labelled: int
    """Number of them with a label."""
    n_correct: int
    """Number of those whose label was predicted."""
    n_skipped: int
    """Number of faulty samples without a prediction."""

    @property
    def accuracy(self) -> float | None:
        """Share of the labelled samples whose label was predicted, 0 to 1; None without a labelled sample."""
        return self.n_correct / self.n_labelled if self.n_labelled else None


def predict_classes(
    shard_set: ShardSet,
    classifier: ZeroShotClassifier,
    out: Path,
    *,
    splits: Sequence[str] = (),
    fields: Fields | None = None,
    caps: Caps | None = None,
    batch_size: int = 64,
    on_error: str = "raise",
    bar: Bar | None = None,
) -> dict[str, SplitPredictions]:
    """Write the predicted class of each sample to a table, and a record of how it was made beside it.

    Args:
        shard_set: the set; its classes are those of the classifier.
        classifier: a zero-shot model.
        out: the table, a `.csv` with the columns key, split, predicted_class, source. The record `out` + `.json` has
            digests of model, shards and table, the templates, and the counts of each split.
        splits: splits to predict; all of the set if empty.
        fields, caps, on_error: see `SampleStream`.
        batch_size: images per forward pass.
        bar: counts the images.

    Returns: split -> its counts.
    Raises: ConfigError for another ending, an existing file, or a batch_size below 1; UnknownName for an unknown split;
        SampleError and ShardError, see `SampleStream`.
    """
    if out.suffix.lower() != ".csv":
        raise ConfigError(f"--out '{out}' does not end in .csv.")
    if out.exists():
        raise ConfigError(f"'{out}' exists.", fix="remove it, or name another file: stores are tied to its content")
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}, at least 1 is needed.")
    counts: dict[str, SplitPredictions] = {}
    with atomic_file(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([KEY, SPLIT, COLUMN, SOURCE])
        for split in splits or shard_set.splits():
            stream = SampleStream(shard_set, split, fields=fields, caps=caps, on_error=on_error)
            n = n_labelled = n_correct = 0
            for batch in _batches(stream, batch_size):
                found = classifier([sample.image for sample in batch]).tolist()
                for sample, best in zip(batch, found, strict=True):
                    writer.writerow([sample.key, split, classifier.classes[best], classifier.source])
                    n_labelled += sample.label >= 0
                    n_correct += sample.label == best
                n += len(batch)
                if bar is not None:
                    bar.update(len(batch))
            counts[split] = SplitPredictions(
                n=n, n_labelled=n_labelled, n_correct=n_correct, n_skipped=len(stream.skipped)
            )
    _write_record(out, shard_set, classifier, counts)
    return counts


def _batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    given = iter(samples)
    while batch := list(islice(given, size)):
        yield batch


def _write_record(
    out: Path, shard_set: ShardSet, classifier: ZeroShotClassifier, counts: dict[str, SplitPredictions]
) -> None:
    body: dict[str, Any] = {
        "model": classifier.name,
        "templates": list(classifier.templates),
        "classes": list(classifier.classes),
        "splits": {
            name: {"n": one.n, "n_labelled": one.n_labelled, "n_correct": one.n_correct, "accuracy": one.accuracy}
            for name, one in counts.items()
        },
    }
    inputs = {"model": classifier.digest, "shards": shard_set.digest, "table": digest_file(out)}
    write_artifact(out.with_name(f"{out.name}.json"), body, kind=KIND, schema_version=SCHEMA_VERSION, inputs=inputs)
