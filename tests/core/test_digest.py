import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.digest import canonical_json, digest_file, digest_json

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
trees = st.recursive(
    scalars, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(), t, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.text(), trees, max_size=5))
def test_key_order_does_not_change_a_digest(tree: dict) -> None:
    assert digest_json(tree) == digest_json(dict(reversed(tree.items())))


@given(st.dictionaries(st.text(), trees, max_size=4), st.text(), trees)
def test_every_content_field_changes_a_digest(tree: dict, key: str, value: object) -> None:
    changed = {**tree, key: value}
    assert (digest_json(changed) == digest_json(tree)) == (canonical_json(changed) == canonical_json(tree))


def test_a_digest_is_the_sha256_of_the_canonical_text() -> None:
    assert digest_json({"b": 1, "a": "ä"}) == hashlib.sha256('{"a":"ä","b":1}'.encode()).hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": [float("-inf")]}])
def test_what_json_cannot_hold_has_no_digest(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest_json(value)


def test_digest_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    assert digest_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()
