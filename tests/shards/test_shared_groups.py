"""Groups in two splits are found while a set is indexed, and refused by the runs that read both."""

import json

import pytest

from diffprobe.cli.main import main
from diffprobe.core.errors import SchemaError, SplitLeak
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.shared_groups import (
    SharedGroups,
    find_shared_groups,
    parse_shared_groups,
    require_disjoint_splits,
)


def person(number, files):
    record = json.loads(files["json"])
    files["json"] = json.dumps({**record, "attributes": {"person": f"p{number // 4}"}}).encode()


def test_the_index_records_which_splits_share_groups(make_set, capsys):
    make_set(8, change=person)
    bare = make_set(5, change=lambda number, files: person(number + 4, files), split="test", prefix="t")
    named = build_index(bare.root, name="tiny", licence="CC0", grouped_by="person")
    (one,) = named.shared_groups
    assert one == SharedGroups(first="test", second="train", n=1, example="p1")
    assert ShardSet.load(bare.root) == named and bare.shared_groups == ()
    alone = build_index(bare.root, name="tiny", licence="CC0", grouped_by="sample")
    assert alone.grouped_by is None and alone.shared_groups == () and alone.digest == bare.digest
    command = ["data", "index", str(bare.root), "--name", "tiny", "--licence", "CC0", "--group"]
    assert main([*command, "person"]) == 0
    assert "splits test and train share 1 values of 'person', for example 'p1'" in capsys.readouterr().out
    assert main([*command, "sample"]) == 0 and "share" not in capsys.readouterr().out


def test_a_set_split_by_whole_groups_has_none(make_set):
    make_set(8, change=person)
    bare = make_set(5, change=lambda number, files: person(number + 8, files), split="test", prefix="t")
    assert build_index(bare.root, name="tiny", licence="CC0", grouped_by="person").shared_groups == ()
    assert "shared_groups" not in (bare.root / "index.json").read_text()


def test_only_splits_that_are_read_matter():
    shared = find_shared_groups({"train": {"a", "b"}, "val": {"b"}, "test": {"c"}, "combinations": {"a", "c"}})
    assert [(one.first, one.second) for one in shared] == [
        ("combinations", "test"), ("combinations", "train"), ("train", "val"),
    ]  # fmt: skip
    where = {"group": "family", "name": "toy", "folder": "shards"}
    require_disjoint_splits(shared, ["val", "test"], **where)
    with pytest.raises(SplitLeak, match=r"'family'(.|\n)*train and val: 1 value, for example 'b'(.|\n)*--group sample"):
        require_disjoint_splits(shared, ["train", "val", "test"], **where)


@pytest.mark.parametrize(
    "record", [{}, [1], [{"first": "a", "second": "b", "n": 0, "example": "x"}],
               [{"first": 1, "second": "b", "n": 2, "example": "x"}]],
)  # fmt: skip
def test_a_damaged_record_is_refused(record):
    with pytest.raises(SchemaError):
        parse_shared_groups(record)
