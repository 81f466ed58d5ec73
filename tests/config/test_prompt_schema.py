"""Settings of an extraction from prompts that have no effect, or contradict each other, are refused when parsed."""

from typing import Any

import pytest

from diffprobe.config.compose import load
from diffprobe.config.parse import parse, to_tree
from diffprobe.config.prompt_schema import PromptExtraction
from diffprobe.core.errors import ConfigError

TREE: dict[str, Any] = {
    "backbone": {"path": "emoji-sd"},
    "prompts": "p.txt",
    "features": {"taps": ["mid_block"], "timesteps": [999]},
}


def parsed(**blocks: Any) -> PromptExtraction:
    tree = {name: {**value} if isinstance(value, dict) else value for name, value in TREE.items()}
    for name, value in blocks.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return parse(PromptExtraction, tree)


def test_defaults_and_the_way_back() -> None:
    config = parsed()
    assert config.sampling.seeds == 8 and config.sampling.guidance is None and config.truncated == "refuse"
    assert parse(PromptExtraction, to_tree(config)) == config
    assert parsed(sampling={"seeds": 1}, features={"timesteps": [], "reread": [20]}).features.reread == (20,)


@pytest.mark.parametrize(
    ("blocks", "facts"),
    [
        ({"features": {"timesteps": []}}, "timesteps is empty"),
        ({"features": {"taps": []}}, "taps is empty"),
        ({"features": {"reread": [20, 20]}}, "reread has duplicates"),
        ({"features": {"keep": ["pictures"]}}, "pictures"),
        ({"features": {"condition": "caption"}}, "condition"),
        ({"features": {"unconditional": True}, "sampling": {"guidance": 0.0}}, "unconditional"),
        ({"features": {"timesteps": [], "reread": [20], "unconditional": True}}, "unconditional"),
        ({"sampling": {"seeds": 0}}, "seeds=0"),
        ({"sampling": {"steps": 0}}, "steps=0"),
        ({"sampling": {"guidance": -1.0}}, "guidance=-1"),
        ({"sampling": {"guidance": 0.0, "negative_prompt": "a dog"}}, "negative_prompt"),
        ({"sampling": {"sampler": "plms"}}, "plms"),
        ({"backbone": {"compile": True}}, "compile"),
        ({"backbone": {"clean_input": True}}, "clean_input"),
        ({"backbone": {"part": "vae"}}, "part=vae"),
        ({"backbone": {"cpu_kernels": "onednn"}}, "backbone.cpu_kernels=onednn"),
        ({"truncated": "cut"}, "truncated"),
    ],
)
def test_a_setting_without_effect_is_refused(blocks: dict[str, Any], facts: str) -> None:
    with pytest.raises(ConfigError) as error:
        parsed(**blocks)
    assert facts in str(error.value)


def test_another_verb_is_told_which_one_runs_it() -> None:
    with pytest.raises(ConfigError, match="diffprobe extract experiment=emoji/prompts"):
        load("emoji/prompts", kinds=("probe",))
