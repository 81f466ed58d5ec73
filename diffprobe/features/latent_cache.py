"""The latent cache: the VAE's output for whole shards on disk, so that images are encoded once for all runs.

The files form a store of kind LATENTS. Latents are float32, scaled, without noise. Features from cached latents are
bitwise equal to those from the images.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.plan import ReadPlan
from diffprobe.core.digest import digest_file_once
from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.manifest import LATENTS, TENSORS, Manifest, ShardEntry
from diffprobe.features.massive_channels import KEY as MASSIVE
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request, shard_entries
from diffprobe.features.tensor_file import read_rows
from diffprobe.features.writer import ExtractedBatch, StoreWriter, shard_folder
from diffprobe.shards.batch import ImageBatch

CELL = TENSORS[LATENTS]
_RULES = 1
"""Version of the encoding; increased when a change of the code changes the latents."""
_ENCODERS = ("vae", "movq")
"""Names of the image encoder in a family's weight digests."""


def latent_manifest(request: Request) -> Manifest:
    """Return the manifest of a request's latents, which do not depend on taps, timesteps and prompts.

    It lists the shards of all splits, so that runs on different splits share the cache; another `data.limit` has a
    cache of its own.

    Raises: ConfigError for a backbone without a VAE.
    """
    shard_set, plan, features = request.shard_set, request.plan, request.manifest
    shards = [s for split in shard_set.splits() for s in shard_entries(shard_set, split, request.data.limit)]
    recorded = ("backbone", "revision", "data", "licence", "classes", "attributes", "versions")
    return Manifest(
        kind=LATENTS,
        backbone=_encoder(plan, features.backbone["weights"]),
        cells={CELL: plan.spec.latent_shape[0]},
        data={name: value for name, value in features.data.items() if name != MASSIVE},
        shards=tuple(shards),
        recorded={name: features.recorded[name] for name in recorded},
    )


def _encoder(plan: ReadPlan, weights: dict[str, str]) -> dict[str, object]:
    found = {name: weights[name] for name in _ENCODERS if name in weights}
    if not found:
        raise ConfigError(
            f"backbone '{plan.checkpoint.name}' has no VAE, hence no latents: it reads the pixels.",
            fix="remove features.latent_cache",
        )
    return {
        "rules": _RULES,
        "family": plan.spec.family,
        "weights": found,
        "resolution": plan.resolution,
        "latent_shape": list(plan.spec.latent_shape),
        "dtype": plan.dtype,
    }


class LatentCache:
    """The latents of one request's images, below `features.latent_cache`.

    Args:
        request: a request with `features.latent_cache`.

    Raises: ConfigError for a backbone without a VAE.
    """

    def __init__(self, request: Request) -> None:
        self.manifest = latent_manifest(request)
        self._writer = StoreWriter(Path(str(request.features.latent_cache)), self.manifest)
        self.path = self._writer.path
        self._store = FeatureStore(self.path, self.manifest)

    def missing(self, shards: Sequence[ShardEntry]) -> list[ShardEntry]:
        """List the shards without cached latents."""
        return [shard for shard in shards if not self._writer.has(shard)]

    def fill(
        self, shard: ShardEntry, batches: Iterable[ImageBatch], skipped: dict[str, str], extractor: DiffusionFeatures
    ) -> None:
        """Encode the images of a shard and write the latents.

        Args:
            skipped: key -> message of the faulty samples that were skipped; read after the last batch.

        Raises: see `StoreWriter.write`.
        """
        encoded = (
            ExtractedBatch(
                FeatureBatch({CELL: extractor.encode(batch.images)}, batch.keys, batch.label, batch.attributes),
                batch.captions,
            )
            for batch in batches
        )
        self._writer.write(shard, encoded, left_out=skipped)
        self._writer.finish()

    def batches(self, shard: ShardEntry, batch_size: int) -> Iterator[ExtractedBatch]:
        """Yield the latents of a shard in shard order, with keys, labels, attributes and captions.

        Raises: SchemaError if a file was modified after it was written.
        """
        samples = self._store.samples(shard)
        path = self.path / shard_folder(shard.file) / samples["cells"][CELL]["file"]
        if digest_file_once(path) != samples["cells"][CELL]["sha256"]:
            raise SchemaError(
                f"'{path}' was modified after it was written (checksum).", fix=f"remove the folder '{path.parent}'"
            )
        start = 0
        for rows in read_rows(path, CELL, batch_size):
            part = slice(start, start + len(rows))
            attributes = {name: torch.tensor(ids[part]) for name, ids in samples["attributes"].items()}
            batch = FeatureBatch({CELL: rows}, samples["keys"][part], torch.tensor(samples["label"][part]), attributes)
            yield ExtractedBatch(batch, samples["captions"][part])
            start += len(rows)

    def left_out(self, shard: ShardEntry) -> dict[str, str]:
        """Return key -> message of the faulty samples that were skipped."""
        return {entry["key"]: entry["message"] for entry in self._store.samples(shard)["left_out"]}
