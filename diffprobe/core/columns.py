"""Tables for the terminal: texts in aligned columns. Standard library only."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], right: Sequence[bool] = ()) -> list[str]:
    """Return one line per row, its cells padded to the widths of the columns.

    Args:
        rows: texts of equal number.
        right: whether each column is right-aligned; () aligns all of them to the left.

    >>> aligned([["tap", "size"], ["mid_block", "8"]], [False, True])
    ['tap        size', 'mid_block     8']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = right or [False] * len(widths)
    return [
        "  ".join(
            cell.rjust(width) if on_right else cell.ljust(width)
            for cell, width, on_right in zip(row, widths, sides, strict=True)
        ).rstrip()
        for row in rows
    ]
