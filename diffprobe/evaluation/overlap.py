"""Records of the overlap of classes: the matrix over classes, and how a classifier's confusion follows it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.analysis.matrix_link import matrix_link
from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import MetricRecord, predictions_file
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.captions import Encoded
from diffprobe.evaluation.overlap_settings import OverlapRule
from diffprobe.evaluation.score_candidates import Question
from diffprobe.generative.image_table import ImageTable
from diffprobe.probes.predictions import load_predictions
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.kernel_overlap import class_overlap, kernel_distances

Matrix = NDArray[np.float64]


def names_of_classes(encoded: Encoded, attribute: str) -> list[str]:
    """Return the names of the classes of a question, in the order of its texts."""
    return sorted({sample[attribute] for sample in encoded.table.attributes if attribute in sample})


def images_of_classes(table: ImageTable, attribute: str, names: Sequence[str], n: int, seed: int) -> list[int]:
    """Return rows of n images of each class, drawn by the seed, class after class.

    Raises: EmptyClass for a class with fewer images.
    """
    generator = torch.Generator().manual_seed(derive_seed("overlap", seed))
    drawn = torch.randperm(len(table), generator=generator).tolist()
    rows: list[int] = []
    for name in names:
        own = [row for row in drawn if table.attributes[row].get(attribute) == name][:n]
        if len(own) < n:
            raise EmptyClass(
                f"overlap.images={n}: class '{name}' of '{attribute}' has {len(own)} images in the training split.",
                fix=f"overlap.images={len(own)}, or another attribute",
            )
        rows += own
    return rows


def own_confusion(question: Question, scores: Sequence[Float[Tensor, "sample n"]]) -> Float[Tensor, "true chosen"]:
    """Return the share of the images of each class for which each class has the least score, over all sets of noise.

    Args:
        scores: one error per class; a tie counts for the first of its classes.
    """
    n = question.candidates.shape[1]
    counts = torch.zeros(n, n, dtype=torch.float64)
    for one in scores:
        counts.index_put_((question.right, one.argmin(1)), torch.ones(len(one), dtype=torch.float64), accumulate=True)
    return _shares(counts)


def classifier_confusion(folder: Path, cell: str | None, attribute: str, names: Sequence[str]) -> tuple[Tensor, str]:
    """Return the confusion of a finished classifier run on its test split, and the cell that it read.

    Raises: ConfigError for a folder without predictions, without a classifier of the attribute, with several of them,
        or with other classes; UnknownName for a cell that it has not.
    """
    path = folder / predictions_file("test")
    if not path.is_file():
        raise ConfigError(
            f"overlap.classifier: '{folder}' has no {path.name}.", fix="the folder of a finished run of kind classifier"
        )
    found = load_predictions(path)
    heads = {
        str(head.cell): number
        for number, head in enumerate(found.heads)
        if head.kind == "classes" and head.target == attribute and head.control == "none"
    }
    if not heads:
        targets = sorted({str(head.target) for head in found.heads if head.kind == "classes"})
        raise ConfigError(
            f"overlap.classifier: '{folder}' has no classifier of '{attribute}'.", f"it has: {', '.join(targets)}"
        )
    if cell is not None and cell not in heads:
        raise UnknownName(f"overlap.cell: '{folder}' has no cell '{cell}'.", f"allowed: {', '.join(heads)}")
    if cell is None and len(heads) > 1:
        raise ConfigError(
            f"overlap.classifier: '{folder}' has {len(heads)} cells.", f"allowed: {', '.join(heads)}",
            fix=f"overlap.cell={next(iter(heads))}",
        )  # fmt: skip
    cell = cell or next(iter(heads))
    values = list(found.values[attribute])
    missing = [name for name in names if name not in values]
    if missing:
        raise ConfigError(f"overlap.classifier: '{folder}' does not know the class '{missing[0]}' of '{attribute}'.")
    counts = _counts(found.truth(heads[cell]), found.of("predicted", heads[cell]).long(), len(values))
    kept = [values.index(name) for name in names]
    return _shares(counts[kept][:, kept]), cell


def _counts(truth: Int[Tensor, " sample"], chosen: Int[Tensor, " sample"], n: int) -> Float[Tensor, "n n"]:
    known = truth >= 0
    return torch.bincount(truth[known] * n + chosen[known], minlength=n * n).reshape(n, n).double()


def _shares(counts: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


def overlap_records(
    error: DenoisingError,
    rule: OverlapRule,
    train: ImageTable,
    names: Sequence[str],
    attribute: str,
    question: Question,
    scores: Sequence[Float[Tensor, "sample n"]],
    timesteps: Sequence[int],
    *,
    split: str,
    seed: int,
    progress: ProgressDisplay,
) -> list[MetricRecord]:
    """Return `class_overlap_<attribute>`, and where it is defined `overlap_confusion_spearman_<attribute>`.

    Args:
        error: the model.
        train: the split of the images at which kernels are compared; only these are encoded.
        names: of the classes, in the order of the question's texts.
        scores: of the question, one per set of noise.
        timesteps: at which kernels are compared; 0 is left out.
    Raises: EmptyClass for a class with too few images; ConfigError, UnknownName, see `classifier_confusion`.
    """
    source = {"confusion_of": "scores"}
    confusion = own_confusion(question, scores)
    if rule.classifier is not None:
        confusion, cell = classifier_confusion(Path(rule.classifier), rule.cell, attribute, names)
        source = {"confusion_of": "classifier", "classifier_cell": cell}
    rows = images_of_classes(train, attribute, names, rule.images, seed)
    latents = torch.cat([error.encode_images(train.to_float(part)) for part in torch.tensor(rows).split(64)])
    used = [t for t in sorted(timesteps) if t > 0]
    with progress.bar(len(rows), f"overlap of {len(names)} classes", unit="images", keep=False) as bar:
        distances = kernel_distances(
            error, latents, [train.keys[row] for row in rows],
            error.encode_conditions(question.values), used, on_sample=bar.update,
        )  # fmt: skip
    classes = [number for number in range(len(names)) for _ in range(rule.images)]
    overlaps = class_overlap(distances, classes)
    n = len(names)
    others = ~torch.eye(n, dtype=torch.bool)
    detail: dict[str, Any] = {
        **source, "classes": list(names), "overlap": overlaps.tolist(), "confusion": confusion.tolist(),
        "timesteps": used, "passes_per_image": float(n * len(used)),
    }  # fmt: skip
    whole = MetricRecord(
        name=f"class_overlap_{attribute}", value=float(overlaps[others].mean()), split=split, n=len(rows), detail=detail
    )
    try:
        link = matrix_link(
            overlaps.numpy(), confusion.numpy(), n_permutations=rule.n_permutations, seed=derive_seed("overlap", seed)
        )
    except (ConfigError, EmptyClass) as undefined:
        detail["link"] = undefined.what
        return [whole]
    found: dict[str, Any] = {
        **source, "p": link.null.p, "smallest_p": link.null.smallest_p, "n_classes": n, "passes_per_image": 0.0,
        "level": link.level, **({} if link.interval is None else {"interval": list(link.interval)}),
    }  # fmt: skip
    return [
        whole,
        MetricRecord(
            name=f"overlap_confusion_spearman_{attribute}", value=link.null.observed, split=split, n=n * (n - 1),
            controls={"permuted_classes": link.null.mean}, detail=found,
        ),
    ]  # fmt: skip
