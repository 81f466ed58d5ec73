"""CIFAR-100: fine labels, and the superclass as an attribute."""

import json
from pathlib import Path

from diffprobe.shards.datasets.cifar100 import build, tiny
from diffprobe.shards.reader import read_shard


def test_fine_labels_and_superclasses(tmp_path: Path) -> None:
    built = build(**tiny(tmp_path)[0], out=tmp_path / "out")  # type: ignore[arg-type]
    records = [json.loads(raw.files["json"]) for s in built.shards for raw in read_shard(built.root / s.file)]
    pairs = {(record["class_name"], record["attributes"]["superclass"]) for record in records}
    assert pairs == {("apple", "plants"), ("aquarium fish", "plants"), ("baby", "people")}
