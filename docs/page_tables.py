"""Put recorded tables into pages, for the scripts of this folder: a marker, the table, and an empty line behind it."""

from collections.abc import Sequence


def with_table(text: str, marker: str, table: Sequence[str]) -> str:
    """Return a page with the table below a marker replaced.

    Args:
        marker: a whole line of the page, with its end.
        table: lines of the new table.
    Raises: SystemExit if the page lacks the marker.
    """
    before, found, after = text.partition(marker)
    if not found:
        raise SystemExit(f"the page has no line '{marker.strip()}'.")
    return before + found + "\n".join(table) + "\n\n" + after.partition("\n\n")[2]
