"""Prompts that differ in one factor: captions of the world, in pairs."""

from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.evaluation.scene_prompts import contrast_prompts, uncaptioned, write_prompts
from diffprobe.shards.prompt_table import read_prompts
from diffprobe.shards.scenes.captions import parse
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()
ENDS = {
    "texture": ("striped", "plain"), "colour": ("red", "blue"), "side": ("right", "left"), "size": ("large", "small"),
    "place": ("right", "left"),
}  # fmt: skip


@pytest.mark.parametrize("factor", ENDS)
def test_both_prompts_of_a_context_state_the_same_but_for_the_factor(factor: str) -> None:
    prompts = contrast_prompts(SPEC, factor, *ENDS[factor], n_per_role=2, seed=0)
    by_context: dict[str, dict[str, dict[str, str]]] = {}
    for prompt in prompts:
        stated = parse(SPEC, prompt.text)
        assert stated[factor] == prompt.attributes[factor]
        by_context.setdefault(prompt.attributes["context"], {})[stated.pop(factor)] = stated
    assert 40 <= len(by_context) <= 48 and len(prompts) == 2 * len(by_context)
    for context, pair in by_context.items():
        assert set(pair) == set(ENDS[factor]) and pair[ENDS[factor][0]] == pair[ENDS[factor][1]], context
    assert len({prompt.text for prompt in prompts}) == len({prompt.id for prompt in prompts}) == len(prompts)
    assert len({stated["role"] for pair in by_context.values() for stated in pair.values()}) == 24
    others = {name for pair in by_context.values() for stated in pair.values() for name in stated}
    assert len(others) >= 5  # contexts vary in what else they state


def test_held_out_combinations_are_no_contexts() -> None:
    held_out = {tuple(combination) for combination in SPEC.splits.combinations}
    for prompt in contrast_prompts(SPEC, "texture", "striped", "plain", n_per_role=3, seed=1):
        stated = parse(SPEC, prompt.text)
        if "colour" in stated:
            codes = tuple(SPEC.code(name, stated[name]) for name in ("role", "texture", "colour"))
            assert codes not in held_out


def test_a_seed_fixes_the_prompts_and_their_file_reads_back(tmp_path: Path) -> None:
    one, same, other = (contrast_prompts(SPEC, "side", "right", "left", n_per_role=1, seed=s) for s in (0, 0, 1))
    assert one == same != other
    write_prompts(one, tmp_path / "a" / "side.jsonl")
    assert list(read_prompts(tmp_path / "a" / "side.jsonl")) == one


def test_what_no_caption_states_is_refused() -> None:
    assert uncaptioned(SPEC) == ("build", "pose", "background")
    with pytest.raises(ConfigError, match="build(.|\n)*texture"):
        contrast_prompts(SPEC, "build", "slim", "round", n_per_role=1, seed=0)
    with pytest.raises(ConfigError, match="role"):
        contrast_prompts(SPEC, "role", "cook", "judge", n_per_role=1, seed=0)
    with pytest.raises(ConfigError, match="red"):
        contrast_prompts(SPEC, "colour", "red", "red", n_per_role=1, seed=0)
    with pytest.raises(UnknownName, match="pink"):
        contrast_prompts(SPEC, "colour", "red", "pink", n_per_role=1, seed=0)
