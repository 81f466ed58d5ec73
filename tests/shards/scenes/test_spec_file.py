"""What the shipped file plants, and what is refused in a file, by its key."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.spec_file import parse_spec, read_spec

RATES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)


def test_the_shipped_world_has_24_roles_and_the_planted_rates(spec: WorldSpec) -> None:
    assert len({(role.hat, role.tool) for role in spec.roles}) == len(spec.hats) * len(spec.tools) == 24
    planted, permuted = (Counter(role.striped[world] for role in spec.roles) for world in (0, 1))
    assert set(planted) == set(RATES) and planted[0.5] >= 6
    assert planted == permuted
    assert sum(role.striped[0] != role.striped[1] for role in spec.roles) >= 18
    assert sum(role.background is not None for role in spec.roles) == 8


def change(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *path, last = key.split("/")
    node: Any = tree
    for part in path:
        node = node[int(part) if isinstance(node, list) else part]
    node[int(last) if isinstance(node, list) else last] = value
    return tree


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("roles/cook/striped", [1.2, 0.25], "striped.*1.2"),
        ("roles/cook/striped", [0.9], "list of 2"),
        ("roles/cook/striped", [0.8, 0.25], "0.8"),  # not a rate of the list
        ("roles/cook/striped", [0.9, 0.9], "permuted"),  # another multiset of rates
        ("roles/cook/hat", "bonnet", "bonnet"),
        ("roles/cook/tool", "flag", "cook.*|baker.*cook"),  # the hat and tool of the baker
        ("roles/cook/background", "sky", "sky"),
        ("texture/rates", [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 0.99], "0.99"),
        ("texture/rates", [round(0.01 * i, 2) for i in range(30)], "24 roles"),
        ("texture/least_even", 9, "8 roles at 0.5, not 9"),
        ("texture/amplitude", 0.4, "red"),  # leaves the range of a channel
        ("texture/shine", 1, "shine"),
        ("colour/values/red", [255, 0, 0], "red"),
        ("colour/interaction/away", ["shepherd", "cook"], "planted"),  # a rate of .9
        ("colour/interaction/shift", 0.6, "0.6"),
        ("background/preference", -0.1, "-0.1"),
        ("background/tint", [10, 200], "tint"),
        ("background/values/dots", {"pattern": "dots"}, "dots"),
        ("object/ball/probability", 0.5, "1.18"),
        ("pose/level/turn", [1, 1, 1], "turn"),
        ("captions/rules/1/text", "{fabric} clothes", "fabric"),
        ("captions/rules/1/text", "nice clothes", "names no factor"),
        ("captions/rules/1/text", "{background} behind", "background"),
        ("captions/rules/1/text", "{colour} clothes", "red clothes"),  # two rules write one text
        ("captions/rules/1/probability", 1.5, "1.5"),
        ("captions/rules/0/probability", 0.5, "role"),
        ("splits/val", 0.95, "0.95"),
        ("splits/held_out_values", {"background": ["dots"]}, "background"),
        ("splits/held_out_values", {"object": ["dots"]}, "dots"),
        ("splits/held_out_combinations/0", ["butcher", "plain", "red"], "butcher"),
        ("splits/held_out_combinations/0", ["butcher", "striped", "pink"], "pink"),
        ("build/slim", [{"polygon": [0, 0, 1]}], "3 numbers"),
        ("build/slim", [{"ellipse": [0, 0, -1, 2]}], "above 0"),
        ("hats/toque/shapes", [], "toque"),
        ("version", True, "version"),
        ("worlds", [], "worlds"),
    ],
)
def test_a_wrong_world_is_refused_by_key(tree: dict[str, Any], key: str, value: Any, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        parse_spec(change(tree, key, value))


def test_a_missing_key_and_another_file_are_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    del tree["splits"]
    with pytest.raises(ConfigError, match="splits"):
        parse_spec(tree)
    for text, fact in (("a: [", "line 1"), ("[1, 2]", "mapping"), ("", "mapping")):
        (tmp_path / "world.yaml").write_text(text)
        with pytest.raises(ConfigError, match=fact):
            read_spec(tmp_path / "world.yaml")


def test_a_change_of_the_file_changes_the_digest(tree: dict[str, Any], spec: WorldSpec) -> None:
    assert parse_spec(tree).digest == spec.digest
    assert parse_spec(change(tree, "colour/jitter", 3)).digest != spec.digest
