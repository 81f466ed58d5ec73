"""The rules of the set on its small source, and the shipped shards."""

import hashlib
import io
import json
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ShardError
from diffprobe.shards.datasets import emoji
from diffprobe.shards.datasets.emoji import Emoji, read_names, split_of
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import read_shard


def named(label: str, *tones: str, tags: tuple[str, ...] = ()) -> Emoji:
    return Emoji("1f600", label, tags, "people", "role", tones)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Path]:
    """The small source: drawings of five emoji in Noto, of two of them in Twemoji."""
    return emoji.tiny(tmp_path)[0]


@pytest.fixture
def names(sources: dict[str, Path]) -> Path:
    return sources["names"]


@pytest.mark.parametrize(
    ("label", "tones", "base", "family", "gender"),
    [
        ("woman health worker", (), "woman health worker", "health worker", "woman"),
        ("man health worker: dark skin tone", ("dark",), "man health worker", "health worker", "man"),
        ("man: medium skin tone, beard", ("medium",), "man: beard", "beard", "man"),
        ("woman and man holding hands", (), "woman and man holding hands", "holding hands", None),
        ("boy", (), "boy", "person", "man"),
        ("men wrestling", (), "men wrestling", "wrestling", "man"),
        ("man running facing right", (), "man running", "running", "man"),
        ("person walking: facing right, dark skin tone", ("dark",), "person walking", "walking", None),
        ("mango", (), "mango", "mango", None),  # only whole words count
        ("white man’s shoe", (), "white man’s shoe", "white man’s shoe", "man"),
    ],
)
def test_base_family_and_gender_come_from_the_name(label, tones, base, family, gender):
    one = named(label, *tones)
    assert (one.base, one.family, one.gender) == (base, family, gender)


def test_styles_tones_and_directions_share_a_base_and_genders_a_family():
    labels = [
        "health worker",
        "health worker: light skin tone",
        "woman health worker",
        "man health worker facing right",
    ]
    found = [named(label, *["light"] * ("tone" in label)) for label in labels]
    assert [one.base for one in found] == [*["health worker"] * 2, "woman health worker", "man health worker"]
    assert {one.family for one in found} == {"health worker"}


def test_captions_name_style_tags_and_tones():
    worker = named("health worker: light skin tone", "light", tags=("doctor", "health", "care", "nurse", "ward"))
    assert worker.captions("noto") == [
        "noto emoji, health worker, doctor, care, nurse, light skin tone",  # "health" adds nothing
        "noto emoji, health worker, light skin tone",
        *(f"noto emoji, health worker, {tag}, light skin tone" for tag in ("doctor", "care", "nurse", "ward")),
    ]
    assert named("cat").captions("twemoji") == ["twemoji emoji, cat"]
    assert named("cat", tags=("pet",)).captions("noto") == ["noto emoji, cat, pet", "noto emoji, cat"]


def test_names_are_read_with_tones_and_without_components(names):
    found = read_names(names)
    assert [(e.hexcode, e.name, e.tones) for e in found] == [
        ("1f9d1-200d-2695", "health worker", ()),
        ("1f9d1-1f3fb-200d-2695", "health worker", ("light",)),
        ("1f46b", "couple", ()),
        ("1f46b-1f3fb", "couple", ("light", "dark")),
        ("1f408-fe0f", "cat", ()),
    ]
    assert {(e.group, e.subgroup) for e in found} == {("people", "role"), ("animals", "mammal")}
    assert found[1].tags == found[0].tags  # a tone has the tags of its base


def test_the_split_rule():
    combinations = {
        (style, tones) for style in ("noto", "twemoji") for tones in [(), *((t,) for t in emoji.SKIN_TONES)]
    }
    counts: dict[str, int] = defaultdict(int)
    for number in range(400):
        family = f"family {number // 2}"
        splits = {chosen: split_of(f"base {number}", family, *chosen, combinations) for chosen in combinations}
        assert "test" not in splits.values() or set(splits.values()) == {"test"}  # in test as a whole or not at all
        assert "val" not in splits.values() or "train" in splits.values()
        for split in splits.values():
            counts[split] += 1
        if "test" not in splits.values():  # another base of the family has the same combinations in val
            others = {split_of(f"other {i}", family, *chosen, combinations) for i in range(9) for chosen in combinations
                      if splits[chosen] == "val"}  # fmt: skip
            assert others <= {"val", "test"}
    shares = [counts[split] / (400 * len(combinations)) for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.81, 0.09, 0.1], abs=0.04)  # of 400 bases a tenth is 40 +- 6
    alone = {("noto", ())}
    assert {split_of(f"base {n}", f"base {n}", "noto", (), alone) for n in range(200)} == {"train", "test"}


def test_bases_that_share_a_drawing_are_in_one_split(sources):
    def splits() -> dict[str, str]:
        return {key.split("-", 1)[1]: split for split, key, _ in emoji.samples(**sources)}

    apart = splits()
    assert apart["1f408-fe0f"] == apart["1f46b"] == "train"
    names = json.loads(sources["names"].read_text())
    # Of these two names the first one alone would be in test, by its hash; now both are.
    names[2]["label"], names[1]["label"], names[1]["skins"] = "a1", "b1", []
    sources["names"].write_text(json.dumps(names))
    assert (splits()["1f408-fe0f"], splits()["1f46b"]) == ("test", "train")
    (sources["noto"] / "1f408.png").write_bytes((sources["noto"] / "1f46b.png").read_bytes())
    assert splits()["1f408-fe0f"] == splits()["1f46b"] == "test"


def test_build_writes_the_same_bytes_each_time(sources, tmp_path):
    first, second = (emoji.build(**sources, out=tmp_path / name) for name in ("a", "b"))
    emoji.build(**sources, out=tmp_path / "b")  # and over what is there
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert first.digest == second.digest and ShardSet.load(tmp_path / "a").digest == first.digest
    assert first.classes == ("mammal", "role") and sum(shard.n_samples for shard in first.shards) == 7


def test_a_sample_holds_its_drawing_on_white_and_what_is_known(sources):
    found = {key: members for _, key, members in emoji.samples(**sources)}
    assert list(found)[:2] == ["noto-1f9d1-200d-2695", "twemoji-1f9d1-200d-2695"] and len(found) == 7
    members = found["twemoji-1f9d1-1f3fb-200d-2695"]
    record = json.loads(members["json"])
    assert record["attributes"] == {
        "style": "twemoji", "group": "people", "base": "health worker", "family": "health worker", "skin_tone": "light",
    }  # fmt: skip
    assert record["class_name"] == "role" and record["label"] == 1 and record["caption"] == record["captions"][0]
    assert "skin_tone" not in json.loads(found["noto-1f46b-1f3fb"]["json"])["attributes"]  # two tones, no one value
    image = Image.open(io.BytesIO(members["webp"]))
    drawing = Image.open(sources["twemoji"] / "1f9d1-1f3fb-200d-2695.png")
    assert image.mode == "RGB" and image.getpixel((63, 63)) == (255, 255, 255)
    assert image.getpixel((25, 25)) == drawing.getpixel((25, 25))[:3] == (200, 40, 90)  # lossless


def test_wrong_sources_are_refused_by_file(sources, tmp_path):
    def error(**changed: Path) -> str:
        with pytest.raises(ShardError) as raised:
            emoji.build(**{**sources, **changed}, out=tmp_path / "out")
        return str(raised.value)

    assert "does not exist" in error(names=tmp_path / "nothing.json")
    assert "emoji-datasource" in error(twemoji=tmp_path / "nothing")  # one style alone is not the set
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "data.json"
    (tmp_path / "other" / "messages.json").write_bytes((tmp_path / "messages.json").read_bytes())
    for text in ("{", '{"a": 1}', '[{"group": 1, "hexcode": "1f408"}]', "[1]"):
        other.write_text(text)
        assert "emojibase-data 17.0.0" in error(names=other), text
    (sources["noto"] / "1f408.png").write_bytes(b"no image")
    assert "1f408.png is not a readable image" in error()
    Image.new("RGBA", (32, 32)).save(sources["noto"] / "1f408.png")
    assert "1f408.png has size (32, 32)" in error()
    assert not (tmp_path / "out").exists()


def test_shards_of_another_build_are_not_taken_in(sources, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-0007.tar.gz").write_bytes(b"old")
    with pytest.raises(ShardError, match="train-0007.tar.gz"):
        emoji.build(**sources, out=out)


class Row(NamedTuple):
    split: str
    shard: str
    record: dict
    drawing: str


@pytest.fixture(scope="module")
def shipped() -> ShardSet:
    return ShardSet.load("emoji")


@pytest.fixture(scope="module")
def rows(shipped) -> dict[str, Row]:
    """What the shipped shards hold, by key; the drawing as the digest of its bytes."""
    return {
        raw.key: Row(
            shard.split, shard.file, json.loads(raw.files["json"]), hashlib.sha256(raw.files["webp"]).hexdigest()
        )
        for shard in shipped.shards
        for raw in read_shard(shipped.root / shard.file)
    }


def test_the_shipped_set_is_what_its_index_says(shipped, rows):
    assert len(rows) == sum(shard.n_samples for shard in shipped.shards) == 6610
    assert len(shipped.classes) == 94 and len(shipped.attributes["group"]) == 8
    assert {split: shipped.n_samples(split) for split in shipped.splits()} == {"train": 5457, "val": 577, "test": 576}
    for shard in shipped.shards:
        assert digest_file(shipped.root / shard.file) == shard.sha256
        assert sum(row.shard == shard.file for row in rows.values()) == shard.n_samples
    assert all(shipped.classes[row.record["label"]] == row.record["class_name"] for row in rows.values())
    for name, values in shipped.attributes.items():
        assert set(values) == {row.record["attributes"].get(name) for row in rows.values()} - {None}, name
    assert set(shipped.attributes) == {"style", "group", "base", "family", "skin_tone", "gender"}


def test_nothing_of_the_shipped_test_split_is_anywhere_else(rows):
    bases, drawings = defaultdict(set), defaultdict(set)
    for row in rows.values():
        bases[row.split].add(row.record["attributes"]["base"])
        drawings[row.split].add(row.drawing)
    assert len(bases["test"]) == 133
    assert not bases["test"] & (bases["train"] | bases["val"]) and bases["val"] <= bases["train"]
    assert not drawings["test"] & (drawings["train"] | drawings["val"]) and not drawings["val"] & drawings["train"]


def test_a_shipped_val_combination_is_nowhere_in_train(rows):
    """Style and skin tones of a base: those of val are unseen in train."""
    seen: dict[str, set] = defaultdict(set)
    for row in rows.values():
        tones = tuple(part for part in row.record["caption"].split(", ") if part.endswith(" skin tone"))
        seen[row.split].add((row.record["attributes"]["base"], row.record["attributes"]["style"], tones))
    assert len(seen["val"]) > 100 and not seen["val"] & seen["train"]
