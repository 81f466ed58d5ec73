"""Select cells by their short names: `mid_block@t100` for `mid_block@t100:empty:mean`."""

from collections.abc import Sequence

from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import UnknownName, unknown


def choose_cells(names: Sequence[str] | None, available: Sequence[str]) -> tuple[str, ...]:
    """Return the full names of some cells (all if None), without duplicates.

    A prefix such as `mid_block@t100` is enough if it is unique. `mid_block@t*`, in short `mid_block`, selects all
    timesteps of the tap; if the tap was read under several conditions, add one: `mid_block@t*:caption`.

    Raises: UnknownName for a name that fits no cell, with the nearest cells, or that fits several.
    """
    if names is None:
        return tuple(available)
    chosen: list[str] = []
    for name in names:
        tap, wildcard, rest = name.partition("@t*")
        if not wildcard and "@" in name:
            found = [cell for cell in available if cell == name or cell.startswith(f"{name}:")]
            ambiguous = len(found) > 1
        else:
            found = [cell for cell in available if _matches(Cell.parse(cell), tap, rest)]
            ambiguous = len({Cell.parse(cell).condition for cell in found}) > 1
        if ambiguous:
            raise UnknownName(f"cell '{name}' is ambiguous.", f"it fits: {', '.join(found)}")
        if not found:
            raise unknown("cell", name, available)
        chosen += found
    return tuple(dict.fromkeys(chosen))


def choose_cell(name: str, available: Sequence[str]) -> str:
    """Return the full name of one cell. Raises: UnknownName for a name that fits none or several."""
    found = choose_cells([name], available)
    if len(found) > 1:
        raise UnknownName(f"cell '{name}' is ambiguous.", f"it fits: {', '.join(found)}")
    return found[0]


def _matches(cell: Cell, tap: str, rest: str) -> bool:
    """Return whether a cell has the tap, and the condition and pooling in `rest`, as far as `rest` gives them."""
    return cell.tap == tap and f":{cell.condition}:{cell.pool}:".startswith(f"{rest}:")
