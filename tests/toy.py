"""Toy features in memory: a DataModule with the surface of `diffprobe.features`, whose truth is known."""

from types import SimpleNamespace

import lightning
import torch

from diffprobe.features.batch import FeatureTable
from diffprobe.features.samplers import eval_order, train_order
from diffprobe.features.stored import StoredLoader, StoredRows

SIZES = {"train": 91, "val": 33, "test": 21}
CLASSES = ("cat", "dog", "cow", "owl")
STYLES = ("noto", "twemoji", "other")
WIDTHS = {"mid_block@t10:empty:mean": 12, "up_blocks.0@t10:empty:mean": 7}


def make_table(split: str, shift: float = 5.0) -> FeatureTable:
    """Class centres and a style axis in Gaussian noise, around a large common mean."""
    truth = torch.Generator().manual_seed(1)
    generator = torch.Generator().manual_seed(sum(map(ord, split)))
    n = SIZES[split]
    label = torch.randint(-1, len(CLASSES), (n,), generator=generator)
    style = torch.randint(0, len(STYLES), (n,), generator=generator)
    features = {}
    for cell, width in WIDTHS.items():
        centres = 1.5 * torch.randn(len(CLASSES) + 1, width, generator=truth)
        axis = 3 * torch.nn.functional.normalize(torch.randn(width, generator=truth), dim=0)
        x = torch.randn(n, width, generator=generator) + shift + centres[label] + (style == 0)[:, None] * axis
        features[cell] = x
    keys = [f"{split}/{i}" for i in range(n)]
    return FeatureTable(features, keys, label, {"style": style}, captions=[""] * n)


class Toy(lightning.LightningDataModule):
    """What a probe sees of StoredFeatures."""

    def __init__(self, batch_size: int = 16, seed: int = 0, cells: tuple[str, ...] = tuple(WIDTHS)) -> None:
        super().__init__()
        self.data = SimpleNamespace(train_split="train", val_split="val", test_split="test")
        self.batch_size, self.seed, self.cells = batch_size, seed, cells
        self.classes, self.attributes = CLASSES, {"style": STYLES}
        self.widths = {cell: WIDTHS[cell] for cell in cells}
        self.sizes: dict[str, tuple[int, int]] = {}

    def table(self, split: str) -> FeatureTable:
        whole = make_table(split)
        whole.features = {cell: whole.features[cell] for cell in self.cells}
        return whole

    def loader(self, split, *, shuffle, rank=0, world_size=1, epoch=0):
        rows = StoredRows([self.table(split)])

        def order(number):
            if shuffle:
                return train_order(rows.n, seed=self.seed, epoch=number, rank=rank, world_size=world_size)
            return eval_order(rows.n, rank=rank, world_size=world_size)

        return StoredLoader(rows, order, self.batch_size, epoch)

    def _split(self, split, shuffle=False):
        trainer = self.trainer
        share = trainer.distributed_sampler_kwargs or {"rank": 0, "num_replicas": 1}
        return self.loader(
            split,
            shuffle=shuffle,
            rank=share["rank"],
            world_size=share["num_replicas"],
            epoch=lambda: trainer.current_epoch,
        )

    def train_dataloader(self):
        return self._split("train", shuffle=True)

    def val_dataloader(self):
        return self._split("val")

    def test_dataloader(self):
        return self._split("test")


MAPS = {"mid_block@t10:empty:grid2": (3, 2, 2), "up_blocks.0@t10:empty:none": (2, 3, 4)}
"""Cells of `Maps` -> shape of their maps."""


class Maps(Toy):
    """Toy features with places: parts of a grid, as one vector, and whole maps."""

    def __init__(self, batch_size: int = 16, seed: int = 0, cells: tuple[str, ...] = tuple(MAPS)) -> None:
        super().__init__(batch_size, seed)
        self.cells = cells
        self.widths = {cell: 12 if "grid" in cell else MAPS[cell][0] for cell in cells}
        self.sizes = {cell: MAPS[cell][1:] for cell in cells if "none" in cell}

    def table(self, split: str) -> FeatureTable:
        whole = make_table(split)
        first, second = whole.features.values()
        extra = torch.randn(len(whole), 17, generator=torch.Generator().manual_seed(len(whole)))
        maps = torch.cat([second, extra], dim=1).unflatten(1, (2, 3, 4))
        whole.features = {cell: first if "grid" in cell else maps for cell in self.cells}
        return whole


STEPS = tuple(f"mid_block@t{timestep}:empty:mean" for timestep in (10, 200, 700))
"""Cells of `Steps`."""


class Steps(Toy):
    """Toy features of one tap at three timesteps, each with a mean and a scale of its own."""

    def __init__(self, batch_size: int = 16, seed: int = 0, cells: tuple[str, ...] = STEPS) -> None:
        super().__init__(batch_size, seed)
        self.cells, self.widths = cells, dict.fromkeys(cells, 12)

    def table(self, split: str) -> FeatureTable:
        whole = make_table(split)
        x = next(iter(whole.features.values()))
        parts = {cell: (1 + i) * (x + 10 * i).roll(i, dims=1) for i, cell in enumerate(STEPS)}
        whole.features = {cell: parts[cell] for cell in self.cells}
        return whole


class Families(Toy):
    """Toy features of families of four samples: their style varies, their kind does not; the last sample has none."""

    def __init__(self, *args, **settings) -> None:
        super().__init__(*args, **settings)
        names = tuple(f"family-{i}" for i in range(max(SIZES.values()) // 4 + 1))
        self.attributes = {**self.attributes, "family": names, "kind": ("tame", "wild")}
        self.request = SimpleNamespace(shard_set=SimpleNamespace(group="family"))

    def table(self, split):
        table = super().table(split)
        family = torch.arange(len(table)) // 4
        table.attributes["kind"] = family % 2
        family[-1] = -1
        table.attributes["family"] = family
        return table
