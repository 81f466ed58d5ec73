"""Base of the two LightningDataModules of features: constructor, loaders, ranks and epochs.

They yield `FeatureBatch`. The backbone is not registered as a module, so that no probe, DDP wrapper or checkpoint
contains it.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import lightning

from diffprobe.backbones.cell import Cell
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.features.batch import FeatureBatch, FeatureTable
from diffprobe.features.request import Request


class Loader(Protocol):
    """Yields one epoch of batches per iteration; its state resumes an interrupted epoch."""

    def __iter__(self) -> Iterator[Any]: ...

    def __len__(self) -> int: ...


class FeatureSource(lightning.LightningDataModule):
    """Feature batches of the three splits.

    Args:
        backbone, data, features: what to read; `data.batch_size` is per process.
        seed: seed of the training order, with the epoch.
        cells: names of the cells in the batches; all if None.

    Raises: the errors of opening shards, backbone or store, in `setup` at the latest; UnknownName for an unknown cell.
    """

    balance: str | None = None
    """Target whose values come equally often in training; None where each sample comes once."""

    def __init__(
        self,
        backbone: BackboneConfig,
        data: DataConfig,
        features: FeaturesConfig,
        *,
        seed: int = 0,
        cells: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.data, self.seed = data, seed
        self.request = Request(backbone, data, features)
        self._asked = None if cells is None else tuple(cells)

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names; `label` is an index into them."""

    @property
    @abstractmethod
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Attribute name -> its values; `attributes[name]` of a batch is an index into them."""

    @property
    @abstractmethod
    def widths(self) -> dict[str, int]:
        """Cell name -> `d_in`, for the cells in the batches."""

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Cell name -> height and width of its maps, for the cells whose maps are kept."""
        sizes = {tap.path: tap.size for tap in self.request.plan.taps}
        return {cell.name: sizes[cell.tap] for cell in self.cells if cell.pool == "none"}

    @abstractmethod
    def table(self, split: str) -> FeatureTable:
        """Return all features of one split, in shard order."""

    def iter_tables(self, split: str) -> Iterator[FeatureTable]:
        """Yield the features of one split in parts that follow each other, in shard order; a single one unless a class
        can read less at once."""
        yield self.table(split)

    @abstractmethod
    def loader(
        self, split: str, *, shuffle: bool, rank: int = 0, world_size: int = 1, epoch: int | Callable[[], int] = 0
    ) -> Loader:
        """Return the loader of one split for one rank.

        Args:
            shuffle: True for training: order by (seed, epoch), equal numbers of batches on all ranks, the views of
                `features.views` of the training split. False for evaluation: each sample exactly once over all ranks.
            epoch: the epoch, or a function that is called when an epoch begins and returns it.
        """

    @property
    def has_views(self) -> bool:
        """Whether training batches are random views of the images."""
        return self.request.features.views.active

    @property
    def views_per_epoch(self) -> int:
        """Rows of each training sample in an epoch: several where each epoch reads all views."""
        return self.request.features.views.per_epoch

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells in the batches."""
        return tuple(Cell.parse(name) for name in self.widths)

    def train_dataloader(self) -> Loader:
        """Return this rank's loader of the training split."""
        return self.loader(self.data.train_split, shuffle=True, **self._rank(), epoch=self._epoch)

    def val_dataloader(self) -> Loader:
        """Return this rank's loader of the validation split."""
        return self.loader(self.data.val_split, shuffle=False, **self._rank())

    def test_dataloader(self) -> Loader:
        """Return this rank's loader of the test split."""
        return self.loader(self.data.test_split, shuffle=False, **self._rank())

    def _rank(self) -> dict[str, int]:
        # not global_rank: processes that share the latents of an autoencoder get the same samples
        found = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        if found is None:
            return {"rank": 0, "world_size": 1}
        return {"rank": found["rank"], "world_size": found["num_replicas"]}

    def _epoch(self) -> int:
        return 0 if self.trainer is None else self.trainer.current_epoch


class EpochLoader:
    """Base of the loaders: determines the epoch when it begins, and resumes an interrupted one from its state.

    Lightning saves and restores the state with the training loop, so a run that was interrupted within an epoch
    continues with the remaining batches.
    """

    def __init__(self, epoch: int | Callable[[], int]) -> None:
        self._epoch_of = epoch if callable(epoch) else lambda: epoch
        self._epoch, self._done = 0, 0
        self._continue: tuple[int, int] | None = None

    def _batches(self, epoch: int, skip: int) -> Iterator[Any]:
        """Yield the batches of an epoch without the first `skip`."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[FeatureBatch]:
        self._epoch, self._done = self._epoch_of(), 0
        if self._continue is not None and self._continue[0] == self._epoch:
            self._done = self._continue[1]
        self._continue = None
        for batch in self._batches(self._epoch, self._done):
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches so far."""
        return {"epoch": self._epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state` when its epoch is iterated."""
        self._continue = (state["epoch"], state["batches"])
