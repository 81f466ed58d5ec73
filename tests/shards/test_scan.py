"""Members that belong to no sample, missing annotations, missing values, names of attributes and classes."""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diffprobe.core.errors import ShardError
from diffprobe.shards.annotation import Fields, parse_annotation
from diffprobe.shards.decode import decode_sample
from diffprobe.shards.index import ShardSet, build_index, render
from diffprobe.shards.reader import read_shard
from diffprobe.shards.scan import Scan
from diffprobe.shards.writer import write_shard


def test_members_of_no_sample_are_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "train-0000.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("README", "k.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    scan = Scan(Fields())
    assert scan.shard(path).n_samples == 1
    assert scan.all_faults() == scan.faults == ["train-0000.tar: member 'README' belongs to no sample (no extension)."]


def test_a_sample_that_alone_lacks_its_annotation_is_a_fault(tmp_path: Path) -> None:
    def scanned(*shards: dict[str, bytes]) -> list[str]:
        scan = Scan(Fields(json="meta.json"))
        for number, members in enumerate(shards):
            path = tmp_path / f"train-{number:04d}.tar"
            with tarfile.open(path, "w") as tar:
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            scan.shard(path)
        return scan.all_faults()

    bare = {"a.png": b"", "b.png": b"", "b.json": b"{}"}
    assert scanned(bare) == []
    assert scanned({**bare, "c.png": b"", "c.meta.json": b"{}"}, {"d.png": b"", "d.cls": b"0"}) == [
        f"train-0000.tar, sample '{key}': no annotation (meta.json), while other samples have one." for key in "ab"
    ]
    assert scanned({"a.png": b"", "a.txt": b"a cat"}, {"b.png": b"", "b.cls": b"0"}) == []


def encode() -> bytes:
    """Encode a small image."""
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "png")
    return buffer.getvalue()


def write(path: Path, records: Sequence[object], start: int = 0, **files: bytes) -> Path:
    """Write a shard with one sample per record; a record of bytes is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, record in enumerate(records, start):
        data = record if isinstance(record, bytes) else json.dumps(record).encode()
        samples.append((f"k{number:03d}", {"png": b"", "json": data, **files}))
    write_shard(path, samples)
    return path


@pytest.mark.parametrize("name", ["label", "class_name", "caption", "captions", "key", "Label", "", "a ", "\u202e"])
def test_an_attribute_with_a_name_of_ours_is_refused_with_the_rename_to_make(tmp_path: Path, name: str) -> None:
    write(tmp_path / "train-0.tar", [{"label": 0, "attributes": {name: "sharp"}}, {"label": 1}])
    with pytest.raises(ShardError, match="1 attribute names cannot be kept apart.*\n.*attribute ") as caught:
        build_index(tmp_path, name="n", licence="l")
    assert f"{name}=NEW_NAME" in str(caught.value.fix)
    assert not (tmp_path / "index.json").exists()
    shard_set = build_index(tmp_path, name="n", licence="l", renamed={name: "focus"})
    assert ShardSet.load(tmp_path).attributes == {"focus": ("sharp",)} == shard_set.attributes
    (first, second) = read_shard(tmp_path / "train-0.tar")
    assert parse_annotation(first, Fields(), renamed=shard_set.renamed).attributes == {"focus": "sharp"}
    assert parse_annotation(second, Fields(), renamed=shard_set.renamed).attributes == {}


def test_renames_are_part_of_the_digest(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", [{"attributes": {"x": "0", "y": "1"}}, {"attributes": {"x": "1", "y": "0"}}])
    straight = build_index(tmp_path, name="n", licence="l", renamed={"x": "a", "y": "b"})
    crossed = build_index(tmp_path, name="n", licence="l", renamed={"x": "b", "y": "a"})
    assert straight.attributes == crossed.attributes and straight.digest != crossed.digest


def test_a_rename_onto_another_attribute_or_of_none_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", [{"attributes": {"label": "0", "tone": "1"}}])
    with pytest.raises(ShardError, match="attribute 'label' is renamed to 'tone', which the sample has too"):
        build_index(tmp_path, name="n", licence="l", renamed={"label": "tone"})
    with pytest.raises(ShardError, match="--rename age=years: no sample"):
        build_index(tmp_path, name="n", licence="l", renamed={"label": "focus", "age": "years"})


def test_names_that_differ_in_case_only_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", [{"attributes": {"Male": 1}}, {"attributes": {"male": 0}}])
    with pytest.raises(ShardError, match="'male': equal to 'Male' except for case"):
        build_index(tmp_path, name="n", licence="l")


def test_missing_values_are_counted_with_the_first_sample(tmp_path: Path) -> None:
    records = [
        {"caption": "a", "label": 0, "attributes": {"tone": "dark", "late": None}},
        {"caption": " ", "label": 0, "attributes": {"tone": "dark"}},
        b"{",  # a faulty sample has no missing values: it is left out
        {"caption": "c", "attributes": {"tone": "dark", "late": "x"}},
        {"label": 1, "attributes": {}},
    ]
    write(tmp_path / "train-0.tar", records)
    write(tmp_path / "train-1.tar", [{"caption": "d", "label": 0, "attributes": {"tone": "b", "late": "y"}}], 10)
    write(tmp_path / "train-2.tar", [{"caption": "e", "label": 0, "attributes": {"tone": "b"}}], 20)
    first, second, third = build_index(tmp_path, name="n", licence="l", on_error="skip").shards
    assert first.missing == {
        "caption": (2, 1, "k001"), "label": (1, 3, "k003"), "late": (3, 0, "k000"), "tone": (1, 4, "k004"),
    }  # fmt: skip
    assert second.missing == {}
    assert third.missing == {"late": (1, 0, "k020")}
    assert ShardSet.load(tmp_path).shards == (first, second, third)


def test_a_class_name_of_two_labels_has_a_way_out(tmp_path: Path) -> None:
    records = [{"label": i, "class_name": name} for i, name in enumerate(["crane", "cat", "crane"])]
    write(tmp_path / "train-0.tar", [*records, {"label": 2}, {"class_name": "cat"}])
    with pytest.raises(ShardError, match=r"(?s)class name 'crane' .*labels: 0, 2.*--number-duplicates.*crane \(0\)"):
        build_index(tmp_path, name="n", licence="l")
    shard_set = build_index(tmp_path, name="n", licence="l", number_duplicates=True)
    assert shard_set.classes == ("crane (0)", "cat", "crane (2)")
    samples = read_shard(tmp_path / "train-0.tar")
    image = {"png": encode()}
    labels = [
        decode_sample(replace(raw, files={**raw.files, **image}), shard_set, fields=Fields()).label for raw in samples
    ]
    assert labels == [0, 1, 2, 2, 1]


def test_the_name_alone_of_a_class_with_two_labels_is_refused(tmp_path: Path) -> None:
    records = [{"label": 0, "class_name": "crane"}, {"label": 1, "class_name": "crane"}, {"class_name": "crane"}]
    write(tmp_path / "train-0.tar", records)
    with pytest.raises(ShardError, match="class 'crane' has no label in any sample"):
        build_index(tmp_path, name="n", licence="l", number_duplicates=True)


def test_a_shard_without_a_sample_does_not_block_the_set(tmp_path: Path) -> None:
    write(tmp_path / "train-0.tar", [])
    write(tmp_path / "train-1.tar", [{"label": 0}, {"label": 1}])
    shard_set = build_index(tmp_path, name="n", licence="l")
    assert [shard.n_samples for shard in shard_set.shards] == [0, 2]
    assert "1 shards without a sample: train-0.tar" in render(shard_set)


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["a.JPEG", "a.json"], "--field image=jpeg"),
        (["a.input.jpg", "a.json"], "--field image=input.jpg"),
        (["a.1.jpg", "a.2.jpg", "a.1.json"], "a key ends at the first dot"),
        (["a.jpg", "a.png"], "--field image=jpg"),
    ],
)
def test_the_listing_of_faults_has_the_fields_and_the_option_to_set(
    tmp_path: Path, names: list[str], hint: str
) -> None:
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    with pytest.raises(ShardError, match="1 faults; no index was written") as caught:
        build_index(tmp_path, name="n", licence="l")
    assert hint in str(caught.value.fix)
    if "several" not in str(caught.value):
        assert "it has the fields " + ", ".join(sorted(name[2:].lower() for name in names)) in str(caught.value)


@pytest.mark.slow
def test_many_classes_and_values_take_linear_work(tmp_path: Path) -> None:
    scan = Scan(Fields())
    scan.names = {label: f"class {label}" for label in range(50_000)}
    assert len(scan.classes()) == 50_000  # quadratic: minutes
    scan.names = {3_000_000: "last"}
    assert scan.classes()[-2:] == ("2999999", "last")
