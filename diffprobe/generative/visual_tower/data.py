"""Streamed images of a LLaVA run with the features of the frozen diffusion model.

The diffusion model is part of the DataModule, which is not an `nn.Module`: no optimiser or checkpoint contains it.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.core.errors import ConfigError, EmptyClass, SampleError
from diffprobe.features.live import LiveLoader
from diffprobe.generative.run_settings import GenerativeData
from diffprobe.generative.visual_tower.settings import VisualTowerSettings
from diffprobe.shards.batch import ImageBatch
from diffprobe.shards.holdout import open_view
from diffprobe.shards.stream import SampleStream, make_loader


@dataclass(frozen=True)
class TowerBatch:
    """Images with the feature maps of the diffusion model.

    Attributes:
        images: RGB in [0, 1], at the resolution of the diffusion model.
        maps: the feature maps at the tap.
        keys, captions: of each image.
    """

    images: Float[Tensor, "batch 3 side side"]
    maps: Float[Tensor, "batch channels height width"]
    keys: list[str]
    captions: list[str]

    def __len__(self) -> int:
        return len(self.keys)


class TowerData(GenerativeData):
    """Training and validation images. Captions are read once before training, images while training.

    Args:
        config: configuration of the run.

    Attributes:
        captions: split -> key -> caption.
        groups: key of each validation sample -> its group by the index of the shards, else its key.
    Raises: SampleError for samples without a caption; EmptyClass for an empty split; ConfigError for fewer training
        samples than a batch; the errors of the stream.
    """

    def __init__(self, config: VisualTowerSettings) -> None:
        super().__init__()
        self.config, self.data = config, config.data
        self._view = open_view(config.data)
        self.captions: dict[str, dict[str, str]] = {}
        self.groups: dict[str, str] = {}
        for split in (config.data.train_split, config.data.val_split):
            self.captions[split] = self._scan(split)
        n_train = len(self.captions[config.data.train_split])
        if n_train < config.data.batch_size:
            raise ConfigError(
                f"data.batch_size={config.data.batch_size} is more than the {n_train} samples of split "
                f"'{config.data.train_split}'."
            )
        self.val = self.captions[config.data.val_split]

    def _scan(self, split: str) -> dict[str, str]:
        """Read the captions of a split. Raises: SampleError, EmptyClass."""
        found: dict[str, str] = {}
        lacking = []
        group = self._view.group
        for key, annotation in self._stream(split).annotations():
            found[key] = annotation.caption
            if not annotation.caption:
                lacking.append(key)
            if split == self.data.val_split:
                self.groups[key] = annotation.attributes.get(group or "", key)
        if not found:
            raise EmptyClass(f"split '{split}' of '{self.data.path}' has no sample.")
        if lacking:
            raise SampleError(
                f"split '{split}' of '{self.data.path}': {len(lacking)} samples have no caption, the first is "
                f"'{lacking[0]}'."
            )
        return found

    def _stream(self, split: str, *, shuffle: bool = False) -> SampleStream:
        data = self.data
        return SampleStream(
            self._view, split, resolution=self.config.plan.resolution, fields=data.fields,
            shuffle_buffer=data.shuffle_buffer if shuffle else 0, seed=self.config.seed, on_error=data.on_error,
            limit=data.limit, equal=shuffle, caps=data.caps, verify=data.verify,
        )  # fmt: skip

    @cached_property
    def extractor(self) -> DiffusionFeatures:
        """The frozen diffusion model, cut after the tap."""
        return DiffusionFeatures.from_plan(self.config.plan)

    def train_dataloader(self) -> LiveLoader:
        """Return the training images in an order fixed by (seed, epoch)."""
        return self._loader(self.data.train_split, shuffle=True)

    def val_dataloader(self) -> LiveLoader:
        """Return the validation images in shard order."""
        return self._loader(self.data.val_split, shuffle=False)

    def _loader(self, split: str, *, shuffle: bool) -> LiveLoader:
        images = make_loader(self._stream(split, shuffle=shuffle), self.data.batch_size, self.data.num_workers)
        return LiveLoader(images, lambda: 0 if self.trainer is None else self.trainer.current_epoch)

    def on_after_batch_transfer(self, batch: ImageBatch, dataloader_idx: int) -> TowerBatch:
        """Read the feature maps of a batch, without gradients, on the device of the batch."""
        return self.read(batch)

    def read(self, batch: ImageBatch) -> TowerBatch:
        """Return a batch with its feature maps. The noise of an image depends on its key alone."""
        device = batch.images.device
        if self.extractor.device != device:
            self.extractor.to(device)
        with torch.autocast(device.type, enabled=False):  # backbone.dtype sets the precision
            (maps,) = self.extractor(batch.images, keys=batch.keys).values()
        return TowerBatch(batch.images, maps, batch.keys, batch.captions)
