"""A request for features of prompts: prompts and cells as configured, and the manifest of the store that serves it."""

from collections.abc import Iterator
from functools import cached_property
from importlib import metadata
from pathlib import Path

from diffprobe.backbones.prompt_plan import PromptPlan, plan_prompts
from diffprobe.config.parse import to_tree
from diffprobe.config.prompt_schema import PromptExtraction
from diffprobe.core.digest import digest_json
from diffprobe.features.manifest import Manifest, ShardEntry
from diffprobe.features.request import commit_of, timestep_notes
from diffprobe.shards.prompt_table import PROMPT_ID, SEED, Prompt, attribute_values, read_prompts

SHARD_SAMPLES = 128
"""Samples of a shard, which is written as a whole and by one process; at least one prompt with all its seeds."""
_VERSIONS = ("diffusers", "torch", "transformers")


class PromptRequest:
    """A request for features of prompts; file and plan are read on first use.

    Args:
        config: the extraction.
        cached_only: whether a checkpoint of the hub is taken from its cache alone.
    """

    def __init__(self, config: PromptExtraction, *, cached_only: bool = False) -> None:
        self.config, self._cached_only = config, cached_only

    @cached_property
    def prompts(self) -> tuple[Prompt, ...]:
        """The prompts of the file, in its order. Raises: ConfigError, see `read_prompts`."""
        return read_prompts(self.config.prompts)

    @cached_property
    def plan(self) -> PromptPlan:
        """What is read while what is sampled; made without weights."""
        return plan_prompts(self.config, cached_only=self._cached_only)

    @cached_property
    def values(self) -> dict[str, list[str]]:
        """Attribute name -> its values."""
        return attribute_values(self.prompts, self.config.sampling.seeds)

    @cached_property
    def parts(self) -> dict[str, tuple[Prompt, ...]]:
        """Name of a shard -> its prompts: split by split, in the order of the file."""
        size = max(1, SHARD_SAMPLES // self.config.sampling.seeds)
        found = {}
        for split in dict.fromkeys(prompt.split for prompt in self.prompts):
            own = [prompt for prompt in self.prompts if prompt.split == split]
            for number, start in enumerate(range(0, len(own), size)):
                found[f"{split}-{number:05d}"] = tuple(own[start : start + size])
        return found

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest of a store that serves this request. Raises: WeightsMissing."""
        plan, backbone, seeds = self.plan, self.config.backbone, self.config.sampling.seeds
        shards = [
            ShardEntry(file=name, split=prompts[0].split, n=len(prompts) * seeds, sha256=digest_json(to_tree(prompts)))
            for name, prompts in self.parts.items()
        ]
        fingerprint = plan.fingerprint
        return Manifest(
            backbone=fingerprint,
            cells=plan.widths,
            data={
                "shard_set": digest_json([to_tree(self.prompts), self.values]),
                "fields": {},
                "on_error": "raise",
                "truncated": self.config.truncated,
            },
            shards=tuple(shards),
            recorded={
                "backbone": backbone.path,
                "revision": backbone.revision,
                "commit": commit_of(plan.read.checkpoint.folder),
                "denoiser_weights": backbone.denoiser_weights,
                "single_file_config": backbone.single_file_config,
                "lora": backbone.lora,
                "timesteps": timestep_notes(plan.spec.schedule, fingerprint["timesteps"]),
                "snr": [],
                "taps": {tap.path: {"channels": tap.channels, "size": list(tap.size)} for tap in plan.read.taps},
                "data": Path(self.config.prompts).name,
                "licence": "prompts: not stated",
                "classes": [],
                "attributes": self.values,
                "versions": {name: metadata.version(name) for name in _VERSIONS},
            },
        )

    def samples(self, shard: str) -> Iterator[tuple[Prompt, int]]:
        """Yield the samples of a shard: each prompt with the numbers of its seeds."""
        for prompt in self.parts[shard]:
            for number in range(self.config.sampling.seeds):
                yield prompt, number

    def attribute_ids(self, samples: list[tuple[Prompt, int]]) -> dict[str, list[int]]:
        """Return attribute name -> index of each sample's value, -1 where it has none."""
        index = {name: {value: i for i, value in enumerate(values)} for name, values in self.values.items()}
        rows = [{**prompt.attributes, PROMPT_ID: prompt.id, SEED: str(number)} for prompt, number in samples]
        return {name: [ids.get(row.get(name, ""), -1) for row in rows] for name, ids in index.items()}


def sample_key(prompt: Prompt, number: int) -> str:
    """Return the key of a sample.

    >>> sample_key(Prompt(id="nurse", text="a nurse"), 3)
    'nurse/3'
    """
    return f"{prompt.id}/{number}"
