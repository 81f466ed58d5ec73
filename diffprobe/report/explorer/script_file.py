"""Data as script files: what a page that was opened from disk can load on demand, which it cannot do with JSON files.

A script holds one call, `explorer.put(NAME, VALUE);`, whose value is JSON in ASCII. Names of members are ours; text of
the data is in values only, so that no text can become a name such as `__proto__`.
"""

import base64
import json
import math
import operator
import struct
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, TypeAlias

from diffprobe.core.errors import NonFinite

Json: TypeAlias = "str | float | int | bool | None | Sequence[Json] | dict[str, Json]"
"""A value that JSON has."""


def write_script(file: Path, name: str, value: Json) -> None:
    """Write the script that gives the page `value` under `name`; folders are made.

    Raises: NonFinite on NaN or infinity.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"explorer.put({to_script(name)},{to_script(value)});\n", encoding="ascii", newline="\n")


def to_script(value: Json) -> str:
    r"""Return `value` as an expression of JavaScript in ASCII that cannot end a script element.

    Raises: NonFinite on NaN or infinity.

    >>> print(to_script(["</script>", "\u2028", 0.25]))
    ["\u003c/script\u003e","\u2028",0.25]
    """
    try:
        # operator.index: integers of NumPy
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=operator.index)
    except ValueError as error:
        raise NonFinite(f"a number of the explorer is not finite: {error}.") from error
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def rounded(value: float, where: str) -> float:
    """Return `value` with four significant digits, as an integer where it is one.

    Args:
        value: the number.
        where: what it is, for the error: "latent 17, activation of top image 0".

    Raises: NonFinite.

    >>> rounded(0.123456, ""), rounded(3.0, ""), rounded(123456.0, "")
    (0.1235, 3, 123500)
    """
    if not math.isfinite(value):
        raise NonFinite(f"{where}: {value} is not finite.", fix="give None where a number cannot be measured")
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def floats_base64(values: Sequence[float | None], *, double: bool, where: str) -> str:
    """Return numbers as base64 of little-endian float32 or float64, where a missing one is NaN.

    Args:
        values: the numbers; None for a missing one.
        double: whether float64 is written: for counts above 2^24 and for tiny p.
        where: what the numbers are, for the error.

    Raises: NonFinite on NaN, infinity, or a number that float32 does not have.
    """
    for i, value in enumerate(values):
        if value is not None and not (math.isfinite(value) and (double or abs(value) < 3.4e38)):
            raise NonFinite(
                f"{where}: the value of latent {i} is {value}.", fix="give None where a number cannot be measured"
            )
    filled = [math.nan if value is None else float(value) for value in values]
    return base64.b64encode(struct.pack(f"<{len(filled)}{'d' if double else 'f'}", *filled)).decode("ascii")


def int32_base64(values: "array[int]") -> str:
    """Return an array of type "i" as base64 of little-endian int32."""
    if sys.byteorder == "big":
        values = values[:]
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")


class ScriptRows:
    """A script whose value is a list that is written row by row, so that it is never in memory as a whole."""

    def __init__(self, file: Path, name: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream: TextIO = file.open("w", encoding="ascii", newline="\n")
        self._stream.write(f"explorer.put({to_script(name)},[")
        self._n = 0

    def append(self, row: Json) -> None:
        """Write the next row. Raises: NonFinite."""
        self._stream.write((",\n" if self._n else "\n") + to_script(row))
        self._n += 1

    def close(self, *, complete: bool) -> None:
        """End the list; of an incomplete one the script stays invalid, so that no page shows a part as the whole."""
        if complete:
            self._stream.write("\n]);\n")
        self._stream.close()
