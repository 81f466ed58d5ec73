"""`data build hub`: data sets that `datasets` itself wrote, byte for byte; continued, skipped, refused with a fix."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.shards.datasets.hub import build
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import RawSample, read_shard
from diffprobe.shards.verify import verify

datasets = pytest.importorskip("datasets")
pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")


def encoded(number: int, kind: str = "jpeg") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), (number % 256, 7, 200)).save(buffer, kind)
    return buffer.getvalue()


def rows(start: int, n: int, kind: str = "jpeg", bad: int | None = None):
    numbers = range(start, start + n)
    columns = {
        "image": [{"bytes": b"GIF89a" if i == bad else encoded(i, kind), "path": None} for i in numbers],
        "label": [i % 2 for i in numbers],
        "text": [f"number {i}" for i in numbers],
        "weight": [i / 2 for i in numbers],
        "colour": [i % 3 - 1 for i in numbers],
        "boxes": [[i, i] for i in numbers],
    }
    features = datasets.Features(
        image=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        text=datasets.Value("string"),
        weight=datasets.Value("float64"),
        colour=datasets.ClassLabel(names=["red", "blue"]),
        boxes=datasets.List(datasets.Value("int64")),
    )
    return datasets.Dataset.from_dict(columns, features=features)


def samples(shard_set: ShardSet) -> dict[str, RawSample]:
    return {raw.key: raw for shard in shard_set.shards for raw in read_shard(shard_set.root / shard.file)}


def as_saved(folder: Path) -> Path:
    datasets.DatasetDict({"train": rows(0, 12), "validation": rows(12, 3, "png")}).save_to_disk(str(folder))
    return folder


def as_parquet(folder: Path) -> Path:
    folder.mkdir()
    rows(0, 12).to_parquet(str(folder / "train-00000-of-00001.parquet"))
    rows(12, 3, "png").to_parquet(str(folder / "validation-00000-of-00001.parquet"))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("write", [as_saved, as_parquet])
def test_rows_become_samples_with_their_own_bytes(write, tmp_path: Path) -> None:
    notes: list[str] = []
    built = build(
        write(tmp_path / "pets"), tmp_path / "out", samples_per_shard=5, group="colour", announce=notes.append
    )
    assert (built.name, built.classes, built.splits()) == ("pets", ("cat", "dog"), ("train", "val"))
    assert [shard.n_samples for shard in built.shards] == [5, 5, 2, 3] and verify(built).faults == ()
    assert built.attributes["colour"] == ("blue", "red") and built.group == "colour"
    found = samples(built)
    for number in range(12):
        raw = found[f"train/{number:08d}"]
        assert raw.files["jpg"] == encoded(number)
        record = json.loads(raw.files["json"])
        assert record["label"] == number % 2 and record["class_name"] == ("cat", "dog")[number % 2]
        assert record["caption"] == f"number {number}" and record["attributes"]["weight"] == str(number / 2)
        assert record["attributes"].get("colour") == (None, "red", "blue")[number % 3]
    assert found["val/00000000"].files["png"] == encoded(12, "png")
    assert any("not read: boxes" in note for note in notes)


def test_an_image_folder_is_read_too(tmp_path: Path) -> None:
    for number in range(6):
        path = tmp_path / "folder/train" / ("cat", "dog")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    built = build(tmp_path / "folder", tmp_path / "out", leave_out=())
    assert built.classes == ("cat", "dog")
    assert {raw.files["jpg"] for raw in samples(built).values()} == {encoded(number) for number in range(6)}


def test_an_interrupted_build_continues_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffprobe.shards.datasets import hub

    source = as_saved(tmp_path / "pets")
    whole = build(source, tmp_path / "whole", samples_per_shard=5)
    real, written = hub.write_shard, []

    def killed(path, members):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        return real(path, members)

    monkeypatch.setattr(hub, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "out", samples_per_shard=5)
    monkeypatch.setattr(hub, "write_shard", lambda path, members: (written.append(path.name), real(path, members)))
    notes: list[str] = []
    built = build(source, tmp_path / "out", samples_per_shard=5, announce=notes.append)
    assert len(written) == 4 and any("2 shards with 10 rows are finished" in note for note in notes)
    assert built.digest == whole.digest
    assert (tmp_path / "out/.build.jsonl").read_bytes() == (tmp_path / "whole/.build.jsonl").read_bytes()
    with pytest.raises(ShardError, match="other settings(?s:.*)samples_per_shard: 5 there, 6 here"):
        build(source, tmp_path / "out", samples_per_shard=6)
    (tmp_path / "out/more-0000.tar").write_bytes(b"")
    with pytest.raises(ShardError, match="did not write(?s:.*)more-0000.tar"):
        build(source, tmp_path / "out", samples_per_shard=5)


def grouped(folder: Path) -> Path:
    pets = [f"pet {i // 4}" if i < 36 else None for i in range(40)]
    rows(0, 40).add_column("pet", pets).save_to_disk(str(folder))
    return folder


def test_val_and_test_are_drawn_from_a_single_split_by_group(tmp_path: Path) -> None:
    source = grouped(tmp_path / "pets")
    built = build(source, tmp_path / "out", group="pet", val=0.3, test=0.2, samples_per_shard=16)
    found = samples(built)
    assert len(found) == 40 and built.splits() == ("test", "train", "val") and built.group == "pet"
    homes: dict[str, set[str]] = {}
    for key, raw in found.items():
        pet = json.loads(raw.files["json"]).get("attributes", {}).get("pet", key)
        homes.setdefault(pet, set()).add(key.partition("/")[0])
        assert raw.files["jpg"] == encoded(int(key.partition("/")[2]))
    assert len(homes) == 13 and {len(splits) for splits in homes.values()} == {1}
    again = build(source, tmp_path / "again", group="pet", val=0.3, test=0.2, samples_per_shard=7)
    assert set(samples(again)) == set(found)  # whatever the shards
    assert build(source, tmp_path / "out", group="pet", val=0.3, test=0.2, samples_per_shard=16).digest == built.digest
    with pytest.raises(ShardError, match="other settings(?s:.*)shares"):
        build(source, tmp_path / "out", group="pet", val=0.1, samples_per_shard=16)


def test_a_build_with_drawn_splits_continues_within_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffprobe.shards.datasets import hub

    rows(0, 41, bad=3).save_to_disk(str(tmp_path / "pets"))
    options = {"val": 0.3, "samples_per_shard": 10, "on_error": "skip"}
    whole = build(tmp_path / "pets", tmp_path / "whole", **options)
    assert whole.n_samples("train") + whole.n_samples("val") + whole.n_samples("test") == 40
    real, written = hub.write_shard, []

    def killed(path, members):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path.name)
        return real(path, members)

    monkeypatch.setattr(hub, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "pets", tmp_path / "out", **options)
    monkeypatch.setattr(hub, "write_shard", real)
    assert build(tmp_path / "pets", tmp_path / "out", **options).digest == whole.digest
    assert (tmp_path / "out/.build.jsonl").read_bytes() == (tmp_path / "whole/.build.jsonl").read_bytes()


def test_faulty_rows_are_named_or_left_out_and_listed(tmp_path: Path) -> None:
    rows(0, 6, bad=4).save_to_disk(str(tmp_path / "pets"))
    words = "1 of 2 rows of a shard(?s:.*)row 4 of split 'train': the image is neither JPEG(?s:.*)--on-error skip"
    with pytest.raises(ShardError, match=words):
        build(tmp_path / "pets", tmp_path / "out", samples_per_shard=2)
    built = build(tmp_path / "pets", tmp_path / "out", samples_per_shard=2, on_error="skip")
    assert "train/00000004" not in samples(built) and built.n_samples("train") == 5
    assert "row 4 of split 'train'" in (tmp_path / "out/left_out.txt").read_text()
    with pytest.raises(ShardError, match=words):
        build(tmp_path / "pets", tmp_path / "out", samples_per_shard=2)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"label_column": "lable"}, ConfigError, "unknown --label-column 'lable'(?s:.*)nearest: label"),
        ({"label_column": "boxes"}, ConfigError, "--label-column boxes: its values are neither classes"),
        ({"caption_column": "weight"}, ConfigError, "--caption-column weight: its values are neither text"),
        ({"group": "kolour"}, ConfigError, "unknown --group 'kolour'(?s:.*)colour"),
        ({"split": ["dev=val"]}, ConfigError, r"unknown split \(--split OLD=NEW\) 'dev'(?s:.*)train, validation"),
        ({"split": ["train=a b"]}, ConfigError, "split name 'a b'"),
        ({"revision": "main"}, ConfigError, "--revision main has no effect on the folder"),
        ({"config": "x"}, ConfigError, "--config x has no effect"),
        ({"val": 0.1}, ConfigError, "single split(?s:.*)train, validation(?s:.*)--split train=train"),
        ({"val": 0.6, "split": ["train"]}, ConfigError, "leave nothing for train"),
        ({"samples_per_shard": 0}, ConfigError, "--samples-per-shard 0"),
    ],
)
def test_wrong_options_are_refused_with_what_is_allowed(options, error, words, tmp_path: Path) -> None:
    with pytest.raises(error, match=words):
        build(as_saved(tmp_path / "pets"), tmp_path / "out", **options)


def test_a_name_without_network_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = (
        "'someone/pets' cannot be opened(?s:.*)HF_HUB_OFFLINE is set(?s:.*)hf download someone/pets --repo-type dataset"
    )
    with pytest.raises(ShardError, match=words):
        build("someone/pets", tmp_path / "out")
    with pytest.raises(ShardError, match="folder './pets' not found"):
        build("./pets", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match="cannot be opened(?s:.*)a folder of parquet files"):
        build(tmp_path / "empty", tmp_path / "out")


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"'datasets'.*not installed(?s:.*)pip install 'diffprobe\[hub\]'"):
        build("someone/pets", tmp_path / "out")


def test_the_command_builds_and_names_the_next_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = as_parquet(tmp_path / "pets"), tmp_path / "shards"
    command = ["data", "build", "hub", str(source), "--out", str(out), "--split", "train", "--split", "validation=test"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "test: 3 samples" in printed.out and f"diffprobe data verify {out}" in printed.out
    assert "data.val_fraction=0.1" in printed.err and "--val 0.1" in printed.err
    shutil.rmtree(source)
    assert main(["data", "verify", str(out)]) == 0


def test_a_finished_build_refuses_another_data_set(tmp_path: Path) -> None:
    rows(0, 4).save_to_disk(str(tmp_path / "one"))
    rows(100, 4).save_to_disk(str(tmp_path / "two"))
    build(tmp_path / "one", tmp_path / "out")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    build(tmp_path / "copy", tmp_path / "out", name="one")
    with pytest.raises(ShardError, match="other settings(?s:.*)source_digest: [0-9a-f]{64} there"):
        build(tmp_path / "two", tmp_path / "out")


def test_another_commit_on_the_hub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffprobe.shards.datasets import hub

    monkeypatch.setattr(hub, "open_splits", lambda *a, **k: ({"train": rows(0, 4)}, "a1"))
    build("someone/pets", tmp_path / "out")
    monkeypatch.setattr(hub, "open_splits", lambda *a, **k: ({"train": rows(0, 4)}, "b2"))
    with pytest.raises(ShardError, match="commit: a1 there, b2 here"):
        build("someone/pets", tmp_path / "out")


@pytest.mark.parametrize("file", ["a.tar", "a.pkl", "a.pickle", "a.csv", "a.jsonl"])
def test_other_formats_are_refused_before_anything_is_read(file, tmp_path: Path) -> None:
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets" / file).write_bytes(b"x,y\n1,2\n")
    with pytest.raises(ShardError, match="not read(?s:.*)allowed: parquet, arrow"):
        build(tmp_path / "pets", tmp_path / "out")


def test_an_image_file_outside_the_folder_is_a_faulty_row(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(encoded(1))
    (tmp_path / "pets").mkdir()
    (tmp_path / "pets/link.jpg").symlink_to(tmp_path / "secret.jpg")
    for name in ("secret.jpg", "pets/link.jpg"):
        row = {"image": [{"bytes": None, "path": str(tmp_path / name)}]}
        table = pa.table(row, schema=datasets.Features(image=datasets.Image()).arrow_schema)
        pq.write_table(table, tmp_path / "pets/train.parquet")
        with pytest.raises(ShardError, match=f"outside the data set .*{name}"):
            build(tmp_path / "pets", tmp_path / f"out-{Path(name).stem}")


def test_the_name_hub_is_not_offered_as_a_data_set_to_build() -> None:
    with pytest.raises(ShardError) as caught:
        ShardSet.load("hub")
    assert "build hub --out" not in str(caught.value) and "build folder DIR --out" in str(caught.value)
