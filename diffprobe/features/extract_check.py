"""What `diffprobe extract` would write and run: from configurations, indexes and the digests of weight files alone.

All that an extraction validates before it loads weights is validated in the same way. No store is written, and nothing
is downloaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffprobe.backbones.cpu_kernels import check_kernels
from diffprobe.config.prompt_schema import PromptExtraction
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.core.byte_size import size
from diffprobe.core.errors import StoreIncomplete, StoreMismatch
from diffprobe.features.disk_space import Need, check_space, features_need, latents_need
from diffprobe.features.extract import require_process
from diffprobe.features.extract_prompts import sampling_line
from diffprobe.features.kernel_record import settle_kernels
from diffprobe.features.latent_cache import latent_manifest
from diffprobe.features.manifest import FEATURES, Manifest, ShardEntry
from diffprobe.features.massive_channels import require_images
from diffprobe.features.prompt_request import PromptRequest
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request
from diffprobe.features.writer import MANIFEST, shard_folder
from diffprobe.shards.stream import require_empty_shards


def check_images(
    backbone: BackboneConfig,
    data: DataConfig,
    features: FeaturesConfig,
    *,
    splits: Sequence[str] | None = None,
    process: tuple[int, int] = (0, 1),
) -> list[str]:
    """Validate an extraction from images, and return lines on its stores and its cost.

    Args:
        splits, process: as of `extract`.

    Raises: what `extract` raises before it loads weights: UnknownTap, BadTimestep, WeightsMissing, ConfigError for
        samples without what the condition needs, RunFailed for too small a disk, the errors of the data's index.
    """
    require_process(process)
    whole, root = Request(backbone, data, features, splits, cached_only=True), Path(features.store)
    plan, requests = whole.plan, [whole, *whole.of_views()]
    stores = [_Store.of(root, request.manifest) for request in requests]
    lines, due = [store.line for store in stores], [store for store in stores if store.missing]
    if not due:
        return lines
    whole.check_values()
    for split in whole.splits:
        require_empty_shards(whole.shard_set, split, data.caps)
    is_begun = any((store.path / MANIFEST).exists() for store in stores)
    if is_begun:
        settle_kernels(whole, [store.path for store in due])
    else:
        check_kernels(plan)
    needs = [features_need(store.path, plan, store.missing) for store in due]
    n = sum(need.n_samples for need in needs)
    if features.latent_cache is not None:
        for request, store in zip(requests, stores, strict=True):
            if store.missing:
                cache = _Store.of(Path(features.latent_cache), latent_manifest(request))
                encode = [shard for shard in store.missing if shard in cache.missing]
                needs.append(latents_need(cache.path, plan, encode))
                lines.append(f"latents: {len(encode)} of {len(store.missing)} shards to encode: {cache.path}")
    lines.append(_to_write(n, "images", len(whole.manifest.cells), needs))
    lines += _part_lines(due, process)
    if plan.backbone.part == "denoiser" and plan.spec.family != "pixels":
        each = len(plan.timesteps) * plan.draws * len(plan.branches)
        lines.append(f"denoiser passes: {n * each:,} ({each:,} per image)")
    if features.massive.finds and not is_begun:
        massive, split = features.massive, data.train_split
        require_images(massive, split, sum(one.n_samples for one in whole.view.shards_of(split)), data.limit)
        lines.append(f"before them the passes of {massive.images:,} images of '{split}', to find massive channels")
    return lines


def check_prompts(config: PromptExtraction, *, process: tuple[int, int] = (0, 1)) -> list[str]:
    """Validate an extraction from prompts, and return lines on its store and its cost.

    The lengths of prompts are compared with the tokenizer's limit by the extraction itself.

    Raises: what `extract_prompts` raises before it loads weights.
    """
    require_process(process)
    request = PromptRequest(config, cached_only=True)
    plan, manifest = request.plan, request.manifest
    store = _Store.of(Path(config.features.store), manifest)
    if not store.missing:
        return [store.line]
    n = sum(shard.n for shard in store.missing)
    need = Need(store.path, n, plan.sample_bytes, len(store.missing) * (len(manifest.cells) + 1))
    return [
        store.line,
        f"{len(request.prompts):,} prompts x {config.sampling.seeds} seeds, {sampling_line(request)}",
        _to_write(n, "samples", len(manifest.cells), [need]),
        *_part_lines([store], process),
        f"denoiser passes: {n * plan.passes:,}",
    ]


@dataclass(frozen=True, kw_only=True)
class _Store:
    """The store of a request, as far as it is there."""

    path: Path
    """Its folder, which need not exist."""
    shards: tuple[ShardEntry, ...]
    missing: list[ShardEntry]
    """Those of its shards that have to be written."""

    @classmethod
    def of(cls, root: Path, manifest: Manifest) -> "_Store":
        """Look for the store of a manifest, or for a complete one that serves it too."""
        path = root / manifest.folder
        missing = [shard for shard in manifest.shards if not (path / shard_folder(shard.file)).is_dir()]
        if missing and manifest.kind == FEATURES:
            try:
                path, missing = FeatureStore.find(root, manifest).path, []
            except (StoreIncomplete, StoreMismatch):
                pass
        return cls(path=path, shards=manifest.shards, missing=missing)

    @property
    def line(self) -> str:
        """What is there."""
        n, left = len(self.shards), len(self.missing)
        state = "complete" if not left else "new" if left == n else f"{n - left} of {n} shards are there"
        return f"store: {self.path}, {state}"


def _to_write(n: int, what: str, n_cells: int, needs: Sequence[Need]) -> str:
    total = size(sum(need.n_bytes for need in needs))
    return f"to write: {n:,} {what} x {n_cells} cells, about {total} ({size(check_space(needs))} free)"


def _part_lines(stores: Sequence[_Store], process: tuple[int, int]) -> list[str]:
    index, count = process
    if count == 1:
        return []
    own = [shard for store in stores for shard in store.shards[index::count] if shard in store.missing]
    return [f"of them by process {index}/{count}: {sum(shard.n for shard in own):,} in {len(own)} shards"]
