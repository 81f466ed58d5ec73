"""Shards of other tools: the fields that are found, the names that are proposed, and what only the user can decide."""

import io
import json
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from diffprobe.cli.main import main
from diffprobe.core.errors import ShardError
from diffprobe.shards.adopt import render_survey, survey
from diffprobe.shards.annotation import Fields
from diffprobe.shards.decode import decode_sample
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import read_shard
from diffprobe.shards.writer import write_shard


def image(kind: str = "jpeg") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind)
    return buffer.getvalue()


def as_json(**record: object) -> bytes:
    return json.dumps(record).encode()


def first(shard_set: ShardSet) -> object:
    raw = next(read_shard(shard_set.root / shard_set.shards[0].file))
    return decode_sample(raw, shard_set, fields=shard_set.fields)


def test_shards_of_img2dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in range(2):
        rows = []
        for number in range(3):
            key = f"{shard:05d}{number:04d}"
            record = {"caption": f"cat {number}", "url": "http://x/y.jpg", "key": key, "status": "success",
                      "error_message": None, "width": 8, "height": 8, "exif": "{}", "sha256": "0"}  # fmt: skip
            rows.append((key, {"jpg": image(), "txt": b"cat", "json": as_json(**record)}))
        write_shard(tmp_path / "laion" / f"{shard:05d}.tar", rows)
        (tmp_path / "laion" / f"{shard:05d}_stats.json").write_text("{}")
        (tmp_path / "laion" / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    before = {path: path.read_bytes() for path in (tmp_path / "laion").iterdir()}
    out = tmp_path / "index" / "index.json"
    assert main(["data", "adopt", str(tmp_path / "laion")]) == 2
    assert "2 shards without a split" in (told := capsys.readouterr()).err and "--split train" in told.err
    assert main(["data", "adopt", str(tmp_path / "laion"), "--split", "train", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for fact in ("fields of 6 samples in 2 shards", "jpg           JPEG", "error_message  null", "image       jpg",
                 "caption     json: caption", "not read: json: url, json: key", "laion: 2 shards", "train: 6 samples",
                 f"next: diffprobe data verify {out}"):  # fmt: skip
        assert fact in printed, fact
    assert {path: path.read_bytes() for path in (tmp_path / "laion").iterdir()} == before
    assert first(ShardSet.load(out)).caption == "cat 0"  # type: ignore[attr-defined]
    assert main(["data", "verify", str(out)]) == 0


def test_shards_of_webdatasets_own_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(3):
            picture = Image.new("RGB", (8, 8), (number, 0, 0))
            writer.write(
                {"__key__": f"s{number}", "jpg": picture, "cls": number, "info.json": {"text": "a", "tags": ["x"]}}
            )
    assert main(["data", "adopt", str(tmp_path), "--name", "mine", "--licence", "CC0"]) == 0
    printed = capsys.readouterr().out
    for fact in (
        "label       cls",
        "caption     info.json: text  (found",
        "not read: info.json: tags",
        "mine: 2 shards",
    ):
        assert fact in printed, fact
    shard_set = ShardSet.load(tmp_path)
    assert shard_set.fields == Fields(json="info.json", caption="text")
    assert (shard_set.licence, shard_set.classes) == ("CC0", ("0", "1", "2"))


def test_names_are_found_by_content(tmp_path: Path) -> None:
    record = {"label": "cat", "prompt": "a cat", "meta": {"age": 3}}
    write_shard(tmp_path / "train-0.tar", [("k", {"input.image": image("png"), "data": as_json(**record)})])
    found = survey(tmp_path)
    assert found.fields == Fields(
        image=("input.image",), json="data", label="label_id", class_name="label", caption="prompt", attributes="meta"
    )
    assert set(found.chosen) == {"image", "json", "label", "class_name", "caption", "attributes"}
    assert "class_name  data: label  (found; --field class_name=NAME chooses another)" in "\n".join(
        render_survey(found)
    )
    given = survey(tmp_path, given={"caption": "label", "class_name": "nothing"})
    assert (given.fields.caption, given.fields.class_name, given.fields.label) == ("label", "nothing", "label")


def test_two_known_names_are_not_guessed_between(tmp_path: Path) -> None:
    record = as_json(text="a", prompt="b", target="not a number", attrs={"nested": {"a": 1}})
    write_shard(tmp_path / "train-0.tar", [("k", {"jpg": image(), "json": record})])
    found = survey(tmp_path)
    assert found.fields == Fields() and found.chosen == ()
    assert "not read: json: text, json: prompt, json: target, json: attrs" in render_survey(found)


def test_masks_beside_the_image_are_shown_as_not_read(tmp_path: Path) -> None:
    files = {"png": image("png"), "mask.png": image("png"), "json": as_json(caption="a")}
    write_shard(tmp_path / "train-0.tar", [("k", files)])
    found = survey(tmp_path)
    assert found.fields == Fields() and any("mask.png" in line and "not read" in line for line in render_survey(found))


@pytest.mark.parametrize(
    ("files", "facts"),
    [
        ({"a.png": image("png"), "b.png": image("png")}, "'k': several images: a.png, b.png(?s:.*)--field image=a.png"),
        ({"ppm": b"P6\n\xff\xff"}, "no field of 1 samples is a JPEG, PNG or WebP(?s:.*)ppm +5 bytes"),
        ({"jpg": image(), "a.json": b"{}", "b.json": b"{}"}, "several fields are JSON(?s:.*)--field json=a.json"),
    ],
)
def test_what_only_the_user_can_decide(tmp_path: Path, files: dict[str, bytes], facts: str) -> None:
    write_shard(tmp_path / "train-0.tar", [("k", files)])
    with pytest.raises(ShardError, match=facts):
        survey(tmp_path)


def test_the_user_decides(tmp_path: Path) -> None:
    write_shard(tmp_path / "train-0.tar", [("k", {"a.png": image("png"), "b.png": image("png")})])
    assert main(["data", "adopt", str(tmp_path), "--field", "image=b.png"]) == 0
    assert ShardSet.load(tmp_path).fields.image == ("b.png",)


def test_folders_without_shards_or_samples(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no shard in"):
        survey(tmp_path)
    write_shard(tmp_path / "train-0.tar", [])
    with pytest.raises(ShardError, match="no sample"):
        survey(tmp_path)
