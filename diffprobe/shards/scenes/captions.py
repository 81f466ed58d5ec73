"""Captions by the rules of the world, and the reading of a caption back to the factors that it states."""

import re
from collections.abc import Mapping
from functools import lru_cache

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.factors import Scenes, fractions
from diffprobe.shards.scenes.spec import WorldSpec

_BETWEEN = ", "


def captions_of(spec: WorldSpec, scenes: Scenes) -> list[tuple[str, ...]]:
    """Return the captions of each scene, `spec.captions_per_image` of them, drawn independently.

    Which rules a caption has does not depend on the values of the factors, so the captions of a counterfactual pair
    differ where they state the changed factor, and nowhere else.
    """
    drawn = [
        [
            fractions(spec, scenes.seed, f"caption {number}: {rule.text}", scenes.indices) < rule.probability
            for rule in spec.rules
        ]
        for number in range(spec.captions_per_image)
    ]
    values = [values_of(spec, scenes, row) for row in range(len(scenes))]
    return [
        tuple(
            write(spec, stated, [bool(chosen[row]) for chosen in rules]) for rules in drawn
        )
        for row, stated in enumerate(values)
    ]  # fmt: skip


def values_of(spec: WorldSpec, scenes: Scenes, row: int) -> dict[str, str]:
    """Return the name of each factor's value in one scene."""
    return {name: spec.values[name][int(codes[row])] for name, codes in scenes.factors.items()}


def write(spec: WorldSpec, values: Mapping[str, str], chosen: list[bool] | None = None) -> str:
    """Return the caption of the chosen rules, of all rules if None.

    Args:
        values: factor -> name of its value, for the factors of these rules.
    """
    rules = spec.rules if chosen is None else [rule for rule, is_in in zip(spec.rules, chosen, strict=True) if is_in]
    return _BETWEEN.join(rule.text.format(**{name: values[name] for name in rule.factors}) for rule in rules)


def parse(spec: WorldSpec, caption: str) -> dict[str, str]:
    """Return the factors that a caption states, with their values.

    Raises: ConfigError for a text that no rule writes.
    """
    found: dict[str, str] = {}
    for part in caption.split(_BETWEEN):
        stated = _read(spec, part)
        if stated is None:
            raise ConfigError(
                f"'{part}' in the caption '{caption}' is not written by a rule of the world.",
                f"rules: {'; '.join(rule.text for rule in spec.rules)}",
            )
        found.update(stated)
    return found


def _read(spec: WorldSpec, part: str) -> dict[str, str] | None:
    for pattern in _patterns(spec):
        if (match := pattern.fullmatch(part)) is not None:
            return match.groupdict()
    return None


@lru_cache(maxsize=8)
def _patterns(spec: WorldSpec) -> tuple[re.Pattern[str], ...]:
    """Return the expression that reads each rule back."""
    found = []
    for rule in spec.rules:
        expression = ""
        for piece in re.split(r"(\{[^{}]*\})", rule.text):
            name = piece[1:-1]
            choices = "|".join(re.escape(value) for value in spec.values[name]) if piece.startswith("{") else ""
            expression += f"(?P<{name}>{choices})" if choices else re.escape(piece)
        found.append(re.compile(expression))
    return tuple(found)
