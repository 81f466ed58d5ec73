import dataclasses
import json
import pickle
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.config.parse import Located, describe, parse, to_tree
from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: int = 3
    rate: float = 0.1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"size={self.size} is out of range: at least 1.", "sizes count something")


@dataclass(frozen=True, kw_only=True)
class Root:
    name: str
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    mode: Literal["raise", "skip", 2] = "raise"
    taps: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    sizes: list[int] = field(default_factory=list)
    flag: bool = False
    either: int | str = 0
    params: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


def fault(tree: Any, origin: dict[str, tuple[str, int]] | None = None, cls: type = Root) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(cls, tree, origin)
    return str(caught.value)


def test_a_full_tree_becomes_the_dataclass() -> None:
    tree = {
        "name": "a",
        "inner": {"size": 2, "rate": 1},
        "maybe": {"size": 5},
        "mode": 2,
        "taps": ["x", "y"],
        "pair": [3, 4],
        "sizes": [1, 2],
        "flag": True,
        "either": "text",
        "params": {"k": 3, "deep": {"x": [1]}},
        "weights": {"a": 1},
    }
    config = parse(Root, tree)
    assert config == Root(
        name="a",
        inner=Inner(size=2, rate=1.0),
        maybe=Inner(size=5),
        mode=2,
        taps=("x", "y"),
        pair=(3, 4.0),
        sizes=[1, 2],
        flag=True,
        either="text",
        params={"k": 3, "deep": {"x": [1]}},
        weights={"a": 1.0},
    )
    assert type(config.inner.rate) is type(config.pair[1]) is type(config.weights["a"]) is float


def test_defaults_fill_what_the_tree_leaves_out() -> None:
    assert parse(Root, {"name": "a"}) == Root(name="a")


trees = st.fixed_dictionaries(
    {"name": st.text()},
    optional={
        "inner": st.fixed_dictionaries(
            {}, optional={"size": st.integers(1), "rate": st.floats(allow_nan=False, allow_infinity=False)}
        ),
        "mode": st.sampled_from(["raise", "skip", 2]),
        "taps": st.lists(st.text()),
        "either": st.integers() | st.text(),
        "params": st.dictionaries(st.text(), st.integers() | st.lists(st.booleans())),
        "weights": st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False)),
    },
)


@given(trees)
def test_writing_and_reading_a_config_is_the_identity(tree: dict) -> None:
    config = parse(Root, tree)
    assert parse(Root, json.loads(json.dumps(to_tree(config)))) == config


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("flag", 1, "'flag' is 1 (int), expected bool"),
        ("flag", "true", "'flag' is 'true' (str), expected bool"),
        ("name", 3, "'name' is 3 (int), expected str"),
        ("name", None, "'name' is none, expected str"),
        ("mode", "rais", "expected one of raise, skip, 2"),
        ("mode", True, "expected one of raise, skip, 2"),
        ("taps", "mid_block", "expected list of str"),
        ("taps", ["a", 3], "'taps[1]' is 3 (int), expected str"),
        ("pair", [1], "it has 1 entries, expected 2"),
        ("sizes", [1.0], "'sizes[0]' is 1.0 (float), expected int"),
        ("sizes", [True], "'sizes[0]' is True (bool), expected int"),
        ("either", 1.5, "'either' is 1.5 (float), expected int or str"),
        ("inner", "small", "expected keys of Inner"),
        ("inner", {"size": True}, "'inner.size' is True (bool), expected int"),
        ("inner", {"size": 2.0}, "'inner.size' is 2.0 (float), expected int"),
        ("inner", {"rate": "1e-3"}, "'inner.rate' is '1e-3' (str), expected float"),
        ("inner", {"rate": True}, "'inner.rate' is True (bool), expected float"),
        ("inner", {"size": 0}, "inner: size=0 is out of range: at least 1."),
        ("maybe", {"size": 0}, "maybe: size=0 is out of range"),
        ("maybe", 3, "'maybe' is 3 (int), expected keys of Inner"),
        ("params", [1], "expected keys with anything"),
        ("weights", {"a": "b"}, "'weights.a' is 'b' (str), expected float"),
    ],
)
def test_a_wrong_type_is_refused_with_what_is_expected(key: str, value: Any, expected: str) -> None:
    assert expected in fault({"name": "a", key: value})


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 10**400], ids=lambda v: str(v)[:5])
def test_numbers_that_are_none_are_refused_in_every_key(value: float) -> None:
    for tree, key in (({"learning_rate": value}, "learning_rate"), ({"weight_decay": value}, "weight_decay")):
        with pytest.raises(ConfigError, match=rf"'{key}' is .*expected float(.|\n)*not numbers"):
            parse(TrainerConfig, tree)


def test_an_unknown_key_names_file_line_nearest_and_all_keys() -> None:
    message = fault({"name": "a", "inner": {"rat": 3}}, {"inner.rat": ("experiments/x.yaml", 14)})
    assert message.splitlines()[:3] == [
        "unknown key 'inner.rat' in experiments/x.yaml, line 14.",
        "  nearest: inner.rate (float, default 0.1)",
        "  keys of inner: rate, size",
    ]


def test_all_errors_are_reported_at_once() -> None:
    tree = {"inner": {"sise": 1, "rate": "x"}, "flag": 3, "zzz": 1}
    message = fault(tree, {"flag": ("the command line", 0), "inner.rate": ("a.yaml", 2)})
    assert message.startswith("5 errors in the configuration.")
    for part in (
        "unknown key 'inner.sise'",
        "'inner.rate' is 'x' (str), expected float in a.yaml, line 2",
        "'flag' is 3 (int), expected bool on the command line",
        "unknown key 'zzz'",
        "missing key 'name' (str)",
    ):
        assert part in message


def test_a_value_refused_by_its_dataclass_has_its_origin() -> None:
    message = fault({"name": "a", "inner": {"size": 0}}, {"inner.size": ("a.yaml", 7), "inner": ("a.yaml", 6)})
    assert message.splitlines()[:3] == [
        "inner: size=0 is out of range: at least 1.",
        "  set in a.yaml, line 7",
        "  sizes count something",
    ]


def test_a_preset_named_where_keys_belong_is_explained() -> None:
    assert "`override /inner: small`" in fault({"name": "a", "inner": "small"})


def test_a_tree_that_is_not_a_mapping_is_refused() -> None:
    assert "expected keys of Root" in fault([1, 2])


def test_a_free_form_block_keeps_the_lines_of_its_keys() -> None:
    params = parse(Root, {"name": "a", "params": {"sise": 3}}, {"params.sise": ("a.yaml", 9)}).params
    with pytest.raises(ConfigError, match=r"unknown key 'params\.sise' in a\.yaml, line 9") as caught:
        parse(Inner, params)
    assert "nearest: params.size" in str(caught.value)


def test_a_config_can_be_copied_pickled_and_turned_into_plain_dicts() -> None:
    config = parse(Root, {"name": "a", "params": {"k": 1}}, {"params.k": ("a.yaml", 1)})
    assert pickle.loads(pickle.dumps(config)) == config
    assert dataclasses.asdict(config)["params"] == {"k": 1}
    assert type(to_tree(config)["params"]) is dict and isinstance(config.params, Located)


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, "int"),
        (float | None, "float or none"),
        (Literal["a", "b"], "one of a, b"),
        (tuple[str, ...], "list of str"),
        (tuple[int, float], "list of 2: int, float"),
        (dict[str, float], "keys with float"),
        (Inner, "keys of Inner"),
        (Any, "anything"),
    ],
)
def test_types_are_described(hint: Any, text: str) -> None:
    assert describe(hint) == text
