"""Requests for prompt latents: shards of prompts, ids of attributes, identity."""

from pathlib import Path

import pytest

from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.features.prompt_request import SHARD_SAMPLES, PromptRequest


@pytest.fixture
def request_of(tiny_sd: Path, tmp_path: Path):
    def make(content: str, seeds: int = 2, name: str = "p.csv", store: str = "a") -> PromptRequest:
        (tmp_path / name).write_text(content)
        return PromptRequest(
            PromptExtraction(
                backbone=BackboneConfig(path=str(tiny_sd), device="cpu"),
                prompts=str(tmp_path / name),
                features=PromptFeaturesConfig(taps=("mid_block",), timesteps=(999,), store=str(tmp_path / store)),
                sampling=SamplingConfig(seeds=seeds, steps=2),
            )
        )

    return make


def test_shards_hold_whole_prompts_split_by_split(request_of) -> None:
    rows = [f"prompt {i},{'test' if i % 5 == 0 else ''}" for i in range(200)]
    request = request_of("prompt,split\n" + "\n".join(rows), seeds=3)
    size = SHARD_SAMPLES // 3
    assert [len(part) for part in request.parts.values()] == [40, size, size, size, 160 - 3 * size]
    assert list(request.parts)[:2] == ["test-00000", "train-00000"]
    assert [shard.n for shard in request.manifest.shards] == [3 * len(part) for part in request.parts.values()]
    assert [p.text for part in request.parts.values() for p in part if p.split == "test"][:2] == [
        "prompt 0",
        "prompt 5",
    ]


def test_more_seeds_than_a_shard_still_hold_a_prompt(request_of) -> None:
    request = request_of("prompt\na\nb\n", seeds=2 * SHARD_SAMPLES)
    assert [len(part) for part in request.parts.values()] == [1, 1]


def test_attribute_ids_index_the_values(request_of) -> None:
    request = request_of("prompt,id,tone\na,y,dark\nb,x,\n")
    samples = list(request.samples("train-00000"))
    assert [(prompt.id, number) for prompt, number in samples] == [("y", 0), ("y", 1), ("x", 0), ("x", 1)]
    assert request.attribute_ids(samples) == {"tone": [0, 0, -1, -1], "prompt_id": [1, 1, 0, 0], "seed": [0, 1, 0, 1]}


def test_the_digest_is_that_of_content_not_of_names(request_of) -> None:
    one = request_of("prompt,tone\na,dark\n").manifest
    assert request_of("prompt,tone\na,dark\n", name="q.csv", store="b").manifest.digest == one.digest
    for other in ("prompt,tone\na,light\n", "prompt,tone\nb,dark\n", "prompt,shade\na,dark\n"):
        assert request_of(other).manifest.digest != one.digest
    assert request_of("prompt,tone\na,dark\n", seeds=3).manifest.digest != one.digest
