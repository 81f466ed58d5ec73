"""Directions from prompts on real images: which end an image has, by its coordinate in the same cell.

A direction was made without an image and without a label of one; AUROC on images of the named split measures
whether it is that of the attribute. Beside it are the same difference of prompts in latents and pixels of the
generated images, each on the real images' latents and pixels, the same difference in a text encoder on the images'
captions, and random directions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from diffprobe.analysis.statistics import PairedResamples, area_of
from diffprobe.backbones.cell import Cell
from diffprobe.backbones.parts import LATENTS
from diffprobe.backbones.prompt_plan import PIXELS
from diffprobe.core.errors import ConfigError, EmptyClass, StoreMismatch, unknown
from diffprobe.core.groups import SINGLE_SAMPLES
from diffprobe.core.result import MetricRecord
from diffprobe.features.reader import FeatureStore
from diffprobe.metrics.auroc import auroc
from diffprobe.probes.direction.base import Direction
from diffprobe.probes.null_distribution import Null

BASELINES = {Cell(LATENTS, 0).name: "vae_latents", Cell(PIXELS, 0).name: "raw_pixels"}
"""Cell of generated and of real images -> name of the baseline."""
TEXT = "text_encoder"
"""Name of the baseline that reads the captions of the images."""

CaptionScores = Callable[[Sequence[str]], NDArray[np.float64]]
"""Captions -> coordinate of each along the direction of a text encoder."""


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The real images that directions are scored on."""

    stores: tuple[FeatureStore, ...]
    """Stores of features of images; each direction is scored in the first one that has its cell."""
    split: str = "test"
    """Split of the images."""
    group_by: str = SINGLE_SAMPLES
    """Attribute whose images are resampled together, or "sample"."""
    n_resamples: int = 1000
    """Resamples of groups."""
    n_random: int = 1000
    """Random directions."""
    level: float = 0.95
    """Coverage of the intervals."""
    seed: int = 0
    """Seed of resamples and of random directions."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Images:
    """Images of both ends in one cell, sorted by key."""

    keys: list[str]
    groups: list[str]
    positive: NDArray[np.bool_]
    features: torch.Tensor
    captions: list[str]
    """Empty where the store has none."""


def score_on_images(
    directions: Sequence[Direction], settings: ImageSettings, *, text: CaptionScores | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> list[MetricRecord]:  # fmt: skip
    """Return a record `auroc` per direction whose cell the stores have.

    The controls are the AUROC of the baselines among the directions, on the same images, and the mean of random
    directions. `detail` has the `interval` over groups, the paired `differences` to each baseline, and p against random
    directions with its smallest attainable value.

    Args:
        directions: of one target, with the same ends.
        text: the same direction in a text encoder, on captions; None without that baseline.
        announce: receives what is left out: directions without images, and captions that are missing.

    Raises: ConfigError if no store has the cell of a direction, or for a direction of another width; UnknownName for a
        split, target, value or group that a store lacks; EmptyClass for an end without images; TooFewGroups;
        StoreMismatch for stores with other images.
    """
    read = {found.cell: images for found in directions if (images := _read(found, settings)) is not None}
    without = [found.cell for found in directions if found.cell not in read]
    if not read:
        raise ConfigError(
            f"no store of images has a cell of these directions: {', '.join(without)}.",
            f"cells of images: {', '.join(cell for store in settings.stores for cell in store.cells)}",
            fix="extract the images in the cells of the re-read: the same tap and timestep under the empty prompt",
        )
    if without:
        announce(f"without images in their cell, so not scored on images: {', '.join(without)}")
    first = next(iter(read.values()))
    for cell, images in read.items():
        if images.keys != first.keys:
            raise StoreMismatch(
                f"the stores have other images in '{cell}' than in '{next(iter(read))}': {len(images.keys)} and "
                f"{len(first.keys)} of both ends.",
                fix="extract all stores from the same shards and split",
            )
    resamples = PairedResamples(first.groups, n_resamples=settings.n_resamples, seed=settings.seed)
    scored = {found.cell: _coordinates(found, read[found.cell]) for found in directions if found.cell in read}
    values = {cell: resamples.of(area_of(scores, first.positive)) for cell, scores in scored.items()}
    if text is not None:
        if first.captions and all(first.captions):
            values[TEXT] = resamples.of(area_of(text(first.captions), first.positive))
        else:
            announce("the images have no captions, or not all of them: the text encoder is not a baseline")
    return [_record(found, values, resamples, read[found.cell], settings) for found in directions if found.cell in read]


def _read(direction: Direction, settings: ImageSettings) -> _Images | None:
    """Return the images of both ends, None if no store has the cell."""
    store = next((store for store in settings.stores if direction.cell in store.cells), None)
    if store is None:
        return None
    for name in (direction.target, *([settings.group_by] if settings.group_by != SINGLE_SAMPLES else [])):
        if name not in store.attributes:
            raise unknown("attribute of the images", name, list(store.attributes))
    values = store.attributes[direction.target]
    for end in (direction.positive, direction.negative):
        if end not in values:
            raise unknown(f"value of '{direction.target}' of the images", end, list(values))
    table = store.load(settings.split, [direction.cell])
    codes = table.attributes[direction.target]
    above, below = codes == values.index(direction.positive), codes == values.index(direction.negative)
    for end, mask in ((direction.positive, above), (direction.negative, below)):
        if not bool(mask.any()):
            raise EmptyClass(f"split '{settings.split}' has no image with {direction.target} '{end}'.")
    rows = (above | below).nonzero().flatten().tolist()
    rows.sort(key=lambda row: table.keys[row])
    captions = [table.captions[row] for row in rows] if table.captions else []
    x = table.features[direction.cell][torch.tensor(rows)].float().flatten(1)
    if x.shape[1] != len(direction.vector):
        raise ConfigError(
            f"the direction of '{direction.cell}' has {len(direction.vector)} values, the images have {x.shape[1]}.",
            fix="the same backbone, pooling and resolution for prompts and images",
        )
    return _Images(
        keys=[table.keys[row] for row in rows], groups=_groups(store, table.attributes, table.keys, rows, settings),
        positive=above[rows].numpy(), features=x, captions=captions,
    )  # fmt: skip


def _groups(
    store: FeatureStore,
    attributes: Mapping[str, torch.Tensor],
    keys: list[str],
    rows: list[int],
    settings: ImageSettings,
) -> list[str]:
    """Return the group of each image; images without a value of the attribute are groups of their own."""
    if settings.group_by == SINGLE_SAMPLES:
        return [keys[row] for row in rows]
    names, codes = store.attributes[settings.group_by], attributes[settings.group_by].tolist()
    return [f"={names[codes[row]]}" if codes[row] >= 0 else keys[row] for row in rows]


def _coordinates(direction: Direction, images: _Images) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (images.features.double() @ direction.vector.double()).numpy()
    return found


def _record(
    direction: Direction, values: Mapping[str, NDArray[np.float64]], resamples: PairedResamples, images: _Images,
    settings: ImageSettings,
) -> MetricRecord:  # fmt: skip
    own = values[direction.cell]
    nothing = np.zeros_like(own)
    interval = resamples.interval(own, nothing, level=settings.level, method="expanded")
    baselines = {**BASELINES, TEXT: TEXT}
    others = {name: values[cell] for cell, name in baselines.items() if cell in values and cell != direction.cell}
    differences = {
        name: resamples.interval(own, other, level=settings.level, method="expanded") for name, other in others.items()
    }
    null = _random(images, float(own[0]), settings)
    return MetricRecord(
        name="auroc", value=float(own[0]), split=settings.split, n=len(images.keys), cell=direction.cell,
        target=direction.target, probe=direction.estimator,
        controls={**{name: float(other[0]) for name, other in others.items()},
                  "random_direction": null.mean},
        detail={
            "positive": direction.positive, "negative": direction.negative, "group_by": settings.group_by,
            "groups": interval.n_clusters, "level": settings.level, "interval": [interval.low, interval.high],
            "differences": {name: [one.estimate, one.low, one.high] for name, one in differences.items()},
            "p_random_direction": null.p, "smallest_p": null.smallest_p,
        },
    )  # fmt: skip


def _random(images: _Images, observed: float, settings: ImageSettings) -> Null:
    """Return the AUROC of random directions in the same cell."""
    generator = torch.Generator().manual_seed(settings.seed)
    vectors = torch.randn(images.features.shape[1], settings.n_random, generator=generator, dtype=torch.float64)
    scores = auroc(images.features.double() @ vectors, torch.from_numpy(images.positive))
    return Null(observed=observed, values=scores.double().numpy(), n_permutations=settings.n_random)
