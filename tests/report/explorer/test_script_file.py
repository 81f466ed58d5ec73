"""Script files: values survive as they are, no text can end the script or become code, and numbers are finite."""

import base64
import json
import math
import struct
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.errors import NonFinite
from diffprobe.report.explorer.script_file import (
    ScriptRows,
    floats_base64,
    int32_base64,
    rounded,
    to_script,
    write_script,
)
from tests.report.explorer.example import HOSTILE

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_a_value_is_kept_and_its_script_is_plain_ascii_without_markup(value: object) -> None:
    text = to_script(value)  # type: ignore[arg-type]
    assert json.loads(text) == value  # JSON is a part of JavaScript
    assert text.isascii() and not set(text) & set("<>&\n\r\0\x7f") - {"\x7f"}


def test_hostile_text_cannot_end_the_script() -> None:
    text = to_script([HOSTILE])
    assert "script" in text and "</script" not in text and "<" not in text and "\\u2028" in text and "\\u0000" in text


def test_half_a_character_is_kept() -> None:
    assert json.loads(to_script("\ud800")) == "\ud800"


def test_a_script_is_one_call(tmp_path: Path) -> None:
    write_script(tmp_path / "a" / "b.js", "0/b", {"x": [1, None]})
    assert (tmp_path / "a" / "b.js").read_bytes() == b'explorer.put("0/b",{"x":[1,null]});\n'


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(NonFinite):
        to_script([value])
    with pytest.raises(NonFinite, match="latent 3: activation"):
        rounded(value, "latent 3: activation")
    for double in (False, True):
        with pytest.raises(NonFinite, match=r"column 'x'.*latent 1"):
            floats_base64([0.0, value], double=double, where="column 'x'")


@given(st.floats(min_value=-1e30, max_value=1e30))
def test_rounding_keeps_four_digits(value: float) -> None:
    assert rounded(value, "") == pytest.approx(value, rel=5.1e-4, abs=1e-300)


def test_floats_are_little_endian_and_a_missing_one_is_nan() -> None:
    one, missing = struct.unpack("<2f", base64.b64decode(floats_base64([0.1, None], double=False, where="")))
    assert one == pytest.approx(0.1) and math.isnan(missing)
    assert struct.unpack("<2d", base64.b64decode(floats_base64([1e-60, 2**24 + 1], double=True, where=""))) == (
        1e-60,
        2**24 + 1,
    )
    with pytest.raises(NonFinite, match="1e\\+39"):
        floats_base64([1e39], double=False, where="")


def test_integers_are_little_endian() -> None:
    assert base64.b64decode(int32_base64(array("i", [1, -1]))) == b"\x01\0\0\0\xff\xff\xff\xff"


def test_rows_are_one_list_and_an_incomplete_one_stays_invalid(tmp_path: Path) -> None:
    for complete in (True, False):
        rows = ScriptRows(tmp_path / "rows.js", "0/images")
        rows.append(["a", 1])
        rows.append([HOSTILE, None])
        rows.close(complete=complete)
        text = (tmp_path / "rows.js").read_text()
        assert text.endswith(");\n") == complete
        if complete:
            assert json.loads(text.removeprefix('explorer.put("0/images",').removesuffix(");\n")) == [
                ["a", 1],
                [HOSTILE, None],
            ]
