import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

import pytest
import yaml

from diffprobe.config.compose import load_run
from diffprobe.config.describe import field_docs, probe_configs, render_keys, render_reference, render_yaml
from diffprobe.config.kinds import KINDS
from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig


@dataclass
class Inner:
    """One."""

    size: int
    """Cells per side."""


@dataclass
class Outer:
    """Two."""

    inner: Inner | None = None
    """A block."""
    name: str | None = "x"
    rates: tuple[float, ...] = field(default_factory=lambda: (0.5,))
    """Step sizes,
    one per epoch."""


def test_a_rendered_config_reads_back_equal() -> None:
    config = load_run(
        "emoji/sae", ["control=shuffled_labels", "features.condition=prompt", "features.prompt='é: a, b'"]
    )
    assert parse(RunConfig, yaml.safe_load(render_yaml(config))) == config


def test_the_docstring_below_a_field_is_its_help() -> None:
    assert field_docs(Outer) == {"inner": "A block.", "name": "", "rates": "Step sizes,\none per epoch."}


def test_keys_are_listed_with_type_default_and_meaning() -> None:
    assert render_keys(Outer).splitlines() == [
        "inner: A block.",
        "inner.size: int (required)",
        "    Cells per side.",
        'name: str or none = "x"',
        "",
        "rates: list of float = [0.5]",
        "    Step sizes, one per epoch.",
    ]


@dataclass
class Derived(Inner):
    """Three."""

    depth: int = 1
    """Layers."""


def test_inherited_fields_have_their_help() -> None:
    assert field_docs(Derived) == {"size": "Cells per side.", "depth": "Layers."}


def blocks_of(cls: type[Any]) -> list[type[Any]]:
    """Return a dataclass and all dataclasses below it."""
    found = [cls]
    for hint in get_type_hints(cls).values():
        for arm in (hint, *get_args(hint)):
            if isinstance(arm, type) and dataclasses.is_dataclass(arm):
                found += blocks_of(arm)
    return found


CONFIGS = {**{f"kind {name}": kind.load() for name, kind in KINDS.items()}}
CONFIGS |= {f"{kind} {name}": config for (kind, name), config in probe_configs().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_has_a_help_text(name: str) -> None:
    for cls in blocks_of(CONFIGS[name]):
        assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), cls
        docs = field_docs(cls)
        assert not [key for key, text in docs.items() if not text.strip().endswith((".", ")"))], cls


def test_the_reference_has_every_key_with_type_default_and_allowed_values() -> None:
    reference = render_reference()
    lines = reference.splitlines()
    for name in KINDS:
        assert f"## Kind `{name}`" in lines
    for kind, name in probe_configs():
        assert f"### `{kind}` / `{name}`" in lines
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert rows["data.batch_size"] == "| `data.batch_size` | int | `64` |  | Samples per batch and process. |"
    assert '| str | `"float32"` | `float32`, `bfloat16`, `float16` |' in rows["backbone.dtype"]
    assert "| bool | `false` | `true`, `false` |" in rows["features.unconditional"]
    assert "| str | required |" in rows["backbone.path"]
    n_cells = {line.count("|") - line.count(r"\|") for line in lines if line.startswith("|")}
    assert n_cells == {6}
    for cls in blocks_of(KINDS["probe"].load()):
        for field_ in dataclasses.fields(cls):
            assert any(key.split(".")[-1] == field_.name for key in rows), field_.name
