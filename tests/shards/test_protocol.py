"""PROTOCOL.md names what the code has: its tables are compared with the dataclasses."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import diffprobe.shards
from diffprobe.shards.annotation import Fields
from diffprobe.shards.index import SCHEMA_VERSION, ShardInfo, ShardSet

TEXT = (Path(diffprobe.shards.__file__).parent / "PROTOCOL.md").read_text(encoding="utf-8")


def rows(heading: str) -> set[str]:
    section = TEXT.split(f"## {heading}")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_the_field_table_is_the_dataclass() -> None:
    assert rows("Samples") == {field.name for field in dataclasses.fields(Fields)}


def test_the_index_table_is_the_file(make_set: Callable[..., ShardSet]) -> None:
    shard_set = make_set(1)
    record = json.loads((shard_set.root / "index.json").read_text())
    assert rows("`index.json`") == {*record, "root", "fields", "renamed", "grouped_by"}
    assert record["header"]["kind"] in TEXT
    assert f"schema version {SCHEMA_VERSION})" in TEXT
    line = next(line for line in TEXT.splitlines() if line.startswith("| `shards`"))
    assert [field.name for field in dataclasses.fields(ShardInfo)] == re.findall(r"`(\w+)`", line)[1:]
