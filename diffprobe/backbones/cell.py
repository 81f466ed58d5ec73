"""The cell: one tap x timestep x condition x pooling of a grid, and its name. Imports no torch."""

import re
from dataclasses import dataclass

from diffprobe.core.errors import ConfigError

CONDITIONS = ("empty", "caption", "prompt", "template", "label", "negative")
"""Conditions of a backbone: the empty prompt or null class, the sample's own caption, one prompt for all samples, a
template filled from the sample's texts, the sample's class, or the fixed prompt of the unconditional branch."""

POOLS = ("mean", "max", "none", "gridK", "tokensN")
"""How a feature map becomes a feature: mean or maximum over space; the map itself; means over K x K parts, side by
side; N places of it, drawn by (seed, key)."""

_POOL = re.compile(r"mean|max|none|(?P<kind>grid|tokens)(?P<size>[1-9]\d{0,4})")
_NAME = re.compile(r"(?P<tap>[^@]+)@t(?P<timestep>\d+)(?::(?P<condition>[^:]+)(?::(?P<pool>[^:]+))?)?")


@dataclass(frozen=True, order=True)
class Cell:
    """Address of one feature.

    Attributes:
        tap: module path in the denoiser, never an alias: `mid_block`, `up_blocks.1`; with its readout if it has one:
            `up_blocks.1.attentions.0.transformer_blocks.0.attn2/probs`.
        timestep: position on the training grid, larger is noisier.
        condition: one of `CONDITIONS`.
        pool: one of `POOLS`, with a number for K or N.

    >>> Cell("mid_block", 100).name
    'mid_block@t100:empty:mean'
    """

    tap: str
    timestep: int
    condition: str = "empty"
    pool: str = "mean"

    def __post_init__(self) -> None:
        check_choice("condition", self.condition, CONDITIONS)
        parse_pool(self.pool)
        if "@" in self.tap or not self.tap:
            raise ConfigError(f"tap '{self.tap}' is not a module path.", "given: a text that is empty or contains '@'")

    @property
    def name(self) -> str:
        """Spell the cell in full; `Cell.parse` is the inverse."""
        return f"{self.tap}@t{self.timestep}:{self.condition}:{self.pool}"

    @classmethod
    def parse(cls, name: str) -> "Cell":
        """Read a cell's name; condition and pooling may be left out.

        Raises: ConfigError if the text is not a cell.

        >>> Cell.parse("up_blocks.1@t25")
        Cell(tap='up_blocks.1', timestep=25, condition='empty', pool='mean')
        """
        match = _NAME.fullmatch(name.strip())
        if match is None:
            raise ConfigError(
                f"'{name}' is not a cell.",
                "allowed: TAP@tTIMESTEP, TAP@tTIMESTEP:CONDITION or TAP@tTIMESTEP:CONDITION:POOL",
                fix="write for example mid_block@t100:empty:mean",
            )
        given = {key: value for key, value in match.groupdict().items() if value is not None}
        return cls(given["tap"], int(given["timestep"]), given.get("condition", "empty"), given.get("pool", "mean"))

    def __str__(self) -> str:
        return self.name


def check_choice(kind: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a `value` outside `allowed`. Raises: ConfigError."""
    if value not in allowed:
        raise ConfigError(f"{kind} '{value}' is not known.", f"allowed: {', '.join(allowed)}")


def parse_pool(pool: str) -> tuple[str, int]:
    """Split a pooling into its kind and its number, 1 where it takes none. Raises: ConfigError.

    >>> parse_pool("grid2"), parse_pool("mean")
    (('grid', 2), ('mean', 1))
    """
    match = _POOL.fullmatch(pool)
    if match is None:
        raise ConfigError(
            f"pool '{pool}' is not known.",
            f"allowed: {', '.join(POOLS)}",
            "K and N are numbers: grid2 (2 x 2 means), tokens64 (64 places)",
        )
    return match["kind"] or pool, int(match["size"] or 1)
