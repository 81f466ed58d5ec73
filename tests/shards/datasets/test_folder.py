"""`data build folder`: splits, classes and annotations of real files, bad input, and the whole command."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.shards.datasets.folder import build
from diffprobe.shards.decode import decode_sample
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import RawSample, read_shard
from diffprobe.shards.verify import verify

CALTECH = Path(__file__).resolve().parents[4] / "shared/data/caltech101-128"


def jpeg(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 9), (number % 256, 7, 200)).save(buffer, "jpeg")
    return buffer.getvalue()


def write(root: Path, n: int = 40, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for number in range(n):
        path = root / classes[number % len(classes)] / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    return root


def samples(shard_set: ShardSet) -> dict[str, tuple[str, RawSample]]:
    return {
        raw.key: (shard.split, raw) for shard in shard_set.shards for raw in read_shard(shard_set.root / shard.file)
    }


def test_class_folders_are_split_by_hash_and_copied_byte_for_byte(tmp_path: Path) -> None:
    source = write(tmp_path / "pets")
    built = build(source, tmp_path / "out")
    found = samples(built)
    assert (built.name, built.classes, built.splits()) == ("pets", ("cat", "dog"), ("test", "train", "val"))
    assert len(found) == 40 and verify(built).faults == ()
    for key, (_, raw) in found.items():
        assert raw.files["jpg"] == (source / f"{key}.jpg").read_bytes()
        assert json.loads(raw.files["json"]) == {"class_name": key.split("/")[0]}
    write(source, 60)  # more images leave the others in their splits
    again = samples(build(source, tmp_path / "more"))
    assert all(again[key][0] == split for key, (split, _) in found.items())


def test_split_folders_and_a_val_split_taken_from_train(tmp_path: Path) -> None:
    for split in ("training", "test"):
        write(tmp_path / "pets" / split)
    notes: list[str] = []
    assert build(tmp_path / "pets", tmp_path / "a", announce=notes.append).splits() == ("test", "train")
    assert any("no split 'val'" in note and "--val 0.1" in note for note in notes)
    built = build(tmp_path / "pets", tmp_path / "b", val=0.3)
    assert built.n_samples("test") == 40 and 0 < built.n_samples("val") < 30
    assert built.n_samples("train") + built.n_samples("val") == 40
    with pytest.raises(ConfigError, match="--test 0.2: the folder names .* 'test'"):
        build(tmp_path / "pets", tmp_path / "c", test=0.2)


def test_a_group_is_never_in_two_splits(tmp_path: Path) -> None:
    source = write(tmp_path / "pets")
    table = tmp_path / "t.csv"
    lines = [f"{path.relative_to(source)},animal {int(path.stem) // 4}" for path in sorted(source.rglob("*.jpg"))]
    table.write_text("\n".join(["file,animal", *lines]))
    built = build(source, tmp_path / "out", table=table, group="animal", val=0.3, test=0.3)
    homes: dict[str, set[str]] = {}
    for split, raw in samples(built).values():
        homes.setdefault(json.loads(raw.files["json"])["attributes"]["animal"], set()).add(split)
    assert len(homes) == 10 and all(len(splits) == 1 for splits in homes.values())
    assert built.attributes["animal"] == tuple(sorted(homes))
    with pytest.raises(ConfigError, match="--group owner"):
        build(source, tmp_path / "b", table=table, group="owner")
    table.write_text("\n".join(["file,animal", *lines[1:], f"{lines[0].split(',')[0]},"]))
    with pytest.raises(ShardError, match="1 images have no value of the group 'animal'(?s:.*)cat/000.jpg"):
        build(source, tmp_path / "c", table=table, group="animal")
    with pytest.raises(ConfigError, match="--group .*--table"):
        build(source, tmp_path / "d", group="animal")


def test_a_group_shared_by_split_folders_is_refused(tmp_path: Path) -> None:
    lines = ["file,animal"]
    for split in ("train", "test"):
        write(tmp_path / "pets" / split, 4)
        lines += [f"{split}/{('cat', 'dog')[i % 2]}/{i:03d}.jpg,animal {i}" for i in range(4)]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(ShardError, match="4 values of 'animal' .*(?s:.*)animal 0: test, train"):
        build(tmp_path / "pets", tmp_path / "out", table=tmp_path / "t.csv", group="animal")


def test_a_table_and_a_folder_that_differ(tmp_path: Path) -> None:
    source, table, notes = write(tmp_path / "pets"), tmp_path / "t.csv", list[str]()
    names = [path.relative_to(source).as_posix() for path in sorted(source.rglob("*.jpg"))]
    table.write_text("\n".join(["file,caption", *(f"{name},about {name}" for name in names[1:]), "cat/none.jpg,x"]))
    with pytest.raises(ShardError, match="2 files .*(?s:.*)cat/000.jpg: not in the table(?s:.*)cat/none.jpg: in the"):
        build(source, tmp_path / "out", table=table)
    assert not (tmp_path / "out").exists()
    built = build(source, tmp_path / "out", table=table, on_error="skip", announce=notes.append)
    assert len(samples(built)) == 39 and any("left out: 2" in note for note in notes)
    assert len((tmp_path / "out/left_out.txt").read_text().splitlines()) == 2
    assert json.loads(samples(built)["cat/002"][1].files["json"])["caption"] == "about cat/002.jpg"
    table.write_text("file,class\ncat/000.jpg,dog\n")
    with pytest.raises(ShardError, match="cat/000.jpg: its class is 'cat' .* 'dog'"):
        build(source, tmp_path / "b", table=table, on_error="skip")
    table.write_text("file,class\nelsewhere/000.jpg,dog\n")
    with pytest.raises(ShardError, match="names no image"):
        build(source, tmp_path / "b", table=table, on_error="skip")


def test_a_share_without_an_image_and_an_out_folder_in_the_source(tmp_path: Path) -> None:
    source = write(tmp_path / "pets", 2)
    with pytest.raises(ShardError, match="no image falls into split 'val' .2 images, share 0.1"):
        build(source, tmp_path / "out")
    with pytest.raises(ShardError, match="is in the image folder"):
        build(source, source / "out")
    with pytest.raises(ConfigError, match="--jobs 0"):
        build(source, tmp_path / "out", jobs=0)


def test_the_command_lists_unreadable_images_and_prints_the_next_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write(tmp_path / "pets"), tmp_path / "shards"
    (source / "cat/002.jpg").write_bytes(jpeg(2)[:-40])
    (source / "dog/003.jpg").write_bytes(b"")
    (source / "dog/readme.txt").write_text("x")
    command = ["data", "build", "folder", str(source), "--out", str(out), "--jobs", "1"]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert "2 of 40 images cannot be read" in message and "not images, and not read: 1 .txt" in message
    assert "cat/002.jpg, sample 'cat/002'" in message and "dog/003.jpg" in message and "--on-error skip" in message
    assert not (out / "index.json").exists()
    assert main([*command, "--on-error", "skip"]) == 0
    printed = capsys.readouterr()
    assert "left out: 2" in printed.err and f"next: diffprobe data verify {out}" in printed.out
    assert f"data.path={out}" in printed.out
    assert main(["data", "verify", str(out)]) == 0
    assert "38 valid samples, 0 faults" in capsys.readouterr().out


def test_class_folders_that_differ_by_split_are_named_or_accepted(tmp_path: Path) -> None:
    write(tmp_path / "pets/train", 20, ("cat", "dog", "bird"))
    write(tmp_path / "pets/test", 20, ("cat", "dogs"))
    words = "lack class folders that others have(?s:.*)test: without bird, dog\n  train: without dogs\n"
    with pytest.raises(ShardError, match=words + "(?s:.*)--classes union"):
        build(tmp_path / "pets", tmp_path / "out")
    built = build(tmp_path / "pets", tmp_path / "out", classes="union")
    assert built.classes == ("bird", "cat", "dog", "dogs")


@pytest.mark.skipif(not CALTECH.is_dir(), reason="needs the Caltech-101 shards")
@pytest.mark.parametrize("labels", [(0, 2, 3, 5), pytest.param(range(101), marks=pytest.mark.slow)])
def test_caltech_from_folders_has_the_pixels_and_labels_of_the_given_shards(
    labels: Sequence[int], tmp_path: Path
) -> None:
    classes = json.loads((CALTECH / "classes.json").read_text())
    given: dict[str, tuple[str, str, RawSample]] = {}
    table = ["file_name,label,class_name"]
    for shard in sorted(path.name for path in CALTECH.glob("*-0000.tar" if len(labels) < 101 else "*.tar")):
        for raw in read_shard(CALTECH / shard):
            split, record = shard.split("-")[0], json.loads(raw.files["json"])
            if record["label"] not in labels:
                continue
            path = tmp_path / "images" / split / record["class_name"] / f"{raw.key.replace('/', '-')}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw.files["jpg"])
            name = path.relative_to(tmp_path / "images").as_posix()
            given[name.removesuffix(".jpg")] = (split, record["class_name"], raw)
            table.append(f"{name},{record['label']},{record['class_name']}")
    (tmp_path / "t.csv").write_text("\n".join(table))
    built = build(tmp_path / "images", tmp_path / "out", table=tmp_path / "t.csv", val=0.1, samples_per_shard=40)
    found = samples(built)
    assert len(given) > 100 and (len(labels) < 101 or len(given) == 8677) and found.keys() == given.keys()
    for key, (split, class_name, raw) in given.items():
        where, ours = found[key]
        sample, theirs = decode_sample(ours, built, fields=built.fields), Image.open(io.BytesIO(raw.files["jpg"]))
        assert where == split or (where, split) == ("val", "train")
        assert sample.image.tobytes() == theirs.convert("RGB").tobytes()
        assert (sample.label, sample.class_name) == (classes.index(class_name), class_name)
