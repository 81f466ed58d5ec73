"""Stores of prompt latents: independent of restarts, processes, rows per pass and the order of the prompts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffprobe.backbones.prompt_features import PromptFeatures
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import BadTimestep, ConfigError
from diffprobe.features import prompt_request
from diffprobe.features.extract_prompts import extract_prompts
from diffprobe.features.prompt_latents import is_prompt_store, load_prompt_latents
from diffprobe.features.prompt_request import PromptRequest
from diffprobe.features.reader import FeatureStore
from diffprobe.features.verify import verify_folder

PROMPTS = """prompt,id,split,animal,colour
a red cat,p1,train,cat,red
a blue cat,p2,train,cat,blue
a red dog,p3,train,dog,red
a dog,p4,train,dog,
a red moon,p5,test,,red
"""
CELL = "mid_block@t499:caption:mean"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_request, "SHARD_SAMPLES", 4)  # two prompts


@pytest.fixture
def config_of(tiny_sd: Path, tmp_path: Path) -> Callable[..., PromptExtraction]:
    def make(
        root: str = "stores", prompts: str = PROMPTS, rows: int | None = None, **sampling: Any
    ) -> PromptExtraction:
        file = tmp_path / f"{root}-input" / "prompts.csv"  # its name is recorded
        file.parent.mkdir(exist_ok=True)
        file.write_text(prompts)
        return PromptExtraction(
            backbone=BackboneConfig(path=str(tiny_sd), device="cpu", max_rows_per_pass=rows),
            prompts=str(file),
            features=PromptFeaturesConfig(
                taps=("mid_block",), timesteps=(499,), reread=(20,), store=str(tmp_path / root)
            ),
            sampling=SamplingConfig(**{"steps": 2, "seeds": 2, "guidance": 1.0, **sampling}),
        )

    return make


def run(config: PromptExtraction, **further: Any) -> Path:
    return extract_prompts(config, progress=False, **further)


@pytest.mark.slow
def test_a_store_holds_prompts_by_seeds_with_attributes(config_of: Callable[..., PromptExtraction]) -> None:
    config = config_of()
    lines: list[str] = []
    path = run(config, announce=lines.append)
    store = FeatureStore.open(path)
    assert is_prompt_store(store) and not verify_folder(path)
    assert store.cells == ("mid_block@t20:empty:mean", CELL) and store.splits == ("train", "test")
    assert [shard.file for shard in store.shards()] == ["train-00000", "train-00001", "test-00000"]
    assert lines[0] == "5 prompts x 2 seeds, ddim with 2 steps, guidance 1: 5 passes per sample"
    found = load_prompt_latents(store, "mid_block@t499")
    assert found.features.shape == (5, 2, 32) and found.prompts[0] == "a red cat"
    assert found.attributes["animal"] == ["cat", "cat", "dog", "dog", None]
    model = PromptFeatures.from_config(config)
    expected = model(["a red dog", "a red dog"], [0, 1])
    torch.testing.assert_close(found.features[2], expected[CELL], atol=1e-5, rtol=1e-5)
    x, y = store.arrays(CELL, target="colour")
    assert len(x) == 6 and [store.classes("colour")[i] for i in y.tolist()] == ["red"] * 2 + ["blue"] * 2 + ["red"] * 2
    assert store.load("test").keys == ["p5/0", "p5/1"] and store.load("test").captions == ["a red moon"] * 2


def test_a_complete_store_is_served_without_loading(
    config_of: Callable[..., PromptExtraction], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of()
    path = run(config)
    monkeypatch.setattr("diffprobe.features.extract_prompts.PromptFeatures", None)
    assert run(config) == path
    fewer = replace(config, features=replace(config.features, taps=("h-space",)))  # an alias of the same tap
    assert run(fewer) == path


@pytest.mark.slow
def test_an_interrupted_extraction_continues_to_equal_bytes(
    config_of: Callable[..., PromptExtraction], file_bytes: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    whole = run(config_of("whole"))
    config, calls = config_of("cut"), []
    original = PromptFeatures.__call__

    def interrupted(self: PromptFeatures, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PromptFeatures, "__call__", interrupted)
        run(config)
    partial = FeatureStore.open(Path(config.features.store) / whole.name)
    assert partial.missing() == ["train-00001", "test-00000"]
    assert file_bytes(run(config)) == file_bytes(whole)


@pytest.mark.slow
def test_processes_write_the_bytes_of_one(
    config_of: Callable[..., PromptExtraction], file_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    whole, config = run(config_of("whole")), config_of("parts")
    for index in (1, 0):
        path = run(config, process=(index, 2))
    assert file_bytes(path) == file_bytes(whole)
    with pytest.raises(ConfigError, match="2/2"):
        run(config, process=(2, 2))


@pytest.mark.slow
def test_rows_per_pass_and_order_of_prompts_change_rounding_only(config_of: Callable[..., PromptExtraction]) -> None:
    one = load_prompt_latents(run(config_of("one")), CELL)
    heading, *lines = PROMPTS.splitlines()
    other_file = "\n".join([heading, *reversed(lines)])
    other = load_prompt_latents(run(config_of("other", other_file, rows=3)), CELL)
    order = [other.attributes["prompt_id"].index(identity) for identity in one.attributes["prompt_id"]]
    torch.testing.assert_close(other.features[order], one.features, atol=1e-5, rtol=1e-4)
    assert [other.prompts[i] for i in order] == one.prompts


@pytest.mark.slow
def test_one_seed_is_allowed_and_seeds_are_a_prefix(config_of: Callable[..., PromptExtraction]) -> None:
    one = load_prompt_latents(run(config_of("one", seeds=1)), CELL).features
    two = load_prompt_latents(run(config_of("two")), CELL).features
    assert one.shape == (5, 1, 32)
    torch.testing.assert_close(one[:, 0], two[:, 0], atol=1e-5, rtol=1e-4)


def test_bad_input_is_refused_before_weights_are_read(
    config_of: Callable[..., PromptExtraction], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diffprobe.features.extract_prompts.PromptFeatures", None)
    with pytest.raises(ConfigError, match="duplicate prompt"):
        run(config_of("a", "prompt\na cat\na cat\n"))
    with pytest.raises(ConfigError, match="not found"):
        run(replace(config_of("b"), prompts="gone.csv"))
    with pytest.raises(BadTimestep, match="t=499"):
        run(config_of("c", steps=3))


@pytest.mark.slow
def test_a_cut_prompt_is_named_unless_allowed(config_of: Callable[..., PromptExtraction]) -> None:
    long = "prompt,id\na cat,short\n" + "a red cat and " * 30 + ",long\n"
    config = config_of("cut", long)
    with pytest.raises(ConfigError, match="long: "):
        run(config)
    assert not list(Path(config.features.store).glob("*/train-*"))
    lines: list[str] = []
    run(replace(config, truncated="allow"), announce=lines.append)
    assert any("1 prompts are cut" in line and "long" in line for line in lines)
    assert PromptRequest(config).manifest.digest != PromptRequest(replace(config, truncated="allow")).manifest.digest
