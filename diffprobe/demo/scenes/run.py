"""`diffprobe demo scenes`: measures the rates of both twins and samples the prompts of the page.

The rates are those of `diffprobe eval rates`, of fewer images. Finished images are kept and used by the next call.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from diffprobe.config.compose import load
from diffprobe.core.digest import digest_json
from diffprobe.core.result import RunResult, read_result
from diffprobe.demo.scenes.config import ScenesDemo, Twin, check_scenes
from diffprobe.demo.types import Step
from diffprobe.shards.scenes.spec import STRIPED, WorldSpec

KIND = "scenes_demo"
"""Kind of the experiment files."""
_RULES = 1
"""Raised when samples change, so that files of an older version are not continued."""

Pixels = NDArray[np.uint8]


@runtime_checkable
class StepView(Protocol):
    """The display of the steps of a running demo."""

    def step(self, kind: str, title: str) -> AbstractContextManager[Step]:
        """Open a step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptSamples:
    """Samples of one model for one prompt.

    Attributes:
        images: uint8 (n, r, r, 3), in the order of their seeds.
        striped: which of them the reader reads as striped, bool (n,).
    """

    images: Pixels
    striped: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class TwinOutcome:
    """What was measured of one model."""

    twin: Twin
    """Model and world."""
    result: RunResult
    """Its rates, as `diffprobe eval rates` records them."""
    path: Path
    """File of the result."""
    samples: dict[str, PromptSamples]
    """Prompt -> samples."""

    @property
    def name(self) -> str:
        """Name of the model: the last part of its folder."""
        return Path(self.twin.model).name


@dataclass(frozen=True, kw_only=True)
class ScenesOutcome:
    """The results of the demo."""

    config: ScenesDemo
    """Its configuration."""
    spec: WorldSpec
    """The world."""
    twins: tuple[TwinOutcome, ...]
    """Both models, in order."""

    @property
    def folder(self) -> Path:
        """Folder of the demo."""
        return Path(self.config.output)


def load_scenes(experiment: str, settings: Sequence[str] = ()) -> ScenesDemo:
    """Compose and validate the configuration of a demo. Raises: ConfigError."""
    config: ScenesDemo = load(experiment, settings, kinds=(KIND,))
    return config


def run_scenes(config: ScenesDemo, view: StepView) -> ScenesOutcome:
    """Measure the rates of both models and sample the prompts.

    Raises: see `check_scenes`, before anything is sampled; the errors of `evaluate_rates` and `sampled_images`.
    """
    spec = check_scenes(config)
    twins = []
    for twin in config.twins:
        result, path = _rates(config, twin, view)
        samples = _samples(config, twin, spec, view)
        twins.append(TwinOutcome(twin=twin, result=result, path=path, samples=samples))
    return ScenesOutcome(config=config, spec=spec, twins=tuple(twins))


def _rates(config: ScenesDemo, twin: Twin, view: StepView) -> tuple[RunResult, Path]:
    from diffprobe.evaluation.rates import evaluate_rates

    with view.step("rates", Path(twin.model).name) as step:
        path = evaluate_rates(config.rates_of(twin))
        result = read_result(path)
        n = sum(record.n for record in result.metrics if record.name == "rate")
        step.done(f"{n:,} images")
    return result, path


def _samples(config: ScenesDemo, twin: Twin, spec: WorldSpec, view: StepView) -> dict[str, PromptSamples]:
    """Sample each prompt. Noise depends on seed, prompt and number, so both models start from the same."""
    from diffprobe.evaluation.backbone import load_pipeline, resolution_of
    from diffprobe.evaluation.rate_images import sampled_images
    from diffprobe.generative.scene_reader import load_reader
    from diffprobe.runs.provenance import checkpoint_digest

    n = config.images_per_prompt
    with view.step("samples", Path(twin.model).name) as step:
        pipeline, _ = load_pipeline(twin.model, seed=config.seed)
        facts = [_RULES, checkpoint_digest(twin.model), config.seed, n, config.guidance, config.sampling_steps]
        found = sampled_images(
            pipeline,
            Path(config.output) / config.experiment / "samples" / digest_json(facts)[:12],
            {prompt: [prompt] * n for prompt in config.prompts},
            seed=config.seed, guidance=config.guidance, sampling_steps=config.sampling_steps,
            resolution=resolution_of(pipeline), named="prompts",
        )  # fmt: skip
        reader = load_reader(config.reader, spec)
        step.done(f"{n * len(found):,} images")
    return {
        prompt: PromptSamples(images=images, striped=reader.read(images)["texture"].argmax(1) == STRIPED)
        for prompt, images in found.items()
    }
