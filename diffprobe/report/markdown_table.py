"""A table of texts in Markdown."""

from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the lines of a table; a bar within a cell is escaped. Without rows the text is empty.

    >>> print(markdown_table(["factor", "share"], [["hat|tool", "0.5"]]))
    | factor | share |
    | --- | --- |
    | hat&#124;tool | 0.5 |
    """
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)
