"""What a discovery reads of a feature store: latents with subject, block, caption and name per sample, and images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from diffprobe.analysis.discovery.subjects import Design
from diffprobe.core.errors import ConfigError, EmptyClass, unknown
from diffprobe.evaluation.discover_settings import DiscoverConfig
from diffprobe.features.batch import FeatureTable, concatenate
from diffprobe.features.cell_selection import choose_cell
from diffprobe.features.prompt_latents import is_prompt_store
from diffprobe.features.reader import FeatureStore
from diffprobe.shards.prompt_table import PROMPT_ID, SEED

KEPT_IMAGES = "pixels@t0:caption:none"
"""Cell of the images that `features.keep=[images]` stores beside the latents of prompts."""
LABEL = "label"
"""The subject of images, unless another attribute is named."""

Pixels = NDArray[np.uint8]
ImageSource = Callable[[Sequence[int]], list[Pixels]]
"""Takes numbers of samples and returns their images, uint8 (height, width, 3)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DiscoverySamples:
    """The samples of a discovery."""

    cell: str
    """Full name of the cell."""
    features: Float32[np.ndarray, "samples d"]
    """Their features."""
    design: Design
    """Subjects, and seeds where all subjects share them."""
    keys: tuple[str, ...]
    """Key of each sample."""
    captions: tuple[str, ...]
    """Caption or prompt of each sample."""
    subject_by: str
    """What the subjects are: "prompt", "label" or an attribute."""
    images: ImageSource | None
    """Images of samples; None where they are not at hand."""
    image_digest: str | None
    """Digest of the shards of the images; None for those in the store itself."""
    n_without_subject: int
    """Samples that have no subject and were left out."""


def read_samples(store: FeatureStore, config: DiscoverConfig) -> DiscoverySamples:
    """Read the samples of a store.

    Raises: UnknownName for a cell, split or attribute that the store lacks; ConfigError for `images` of a store of
        prompts; EmptyClass if no sample has a subject; TooFewGroups for one subject, or too few samples of one;
        StoreIncomplete, SchemaError, ShardError and SampleError for store and shards.
    """
    cell = choose_cell(config.cell, store.cells)
    is_prompts = is_prompt_store(store)
    if is_prompts and config.images is not None:
        raise ConfigError(
            f"images={config.images} has no effect on a store of prompts, which has images of its own.",
            fix="remove it; features.keep=[images] of the extraction stores them",
        )
    splits = store.splits if config.split is None else (config.split,)
    kept = [KEPT_IMAGES] if is_prompts and KEPT_IMAGES in store.cells and cell != KEPT_IMAGES else []
    table = concatenate([table for split in splits for table in store.iter_shards(split, [cell, *kept])])
    subject_by = config.subject or (PROMPT_ID if is_prompts else LABEL)
    ids, names = _subjects(store, table, subject_by)
    rows = np.flatnonzero(ids >= 0)
    if not len(rows):
        raise EmptyClass(f"no sample of '{store.path}' has a value of '{subject_by}'.", fix="subject=ATTRIBUTE")
    used, numbers = np.unique(ids[rows], return_inverse=True)
    subject_names = tuple(names[i] for i in used.tolist())
    if subject_by == PROMPT_ID:  # an id is a digest by default; the prompt itself is what people know
        first = np.unique(numbers, return_index=True)[1]
        subject_names = tuple(table.captions[rows[i]] for i in first)
    design = Design(names=subject_names, subjects=numbers.astype(np.int64), blocks=_blocks(table, rows, is_prompts))
    digest = None
    images: ImageSource | None = None
    if kept:
        stored = table.features[KEPT_IMAGES]
        images = _stored_images(stored, rows)
    elif config.images is not None:
        images, digest = _shard_images(config.images, table, rows)
    features = table.features[cell].float().flatten(1)[torch.from_numpy(rows)].numpy()
    return DiscoverySamples(
        cell=cell, features=features, design=design, keys=tuple(table.keys[i] for i in rows),
        captions=tuple(table.captions[i] if table.captions else "" for i in rows),
        subject_by="prompt" if subject_by == PROMPT_ID else subject_by, images=images, image_digest=digest,
        n_without_subject=len(ids) - len(rows),
    )  # fmt: skip


def _subjects(store: FeatureStore, table: FeatureTable, name: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the number of each sample's subject, -1 for none, and the names."""
    if name == LABEL:
        return table.label.numpy(), store.classes()
    if name not in store.attributes or name == SEED:
        raise unknown("attribute of this store", name, [LABEL, *(one for one in store.attributes if one != SEED)])
    return table.attributes[name].numpy(), store.attributes[name]


def _blocks(table: FeatureTable, rows: NDArray[np.int64], is_prompts: bool) -> tuple[str, ...] | None:
    """Return the seed of each sample of prompts; None for images, whose noise is their own."""
    return tuple(str(i) for i in table.attributes[SEED][torch.from_numpy(rows)].tolist()) if is_prompts else None


def _stored_images(stored: torch.Tensor, rows: NDArray[np.int64]) -> ImageSource:
    def images(numbers: Sequence[int]) -> list[Pixels]:
        chosen = stored[torch.from_numpy(rows[np.asarray(numbers, dtype=np.int64)])]
        found: Pixels = (chosen.float() * 255).round().clamp(0, 255).byte().movedim(1, -1).numpy()
        return list(found)

    return images


def _shard_images(folder: str, table: FeatureTable, rows: NDArray[np.int64]) -> tuple[ImageSource, str]:
    from diffprobe.core.image import to_rgb
    from diffprobe.features.fetch_images import fetch_images
    from diffprobe.shards.index import ShardSet

    shard_set = ShardSet.load(folder)
    files = dict(zip(table.keys, table.shards, strict=True))

    def images(numbers: Sequence[int]) -> list[Pixels]:
        keys = [table.keys[rows[i]] for i in numbers]
        found = fetch_images(shard_set, keys, shards=files)
        return [np.asarray(to_rgb(found[key])) for key in keys]

    return images, shard_set.digest
