"""The index: what it lists, what it refuses, and that it notices shards that are not its own."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, DuplicateKey, SchemaError, ShardError, UnknownName
from diffprobe.shards.annotation import Fields
from diffprobe.shards.index import ShardSet, build_index, render
from diffprobe.shards.stream import SampleStream
from diffprobe.shards.verify import verify
from diffprobe.shards.writer import write_shard
from tests.artifacts import edit

Make = Callable[..., ShardSet]
Files = Callable[..., dict[str, bytes]]


def test_an_index_lists_shards_classes_attributes(make_set: Make, files: Files, tmp_path: Path) -> None:
    def change(number: int, members: dict[str, bytes]) -> None:
        members.update(files(number, attributes={"tone": "xyz"[number % 3]}))

    make_set(3, 2, change=change)
    shard_set = make_set(4, split="val", prefix="v", change=change)
    assert shard_set == ShardSet.load(tmp_path) == ShardSet.load(tmp_path / "index.json")
    assert shard_set.splits() == ("train", "val")
    assert [shard.file for shard in shard_set.shards_of("train")] == ["train-0000.tar", "train-0001.tar"]
    assert (shard_set.n_samples("train"), shard_set.n_samples("val")) == (5, 4)
    assert shard_set.classes == ("a", "b", "c")
    assert shard_set.attributes == {"tone": ("x", "y", "z")}
    assert "val: 4 samples in 1 shards" in render(shard_set)
    with pytest.raises(UnknownName, match="unknown split of 'tiny' 'tain'.\n  nearest: train"):
        shard_set.shards_of("tain")


def test_the_index_is_the_same_each_time(make_set: Make, tmp_path: Path) -> None:
    make_set(3)
    before = (tmp_path / "index.json").read_bytes()
    make_set(3)
    assert (tmp_path / "index.json").read_bytes() == before
    assert str(tmp_path).encode() not in before


def test_the_digest_follows_the_content_alone(make_set: Make, files: Files, tmp_path: Path) -> None:
    first = make_set(3)
    assert build_index(tmp_path, name="other", licence="other").digest == first.digest
    changed = make_set(3, change=lambda number, members: members.update(files(number, caption="changed")))
    assert changed.digest != first.digest


def test_splits_assigned_by_patterns_are_part_of_the_digest(tmp_path: Path, files: Files) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number:05d}.tar", [(f"k{number}", files(number))])

    def digest(**assigned: str) -> str:
        patterns = {f"0000{file[1:]}.tar": split for file, split in assigned.items()}
        return build_index(tmp_path, name="n", licence="l", split="train", assigned=patterns).digest

    assert digest() == digest(_0="train")
    assert len({digest(), digest(_0="val"), digest(_0="test"), digest(_1="val")}) == 4
    assert ShardSet.load(tmp_path).n_samples("val") == 1


def test_an_index_may_lie_elsewhere(make_set: Make, tmp_path: Path) -> None:
    here = make_set(3)
    (tmp_path / "index.json").unlink()
    there = build_index(tmp_path, name="tiny", licence="CC0", index_path=tmp_path / "indices" / "tiny.json")
    assert not (tmp_path / "index.json").exists()
    loaded = ShardSet.load(tmp_path / "indices" / "tiny.json")
    assert loaded == there
    assert loaded.digest == here.digest


def test_class_names_without_labels_are_numbered_by_alphabet(make_set: Make) -> None:
    def change(number: int, members: dict[str, bytes]) -> None:
        members["json"] = json.dumps({"class_name": ["cup", "ant"][number % 2]}).encode()

    assert make_set(3, change=change).classes == ("ant", "cup")


def test_labels_without_a_name_are_called_by_number(make_set: Make) -> None:
    shard_set = make_set(2, change=lambda number, members: members.update(json=b'{"label": %d}' % (2 * number)))
    assert shard_set.classes == ("0", "1", "2")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (
            [{"label": 0, "class_name": "a"}, {"label": 0, "class_name": "b"}],
            "label 0 is 'b' here and 'a'",
        ),
        (
            [{"label": 0, "class_name": "a"}, {"label": 1, "class_name": "a"}],
            "class name 'a' .*several labels",
        ),
        ([{"label": 0, "class_name": "a"}, {"class_name": "b"}], "class 'b' has no label in any sample"),
    ],
)
def test_labels_at_odds_are_refused(make_set: Make, records: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        make_set(2, change=lambda number, members: members.update(json=json.dumps(records[number]).encode()))


def test_the_names_of_fields_go_with_the_index(tmp_path: Path, png: Callable[..., bytes]) -> None:
    samples = [
        (f"k{i}", {"png": png(), "json": json.dumps({"label": 0, "fine": 1 - i, "text": f"t{i}"}).encode()})
        for i in range(2)
    ]
    write_shard(tmp_path / "train-0000.tar", samples)
    given = Fields(label="fine", caption="text", image=("png",))
    build_index(tmp_path, name="n", licence="l", fields=given)
    shard_set = ShardSet.load(tmp_path)
    assert shard_set.fields == given
    for asked in (None, Fields(), given):
        assert [(s.label, s.caption) for s in SampleStream(shard_set, "train", fields=asked)] == [(1, "t0"), (0, "t1")]
        assert verify(shard_set, fields=asked).faults == ()
    assert shard_set.fields_for(Fields(caption="title")) == Fields(label="fine", caption="title", image=("png",))
    other = Fields(label="coarse")
    for read in (lambda: SampleStream(shard_set, "train", fields=other), lambda: verify(shard_set, fields=other)):
        with pytest.raises(ConfigError, match=r"label: .*'fine'.*'coarse'\n  fix: .* --field label=coarse"):
            read()
    assert "fields: image=png label=fine caption=text" in render(shard_set)
    (tmp_path / "train-0000.tar").unlink()
    with pytest.raises(ShardError, match=r"--field image=png --field label=fine --field caption=text"):
        ShardSet.load(tmp_path)


def test_an_index_that_names_no_fields_has_the_default_ones(make_set: Make) -> None:
    shard_set = make_set(2)
    assert "fields" not in json.loads((shard_set.root / "index.json").read_text())
    assert ShardSet.load(shard_set.root).fields == Fields()
    with pytest.raises(ConfigError, match="label: .*'label'.*'fine'"):
        shard_set.fields_for(Fields(label="fine"))


def test_faults_are_gathered_and_no_index_is_written(make_set: Make, tmp_path: Path) -> None:
    def change(number: int, members: dict[str, bytes]) -> None:
        if number == 1:
            del members["png"]
        if number == 2:
            members["json"] = b"{"

    with pytest.raises(ShardError, match="2 faults; no index was written") as caught:
        make_set(4, change=change)
    assert "train-0000.tar, sample 'k001': no image" in str(caught.value)
    assert "train-0000.tar, sample 'k002': field 'json' is not JSON" in str(caught.value)
    assert not (tmp_path / "index.json").exists()
    shard_set = make_set(4, change=change, on_error="skip")
    assert (shard_set.n_samples("train"), len(shard_set.faults)) == (4, 2)
    assert ShardSet.load(tmp_path).faults == shard_set.faults
    assert "indexed with 2 faults" in render(shard_set)


def test_a_key_in_two_shards_is_refused(make_set: Make, files: Files, tmp_path: Path) -> None:
    write_shard(tmp_path / "test-0000.tar", [("k001", files(1))])
    with pytest.raises(DuplicateKey, match=r"train-0000.tar: key 'k001' .*test-0000.tar"):
        make_set(3)


def test_folders_that_are_no_shard_set(tmp_path: Path, make_set: Make) -> None:
    with pytest.raises(ShardError, match="not found"):
        build_index(tmp_path / "none", name="n", licence="l")
    with pytest.raises(ShardError, match="no shard in"):
        build_index(tmp_path, name="n", licence="l")
    with pytest.raises(ShardError, match="'nowhere' not found"):
        ShardSet.load("nowhere")
    with pytest.raises(ShardError, match=r"has no index.json.(?s:.*)data adopt.*\n  fix: diffprobe data index"):
        ShardSet.load(tmp_path)
    write_shard(tmp_path / "0000.tar", [("k", {"png": b""})])
    with pytest.raises(ShardError, match=r"split.*: 0000.tar"):
        build_index(tmp_path, name="n", licence="l")
    write_shard(tmp_path / "0000.tar", [])
    (tmp_path / "0000.tar").rename(tmp_path / "train-0.tar")
    with pytest.raises(ShardError, match=r"(?s)no shard .* has a sample.*train-0.tar"):
        build_index(tmp_path, name="n", licence="l")


def test_a_folder_of_images_is_refused_with_the_command_that_packs_it(
    tmp_path: Path, png: Callable[..., bytes]
) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").write_bytes(png())
    fix = f"fix: diffprobe data build folder {tmp_path} --out SHARDS"
    with pytest.raises(ShardError, match=f"it has images, not shards(?s:.*){fix}"):
        ShardSet.load(tmp_path)
    with pytest.raises(ShardError, match=f"no shard in(?s:.*){fix}"):
        build_index(tmp_path, name="n", licence="l")
    with pytest.raises(ShardError, match="'my/set' not found(?s:.*)data build folder DIR --out SHARDS"):
        ShardSet.load("my/set")


def test_missing_and_resized_shards_are_noticed_at_once(make_set: Make, tmp_path: Path) -> None:
    make_set(2, 2, 2)
    (tmp_path / "train-0000.tar").unlink()
    (tmp_path / "train-0002.tar").write_bytes(b"")
    with pytest.raises(ShardError, match="2 of 3 differ") as caught:
        ShardSet.load(tmp_path)
    assert "missing: train-0000.tar" in str(caught.value)
    assert "changed: train-0002.tar has 0 bytes" in str(caught.value)


def test_a_shard_written_anew_is_noticed_though_its_size_is_the_same(make_set: Make, files: Files) -> None:
    shard_set = make_set(2, 2)
    index, shard = shard_set.root / "index.json", shard_set.root / "train-0001.tar"
    time = index.stat().st_mtime_ns
    os.utime(shard, ns=(time, time + 10**9))
    loaded = ShardSet.load(shard_set.root)
    assert loaded == shard_set and loaded.newer == ("train-0001.tar",)
    assert len(list(SampleStream(loaded, "train"))) == 4  # copied, but not changed
    write_shard(shard, [("k002", files(2)), ("k003", files(3, caption="number 9"))])
    os.utime(shard, ns=(time, time + 2 * 10**9))
    changed = ShardSet.load(shard_set.root)
    with pytest.raises(ShardError, match="train-0001.tar: .*sha256"):
        SampleStream(changed, "train")
    SampleStream(changed, "train", limit=2)  # reads the other one alone
    assert verify(changed).faults == ("train-0001.tar: the shard has changed since it was indexed (sha256 differs).",)


def test_foreign_and_incomplete_index_files(make_set: Make, tmp_path: Path) -> None:
    make_set(2)
    path = tmp_path / "index.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "header": {**record["header"], "schema_version": 3}}))
    with pytest.raises(SchemaError, match="schema version 3"):
        ShardSet.load(tmp_path)
    edit(path, header=record["header"], classes=...)
    with pytest.raises(SchemaError, match="not a complete shard index"):
        ShardSet.load(tmp_path)


def test_a_data_set_that_is_not_shipped_is_refused_with_the_command_that_builds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("diffprobe.shards.index.shipped", dict)
    with pytest.raises(ShardError, match="(?s)'emoji' not found.*fix: build it: diffprobe data build emoji --out"):
        ShardSet.load("emoji")


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record["shards"][0].update(n_samples=0),
        lambda record: record["shards"][0].update(n_samples=1),
        lambda record: record["shards"].pop(),
        lambda record: record["classes"].reverse(),
        lambda record: record.update(licence="public domain"),
        lambda record: record["shards"][0].update(split="test"),
        lambda record: record["shards"][0].update(missing={"caption": [1, 0, "k000"]}),
        lambda record: record["faults"].append("x"),
        lambda record: record.update(extra=1),
    ],
)
def test_any_edit_of_an_index_is_noticed_when_it_is_read(
    make_set: Make, tmp_path: Path, edit: Callable[[dict], object]
) -> None:
    make_set(2, 2)
    path = tmp_path / "index.json"
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    with pytest.raises(
        SchemaError, match=f"(?s)index.json' was modified .*diffprobe data index {tmp_path} --name tiny"
    ):
        ShardSet.load(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda record: record["shards"][0].update(file="../secret.tar"), "outside of the folder"),
        (lambda record: record["shards"][0].update(file="/etc/passwd"), "outside of the folder"),
        (lambda record: record["shards"][0].update(file=3), "file: expected a text, found int"),
        (lambda record: record["shards"][0].update(n_samples="2"), "n_samples: expected int"),
        (lambda record: record["shards"][0].update(n_samples=-1), "-1 samples"),
        (lambda record: record["shards"][0].update(n_samples=10**400), "has 10+ samples"),
        (lambda record: record["shards"][0].update(more=1), "TypeError"),
        (lambda record: record["shards"].append(record["shards"][0]), "listed twice"),
        (lambda record: record.update(shards=[]), "it lists no shard"),
        (lambda record: record.update(classes="abc"), "classes: expected a list"),
        (lambda record: record.update(classes=["a", "a", "b"]), "a name twice"),
        (lambda record: record.update(attributes={"label": ["sharp"]}), "'label': diffprobe uses this name"),
        (lambda record: record.update(attributes=[]), "attributes: expected an object"),
        (lambda record: record.update(fields={"labels": "y"}), "TypeError"),
        (lambda record: record.update(name=None), "name: expected a text"),
    ],
)
def test_an_index_that_was_sealed_by_someone_else_is_validated(
    make_set: Make, tmp_path: Path, edit: Callable[[dict], object], message: str
) -> None:
    make_set(2, 2)
    path = tmp_path / "index.json"
    record = json.loads(path.read_text())
    edit(record)
    header = record.pop("header")
    path.write_text(json.dumps({"header": {**header, "digest": digest_json(record)}, **record}))
    with pytest.raises(SchemaError, match=f"(?s)not a complete shard index.*{message}.*fix: .*diffprobe data index"):
        ShardSet.load(tmp_path)


def test_an_index_of_the_first_version_is_refused_with_its_command(make_set: Make, tmp_path: Path) -> None:
    make_set(2)
    path = tmp_path / "index.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "header": {**record["header"], "schema_version": 1}}))
    with pytest.raises(
        SchemaError, match=f"version 1 .*\n.*\n  fix: .*data index {tmp_path} --name tiny --licence CC0"
    ):
        ShardSet.load(tmp_path)


def test_shards_in_folders_named_after_their_split(tmp_path: Path, files: Files) -> None:
    for i, folder in enumerate(("train", "validation")):
        (tmp_path / folder).mkdir()
        write_shard(tmp_path / folder / "00000.tar", [(f"{folder}/k{i}", files(i))])
    build_index(tmp_path, name="n", licence="l")
    shard_set = ShardSet.load(tmp_path)
    assert {shard.file: shard.split for shard in shard_set.shards} == {
        "train/00000.tar": "train",
        "validation/00000.tar": "val",
    }
    assert [sample.shard for sample in SampleStream(shard_set, "val")] == ["validation/00000.tar"]
    assert verify(shard_set).faults == ()
