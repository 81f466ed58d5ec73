"""`diffprobe bench prompts`: passes per second of an extraction from prompts, beside the bare denoiser.

Both sides have equal batches and alternate shard by shard, so that a machine whose speed drifts treats them alike. Ours
includes encoding of the prompts, noise, sampler, hooks, pooling and writing of the store, and its last pass ends at the
deepest tap; loading of the model is left out.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from diffprobe.backbones.device import exact
from diffprobe.backbones.prompt_features import PromptFeatures
from diffprobe.benchmarks.machine import machine, seconds
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.config.validators import a_device, at_least
from diffprobe.core.memory import keep_freed_memory
from diffprobe.features.extract_prompts import prompt_batches
from diffprobe.features.manifest import ShardEntry
from diffprobe.features.prompt_request import PromptRequest
from diffprobe.features.writer import StoreWriter

SUBJECTS = ("cat", "dog", "heart", "moon", "tree", "cup", "flag", "fish")
"""Words that the prompts of a benchmark are made of."""


@dataclass(frozen=True, kw_only=True)
class PromptSetting:
    """Settings of one measurement."""

    backbone: str = "emoji-sd"
    """The text-to-image model."""
    prompts: int = 64
    """Prompts, each with a number of its own."""
    seeds: int = 8
    """Samples per prompt."""
    steps: int = 4
    """Sampling steps, all of which are read."""
    guidance: float = 0.0
    """Weight of guidance; above 0 each step is two passes."""
    sampler: str | None = None
    """Name of the sampler; None: ddim, or euler for a flow model."""
    taps: tuple[str, ...] = ("mid_block", "up_blocks.*")
    """What is read."""
    device: str = "auto"
    """Torch device."""


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """The measurement, and the machine it was made on."""

    setting: PromptSetting
    machine: str
    sampler: str
    """Name of the sampler."""
    batch: int
    """Samples per batch."""
    passes: int
    """Rows that went through the denoiser, on either side."""
    ours_s: float
    """Seconds of the extraction."""
    bare_s: float
    """Seconds of the denoiser alone."""

    @property
    def share(self) -> float:
        """Passes per second of ours over those of the bare denoiser."""
        return self.bare_s / self.ours_s

    def to_json(self) -> str:
        """Return all measurements as JSON."""
        return json.dumps({**asdict(self), "share": self.share}, indent=2)


class _NoBar:
    def update(self, n: int = 1) -> None:
        pass


def bench_prompts(setting: PromptSetting, *, progress: Callable[[str], None] = lambda line: None) -> PromptReport:
    """Sample prompts into a temporary store, and run the bare denoiser as often.

    Args:
        progress: called with a line of text before each step.
    Raises: ConfigError for counts out of range, and what an extraction from prompts raises.
    """
    at_least(1, prompts=setting.prompts, seeds=setting.seeds, steps=setting.steps)
    a_device(setting.device)
    keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="diffprobe-bench-") as scratch, torch.no_grad():
        request = PromptRequest(_config(setting, Path(scratch)))
        progress("loading the backbone")
        model = PromptFeatures(request.plan)
        writer = StoreWriter(Path(scratch), request.manifest)
        shards = request.manifest.shards
        bare = _Bare(model, request)
        _warm_up(model, bare, request, shards[0])
        ours_s = bare_s = 0.0
        for number, shard in enumerate(shards, 1):
            progress(f"shard {number} of {len(shards)}")
            ours_s += seconds(
                lambda shard=shard: writer.write(shard, prompt_batches(request, model, shard.file, _NoBar())),  # type: ignore[misc]
                model.device,
            )
            bare_s += seconds(lambda shard=shard: bare.run(shard.n), model.device)  # type: ignore[misc]
    n = sum(shard.n for shard in shards)
    return PromptReport(
        setting=setting, machine=machine(), sampler=request.plan.sampler, batch=min(model.rows, shards[0].n),
        passes=n * request.plan.passes, ours_s=ours_s, bare_s=bare_s,
    )  # fmt: skip


def _config(setting: PromptSetting, folder: Path) -> PromptExtraction:
    file = folder / "prompts.txt"
    words = [f"{SUBJECTS[i % len(SUBJECTS)]} {i}" for i in range(setting.prompts)]
    file.write_text("\n".join(words), encoding="utf-8")
    sampling = SamplingConfig(
        sampler=setting.sampler, steps=setting.steps, guidance=setting.guidance, seeds=setting.seeds  # type: ignore[arg-type]
    )  # fmt: skip
    backbone = BackboneConfig(path=setting.backbone, device=setting.device)
    whole = PromptExtraction(
        backbone=backbone, prompts=str(file), sampling=sampling, truncated="allow",
        features=PromptFeaturesConfig(taps=setting.taps, reread=(0,)),
    )  # fmt: skip
    grid = PromptRequest(whole).plan.grid
    features = PromptFeaturesConfig(taps=setting.taps, timesteps=grid, store=str(folder))
    return PromptExtraction(
        backbone=backbone, prompts=str(file), features=features, sampling=sampling, truncated="allow"
    )


class _Bare:
    """The denoiser alone, on one fixed input."""

    def __init__(self, model: PromptFeatures, request: PromptRequest) -> None:
        self._model, self._plan = model, request.plan
        self._backbone, self._branches = model._backbone, 2 if request.plan.is_guided else 1

    def run(self, n_samples: int) -> None:
        """Run as many rows as an extraction of some samples, in the same batches."""
        with exact(self._model.device, self._plan.read.dtype):
            for start in range(0, n_samples, self._model.rows):
                self._batch(min(self._model.rows, n_samples - start) * self._branches)

    def _batch(self, rows: int) -> None:
        model = self._model
        x_t = torch.zeros(rows, *self._plan.spec.latent_shape, device=model.device, dtype=model._dtype)
        x_t = x_t.contiguous(memory_format=model._format)
        t = torch.full((rows,), self._plan.grid[0], device=model.device)
        encoded = self._backbone.encode_conditions([""])
        condition = {name: values.to(model.device).expand(rows, *values.shape[1:]) for name, values in encoded.items()}
        for _ in range(self._plan.passes // self._branches):
            self._backbone.denoise(x_t, t, condition)


def _warm_up(model: PromptFeatures, bare: _Bare, request: PromptRequest, shard: ShardEntry) -> None:
    n = min(model.rows, shard.n)
    chunk = list(request.samples(shard.file))[:n]
    model([prompt.text for prompt, _ in chunk], [number for _, number in chunk])
    bare.run(n)
