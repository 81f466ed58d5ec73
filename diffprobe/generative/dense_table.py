"""Images with one number of truth per pixel in memory, for training dense heads through a denoiser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, SplitLeak, unknown
from diffprobe.core.rng import derive_seed
from diffprobe.generative.image_table import RowIndexDataset, RowIndexLoader, epoch_getter
from diffprobe.generative.run_settings import GenerativeData
from diffprobe.shards.class_maps import DenseSample, read_class_samples, read_depth_samples
from diffprobe.shards.holdout import open_view

Task = Literal["segmentation", "referring", "depth"]
"""What is predicted of each pixel: its class, whether a text means it, or its depth."""


@dataclass(frozen=True)
class DenseTable:
    """One split in memory.

    Attributes:
        images: RGB, 8 bits per channel, at the resolution of the backbone.
        truth: class (`shards.class_maps.IGNORED` where it is left out), mask of the text (0 or 1) or depth level of
            each pixel, at the resolution of the files.
        keys: key of each sample.
        groups: group of each sample.
        texts: name of the class of each sample, or its referring expression.
    """

    images: UInt8[Tensor, "sample 3 height width"]
    truth: UInt8[Tensor, "sample true_height true_width"]
    keys: list[str]
    groups: list[str]
    texts: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to_float(self, rows: Tensor) -> Float[Tensor, "batch 3 height width"]:
        """Return the images of some rows as floats in [0, 1]."""
        return self.images[rows].float() / 255


def load_dense(
    data: DataConfig,
    split: str,
    *,
    task: Task,
    resolution: int,
    n: int,
    classes: Mapping[str, Sequence[int]],
    expressions: Mapping[str, str],
    seed: int,
    ignore: Sequence[int] = (),
) -> DenseTable:
    """Decode the first samples of a split with their truth.

    Args:
        n: number of samples, the first ones in shard order.
        classes: class -> the values of `mask.png` that it has.
        expressions: text with attributes in braces -> the class that it means; each sample has one of those whose
            class it shows, chosen by its key.
        seed: of that choice.
        ignore: values of `mask.png` of no class, which are left out.

    Raises: SampleError, with shard and key, for a sample without readable truth of the size of its image, or with a
        value of no class; ConfigError for too few samples, truth of several sizes, or an expression that fits no
        sample; UnknownName for an expression of an unknown class or attribute.
    """
    view = open_view(data)
    fields = view.fields_for(data.fields)
    for name in expressions.values():
        if name not in classes:
            raise unknown("class of expressions:", name, list(classes))
    if task == "depth":
        samples = read_depth_samples(view, split, fields=fields, resolution=resolution, limit=n, caps=data.caps)
    else:
        samples = read_class_samples(
            view, split, classes=classes, fields=fields, resolution=resolution, limit=n, caps=data.caps, ignore=ignore
        )
    found = list(samples)
    if len(found) < 2:
        raise ConfigError(f"split '{split}' of '{data.path}' has {len(found)} samples; at least 2 are needed.")
    sizes = {one.truth.shape for one in found}
    if len(sizes) > 1:
        raise ConfigError(
            f"split '{split}' of '{data.path}': the truth has the sizes {sorted(sizes)}.",
            "a batch needs one size",
            fix="write the shards with images of one size",
        )
    truth = np.stack([one.truth for one in found])
    if task == "referring":
        names = list(classes)
        chosen = [_expression(one, expressions, names, seed) for one in found]
        texts = [text for text, _ in chosen]
        truth = np.stack([(one == place).astype(np.uint8) for one, (_, place) in zip(truth, chosen, strict=True)])
    else:
        texts = [one.sample.class_name for one in found]
    pixels = np.stack([np.asarray(one.sample.image) for one in found])
    group = view.group
    return DenseTable(
        images=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        truth=torch.from_numpy(truth),
        keys=[one.sample.key for one in found],
        groups=[(one.sample.attributes.get(group) if group else None) or one.sample.key for one in found],
        texts=texts,
    )


def _expression(one: DenseSample, expressions: Mapping[str, str], classes: Sequence[str], seed: int) -> tuple[str, int]:
    """Return the text of a sample and the position of the class that it means."""
    shown = set(np.unique(one.truth).tolist())
    fits = [(text, classes.index(name)) for text, name in expressions.items() if classes.index(name) in shown]
    if not fits:
        raise ConfigError(f"no expression fits sample '{one.sample.key}': it shows none of their classes.")
    text, place = fits[derive_seed("expression", seed, one.sample.key) % len(fits)]
    values = {name: value.replace("_", " ") for name, value in one.sample.attributes.items()}
    try:
        return text.format_map(values), place
    except (KeyError, ValueError, IndexError):
        raise unknown(f"attribute of expression '{text}':", text, list(values)) from None


class DenseTableData(GenerativeData):
    """Training, validation and test tables; batches are row indices.

    Args:
        tables: train, val and test.
        data: batch size and names of the splits.
        seed: of the order.
    Raises: ConfigError if the training split is smaller than a batch; SplitLeak for a group in two splits.
    """

    def __init__(self, tables: Mapping[str, DenseTable], data: DataConfig, *, seed: int) -> None:
        super().__init__()
        self.train: DenseTable = tables["train"]
        self.val: DenseTable = tables["val"]
        self.test: DenseTable = tables["test"]
        self.data, self.seed = data, seed
        if len(self.train) < data.batch_size:
            raise ConfigError(f"data.batch_size={data.batch_size} is more than the {len(self.train)} training samples.")
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = set(tables[one].groups) & set(tables[other].groups)
            if shared:
                raise SplitLeak(f"group '{min(shared)}' has images in the {one} split and in the {other} split.")

    def train_dataloader(self) -> RowIndexLoader:
        """Return shuffled batches of row indices; an incomplete last batch is dropped."""
        return RowIndexLoader(len(self.train), self.data.batch_size, seed=self.seed, epoch=epoch_getter(self))

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return all validation rows in order."""
        return DataLoader(RowIndexDataset(len(self.val)), batch_size=self.data.batch_size)
