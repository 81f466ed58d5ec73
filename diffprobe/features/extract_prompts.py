"""Fill a feature store from prompts: each is sampled from noise once per seed, and all cells are read meanwhile.

Restarts and several processes work as for images (`extract.py`): a shard of prompts is written as a whole.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from diffprobe.backbones.prompt_features import PromptFeatures
from diffprobe.config.prompt_schema import PromptExtraction
from diffprobe.core.byte_size import folder_bytes, size
from diffprobe.core.errors import StoreIncomplete, StoreMismatch
from diffprobe.core.progress import Announce, Bar, MakeBar, ProgressDisplay
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.disk_space import Need, check_space
from diffprobe.features.extract import require_process
from diffprobe.features.manifest import ShardEntry
from diffprobe.features.prompt_request import PromptRequest, sample_key
from diffprobe.features.reader import FeatureStore
from diffprobe.features.writer import ExtractedBatch, StoreWriter, remove_leftovers, shard_folder


def extract_prompts(
    config: PromptExtraction,
    *,
    process: tuple[int, int] = (0, 1),
    progress: bool | MakeBar = True,
    announce: Announce = lambda line: None,
) -> Path:
    """Write the feature store of an extraction from prompts, or its missing part, and return its folder.

    A complete store that covers the request (it may have more cells, or more shards of prompts) is returned at once.
    Features depend on the order of the prompts, on the number of processes and of rows per pass by rounding at most.

    Args:
        process: (i, n): write the shards i, i + n, i + 2n, ...
        progress: True draws a bar on stderr; a function replaces the bar and is called only if there is something to
            sample.
        announce: receives lines of text: sizes, timesteps, prompts that are cut, and a summary at the end.
    Raises: ConfigError for a bad `process`, a bad file of prompts, prompts that are cut, and a backbone that takes
        none; RunFailed if the disk is too small; and what the backbone raises.
    """
    require_process(process)
    request = PromptRequest(config)
    prompts, plan = request.prompts, request.plan
    try:
        served = FeatureStore.find(config.features.store, request.manifest).path
    except (StoreIncomplete, StoreMismatch):
        pass
    else:
        remove_leftovers(served)
        announce(f"the store is complete: {served}")
        return served
    announce(f"{len(prompts):,} prompts x {config.sampling.seeds} seeds, {sampling_line(request)}")
    writer = StoreWriter(Path(config.features.store), request.manifest)
    pending = writer.pending(process)
    if pending:
        missing = writer.pending()
        n_files = len(missing) * (len(request.manifest.cells) + 1)
        need = Need(writer.path, sum(shard.n for shard in missing), plan.sample_bytes, n_files)
        free = check_space([need])
        announce(
            f"to write: {need.n_samples:,} samples x {len(request.manifest.cells)} cells, about {size(need.n_bytes)} "
            f"({size(free)} free): {writer.path}"
        )
        _fill(request, writer, pending, progress, announce)
    writer.finish()
    return writer.path


def sampling_line(request: PromptRequest) -> str:
    """Describe how prompts are sampled, with the denoiser passes of a sample."""
    sampling, plan = request.config.sampling, request.plan
    guidance = "distilled guidance" if plan.is_distilled else "guidance"
    return f"{plan.sampler} with {sampling.steps} steps, {guidance} {plan.guidance:g}: {plan.passes} passes per sample"


def _fill(
    request: PromptRequest,
    writer: StoreWriter,
    pending: list[ShardEntry],
    progress: bool | MakeBar,
    announce: Announce,
) -> None:
    announce("loading the backbone")
    model = PromptFeatures(request.plan)
    texts, ids = [prompt.text for prompt in request.prompts], [prompt.id for prompt in request.prompts]
    cut = model.check_lengths(texts, ids, allow_truncated=request.config.truncated == "allow")
    if cut:
        announce(f"{len(cut)} prompts are cut by the tokenizer: {', '.join(cut[:5])}{' ...' if len(cut) > 5 else ''}")
    n, started = sum(shard.n for shard in pending), time.monotonic()
    with ProgressDisplay(shown=progress is True) as display, _bar(n, progress, display) as bar:
        for shard in pending:
            writer.write(shard, prompt_batches(request, model, shard.file, bar))
    seconds, passes = max(time.monotonic() - started, 1e-9), n * request.plan.passes
    written = sum(folder_bytes(writer.path / shard_folder(shard.file)) for shard in pending)
    announce(
        f"{n:,} samples in {seconds:,.1f} s ({passes / seconds:,.1f} passes/s), {size(written)} written: {writer.path}"
    )


def _bar(n: int, progress: bool | MakeBar, display: ProgressDisplay) -> AbstractContextManager[Bar]:
    return progress(n) if callable(progress) else display.bar(n, "sample", unit="samples")


def prompt_batches(request: PromptRequest, model: PromptFeatures, shard: str, bar: Bar) -> Iterator[ExtractedBatch]:
    """Sample the prompts of a shard and yield their features, in batches of bounded size."""
    samples = list(request.samples(shard))
    for start in range(0, len(samples), model.rows):
        chunk = samples[start : start + model.rows]
        texts = [prompt.text for prompt, _ in chunk]
        features = model(texts, [number for _, number in chunk])
        yield ExtractedBatch(
            FeatureBatch(
                features=features,
                keys=[sample_key(prompt, number) for prompt, number in chunk],
                label=torch.full((len(chunk),), -1),
                attributes={name: torch.tensor(ids) for name, ids in request.attribute_ids(chunk).items()},
            ),
            texts,
        )
        bar.update(len(chunk))
