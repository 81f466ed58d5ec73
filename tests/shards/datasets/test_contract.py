"""What every data set keeps: built from its small source, and as it ships, if it does. A stub fails each check."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffprobe.core.registry import DATASETS
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.decode import Sample, decode_sample
from diffprobe.shards.index import ShardSet, shipped
from diffprobe.shards.reader import read_shard
from diffprobe.shards.verify import verify


def samples_of(shard_set: ShardSet) -> Iterator[tuple[str, Sample]]:
    for shard in shard_set.shards:
        for raw in read_shard(shard_set.root / shard.file):
            yield shard.split, decode_sample(raw, shard_set, fields=shard_set.fields)


def set_faults(shard_set: ShardSet, card: DatasetCard) -> list[str]:
    """Check a shard set against its card: every sample decodes, keys are unique, splits are disjoint as declared."""
    found = [f"verify: {fault}" for fault in verify(shard_set).faults]
    if found:
        return found
    if (shard_set.name, shard_set.licence) != (card.name, card.licence) or not (card.name and card.licence):
        found.append("card: name or licence differs from the index")
    values: dict[str, dict[str, set[object]]] = {by: defaultdict(set) for by in card.disjoint_by.values()}
    keys: list[str] = []
    for split, sample in samples_of(shard_set):
        keys.append(sample.key)
        for by, seen in values.items():
            columns = {"key": sample.key, "label": sample.label, **sample.attributes}
            if by in columns:
                seen[split].add(columns[by])
    if len(set(keys)) != len(keys):
        found.append("keys: not unique")
    if not card.disjoint_by:
        found.append("splits: the card declares no split rule")
    for split, by in card.disjoint_by.items():
        others = set().union(*(seen for name, seen in values[by].items() if name != split))
        if not any(values[by].values()):
            found.append(f"splits: no sample has '{by}'")
        if values[by][split] & others:
            found.append(f"splits: '{split}' shares values of '{by}' with another split")
    return found


def build_faults(dataset: Any, folder: Path) -> list[str]:
    """Build a data set twice from its small source and check both."""
    (folder / "source").mkdir(parents=True)
    arguments, n_samples = dataset.tiny(folder / "source")
    first, second = (dataset.build(**arguments, out=folder / name) for name in ("a", "b"))
    found = set_faults(first, dataset.CARD)
    if sum(shard.n_samples for shard in first.shards) != n_samples or not n_samples:
        found.append(f"counts: {n_samples} samples declared")
    files = [{p.name: p.read_bytes() for p in sorted((folder / name).iterdir())} for name in ("a", "b")]
    if files[0] != files[1] or first.digest != second.digest:
        found.append("bytes: a second build differs")
    if ShardSet.load(folder / "a").digest != first.digest:
        found.append("index: it does not describe what was built")
    return found


@pytest.mark.parametrize("name", DATASETS.names())
def test_a_data_set_is_built_as_it_declares(name: str, tmp_path: Path) -> None:
    assert build_faults(DATASETS.load(name), tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped())
def test_a_shipped_data_set_is_as_its_card_declares(name: str) -> None:
    card, shard_set = DATASETS.load(name).CARD, ShardSet.load(name)
    assert set_faults(shard_set, card) == []
    assert {split: shard_set.n_samples(split) for split in shard_set.splits()} == card.counts
    assert len(shard_set.classes) == card.n_classes


@pytest.mark.parametrize("name", DATASETS.names())
def test_a_data_set_has_a_name_and_a_preset_of_its_file_name(name: str) -> None:
    from diffprobe.config.search_path import groups

    dataset = DATASETS.load(name)
    assert dataset.CARD.name == name and name in groups()["data"]
    assert dataset.HELP and "\n" not in dataset.HELP


def test_stubs_fail_the_contract(tmp_path: Path) -> None:
    real = DATASETS.load("emoji")
    n_calls = iter(range(100))

    def stub(**changes: Any) -> SimpleNamespace:
        return SimpleNamespace(**{"CARD": real.CARD, "tiny": real.tiny, "build": real.build, **changes})

    def nothing_split(**arguments: Any) -> ShardSet:
        """Write everything of one family to both splits, by another key."""
        from diffprobe.shards.index import build_index
        from diffprobe.shards.writer import write_shards

        built = real.build(**arguments)
        samples = [(raw.key, dict(raw.files)) for s in built.shards for raw in read_shard(built.root / s.file)]
        for file in built.root.iterdir():
            file.unlink()
        write_shards(samples, built.root, "train")
        write_shards([(f"{key}-again", files) for key, files in samples], built.root, "test")
        return build_index(built.root, name="emoji", licence=real.CARD.licence)

    def unrepeatable(**arguments: Any) -> ShardSet:
        built: ShardSet = real.build(**arguments)
        (built.root / "notes.txt").write_text(str(next(n_calls)))
        return built

    def card(**changes: Any) -> DatasetCard:
        return dataclasses.replace(real.CARD, **changes)

    expected = {
        "card": stub(CARD=card(licence="mine")),
        "counts": stub(tiny=lambda folder: (real.tiny(folder)[0], 8)),
        "bytes": stub(build=unrepeatable),
        "splits: 'test' shares values of 'family'": stub(build=nothing_split),
        "splits: no sample has 'photographer'": stub(CARD=card(disjoint_by={"test": "photographer"})),
        "splits: the card declares no split rule": stub(CARD=card(disjoint_by={})),
    }
    for number, (fault, dataset) in enumerate(expected.items()):
        found = build_faults(dataset, tmp_path / str(number))
        assert any(line.startswith(fault) for line in found), (fault, found)
