"""Splits by hash: shares, stability, and what is refused."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.shards.hash_split import check_fractions, hash_fraction, split_by_hash


def test_shares_are_kept_and_a_larger_share_keeps_its_members() -> None:
    names = [f"k{i}" for i in range(4000)]
    small = {name: split_by_hash(name, val=0.1, test=0.2) for name in names}
    counts = {split: list(small.values()).count(split) for split in ("train", "val", "test")}
    assert all(
        abs(counts[split] / 4000 - share) < 0.03 for split, share in (("train", 0.7), ("val", 0.1), ("test", 0.2))
    )
    large = {name: split_by_hash(name, val=0.1, test=0.3) for name in names}
    assert all(large[name] == "test" for name in names if small[name] == "test")


def test_a_fraction_is_pinned_so_that_old_splits_stay() -> None:
    assert hash_fraction("split", "cat/001") == pytest.approx(0.319088946553681, abs=1e-12)
    assert hash_fraction("order", "cat/001") != hash_fraction("split", "cat/001")


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0), (1, 0), (float("nan"), 0), (0.5, 0.5)])
def test_shares_out_of_range_are_refused(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match="--val"):
        check_fractions(val=val, test=test)
