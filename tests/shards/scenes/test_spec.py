"""Names and codes of the world."""

import pytest

from diffprobe.core.errors import UnknownName
from diffprobe.shards.scenes.spec import FACTORS, MASKS, PARTS, WorldSpec


def test_names_have_codes_and_unknown_ones_are_refused(spec: WorldSpec) -> None:
    assert set(spec.values) == set(FACTORS)
    for factor in FACTORS:
        assert [spec.code(factor, name) for name in spec.names(factor)] == list(range(len(spec.names(factor))))
    assert [spec.world(name) for name in spec.worlds] == [0, 1]
    for wrong in (lambda: spec.world("other"), lambda: spec.names("shoe"), lambda: spec.code("role", "king")):
        with pytest.raises(UnknownName, match="other|shoe|king"):
            wrong()


def test_each_part_is_in_exactly_one_mask() -> None:
    assert sorted(part for ids in MASKS.values() for part in ids) == list(range(len(PARTS)))
