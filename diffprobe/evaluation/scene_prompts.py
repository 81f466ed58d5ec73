"""Prompts that differ in one factor of the world of scenes: captions of one scene with either value."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.evaluation.rate_images import scenes_by_role
from diffprobe.shards.prompt_table import Prompt
from diffprobe.shards.scenes.captions import values_of, write
from diffprobe.shards.scenes.factors import counterfactual_scenes, fractions
from diffprobe.shards.scenes.spec import FACTORS, WorldSpec
from diffprobe.shards.scenes.splits import splits_of

CONTEXT = "context"
"""Attribute that both prompts of a pair share."""
SPLIT = "val"
"""Split of the scenes whose captions are contexts; the counterfactual pairs are of another one."""


def uncaptioned(spec: WorldSpec) -> tuple[str, ...]:
    """Return the factors that no caption states, so that no two prompts differ in them."""
    stated = {factor for rule in spec.rules for factor in rule.factors}
    return tuple(factor for factor in FACTORS if factor not in stated)


def contrast_prompts(
    spec: WorldSpec, factor: str, positive: str, negative: str, *, n_per_role: int, seed: int, world: str | None = None
) -> list[Prompt]:
    """Return pairs of prompts that differ in the value of a factor.

    A context is a scene: its caption states role and factor, and what else the rules of the world draw. Scenes that are
    held out with one of the values are left out, and so are those whose caption another one has.

    Args:
        factor: a factor that captions state, other than the role.
        positive, negative: its values.
        n_per_role: scenes per role.
        seed: of scenes and captions.

    Returns: prompts with the attributes `factor` and `context`.
    Raises: UnknownName for a factor or value that the world lacks; ConfigError for equal values and for a factor that
        no caption states; EmptyClass for fewer than 3 contexts.
    """
    codes = [spec.code(factor, value) for value in (positive, negative)]
    if positive == negative:
        raise ConfigError(f"both ends of '{factor}' are '{positive}': they must differ.")
    if factor in uncaptioned(spec):
        raise ConfigError(
            f"no caption states the factor '{factor}', so no prompt names it and no direction comes from prompts.",
            f"factors that captions state: {', '.join(name for name in FACTORS if name not in uncaptioned(spec))}",
            fix="leave it out of factors",
        )
    if factor == "role":
        raise ConfigError("the role is what the prompts of a pair have in common.", fix="leave it out of factors")
    prompts: list[Prompt] = []
    texts: set[str] = set()
    for role, scenes in scenes_by_role(spec, seed, n_per_role, world=world, split=SPLIT).items():
        ends = [counterfactual_scenes(scenes, factor, code) for code in codes]
        drawn = [
            np.full(len(scenes), bool({factor, "role"} & set(rule.factors)))
            | (fractions(spec, seed, f"context of {factor}: {rule.text}", scenes.indices) < rule.probability)
            for rule in spec.rules
        ]
        for row in np.flatnonzero(splits_of(spec, ends[0]) == splits_of(spec, ends[1])):
            chosen = [bool(rule[row]) for rule in drawn]
            pair = [write(spec, values_of(spec, end, int(row)), chosen) for end in ends]
            if texts & set(pair):
                continue
            texts |= set(pair)
            context = f"{role}-{row}"
            prompts += [
                Prompt(id=f"{context}-{value}", text=text, attributes={factor: value, CONTEXT: context})
                for value, text in zip((positive, negative), pair, strict=True)
            ]
    if len(prompts) < 6:
        raise EmptyClass(f"factor '{factor}': {len(prompts) // 2} contexts; at least 3 are needed.")
    return prompts


def write_prompts(prompts: Sequence[Prompt], path: Path) -> None:
    """Write prompts to a file that `read_prompts` reads (`.jsonl`)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": prompt.id, "prompt": prompt.text, **prompt.attributes} for prompt in prompts]
    with atomic_file(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
