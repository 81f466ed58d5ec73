from dataclasses import dataclass, field

import yaml

from diffprobe.config.compose import load_run
from diffprobe.config.describe import field_docs, render_keys, render_yaml
from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig


@dataclass
class Inner:
    """One."""

    size: int
    """Cells a side."""


@dataclass
class Outer:
    """Two."""

    inner: Inner | None = None
    """A block."""
    name: str | None = "x"
    rates: tuple[float, ...] = field(default_factory=lambda: (0.5,))
    """Step sizes,
    one an epoch."""


def test_a_rendered_config_reads_back_equal() -> None:
    config = load_run(
        "emoji/sae", ["control=shuffled_labels", "features.condition=prompt", "features.prompt='é: a, b'"]
    )
    assert parse(RunConfig, yaml.safe_load(render_yaml(config))) == config


def test_the_docstring_below_a_field_is_its_help() -> None:
    assert field_docs(Outer) == {"inner": "A block.", "name": "", "rates": "Step sizes,\none an epoch."}


def test_keys_are_listed_with_type_default_and_meaning() -> None:
    assert render_keys(Outer).splitlines() == [
        "inner: A block.",
        "inner.size: int (required)",
        "    Cells a side.",
        'name: str or none = "x"',
        "",
        "rates: list of float = [0.5]",
        "    Step sizes, one an epoch.",
    ]
