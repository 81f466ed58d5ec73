"""The rules of the set on its small source, and the shipped shards."""

import hashlib
import io
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ShardError
from diffprobe.shards.datasets import emoji
from diffprobe.shards.datasets.emoji import Emoji, is_combination, read_names, split_families
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


def drawn(family: str, *, group: str = "people", tones: tuple[str, ...] = (), times: int = 1) -> list[Emoji]:
    return [Emoji("1f600", family, (), group, "role", tones)] * times


def test_whole_families_are_split_and_alike_ones_spread_evenly():
    emojis = [
        emoji
        for number in range(300)
        for emoji in drawn(f"plain {number}", group=f"g{number % 3}", times=1 + number % 7)
    ]
    emojis += [emoji for number in range(60) for emoji in drawn(f"toned {number}", tones=("light",), times=30)]
    first = {emoji.family: emoji.family for emoji in emojis}
    splits = split_families(emojis, first)
    assert set(splits) == set(first)
    for part in ("plain", "toned"):
        counts = Counter(split for family, split in splits.items() if family.startswith(part))
        total = counts.total()
        assert abs(counts["test"] - total / 10) <= 1 and abs(counts["val"] - total / 10) <= 1
    per_split = Counter(splits[emoji.family] for emoji in emojis)
    assert per_split["test"] == pytest.approx(per_split["val"], rel=0.1)
    shuffled = [emojis[i] for i in np.random.default_rng(0).permutation(len(emojis))]
    assert split_families(shuffled, first) == splits  # the order of the drawings does not matter


def test_families_that_share_a_drawing_are_in_one_split():
    emojis = [emoji for number in range(100) for emoji in drawn(f"family {number}")]
    first = {emoji.family: emoji.family for emoji in emojis}
    apart = split_families(emojis, first)
    one, other = (next(family for family in sorted(apart) if apart[family] == split) for split in ("test", "val"))
    first[max(one, other)] = min(one, other)
    joined = split_families(emojis, first)
    assert joined[one] == joined[other]


def test_combinations_of_a_family_are_held_out_together_and_never_all():
    combinations = {
        (style, tones) for style in ("noto", "twemoji") for tones in [(), *((t,) for t in emoji.SKIN_TONES)]
    }
    held_out = 0
    for number in range(300):
        found = {chosen for chosen in combinations if is_combination(f"family {number}", *chosen, combinations)}
        assert found < combinations
        held_out += len(found)
    assert held_out / (300 * len(combinations)) == pytest.approx(0.1, abs=0.02)
    assert not any(is_combination(f"base {n}", "noto", (), {("noto", ())}) for n in range(200))


def test_gender_is_given_where_the_family_has_as_many_men_as_women(sources):
    """Of two genders of one family, one drawing each has the attribute; a lone one has none."""

    def genders() -> dict[str, str | None]:
        return {
            key: json.loads(members["json"])["attributes"].get("gender")
            for _, key, members in emoji.samples(**sources)
            if key.startswith("noto")
        }

    names = json.loads(sources["names"].read_text())
    names[2]["label"], names[1]["label"], names[1]["skins"] = "man running", "woman dancing", []
    sources["names"].write_text(json.dumps(names))
    assert set(genders().values()) == {None}
    names[1]["label"] = "woman running"
    sources["names"].write_text(json.dumps(names))
    assert {"man", "woman"} < set(genders().values()) | {None}
    assert genders()["noto-1f408-fe0f"] == "man" and genders()["noto-1f46b"] == "woman"


def test_equal_drawings_link_their_families(sources):
    first = {split for split, key, _ in emoji.samples(**sources)}
    assert first <= set(emoji.CARD.counts)
    assert emoji._first_of_equals(["b", "a", "c", "d"], [b"1", b"1", b"1", b"2"]) == {
        "a": "a", "b": "a", "c": "a", "d": "d",
    }  # fmt: skip


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
    assert {split: shipped.n_samples(split) for split in shipped.splits()} == dict(emoji.CARD.counts)
    for shard in shipped.shards:
        assert digest_file(shipped.root / shard.file) == shard.sha256
        assert sum(row.shard == shard.file for row in rows.values()) == shard.n_samples
    assert all(shipped.classes[row.record["label"]] == row.record["class_name"] for row in rows.values())
    for name, values in shipped.attributes.items():
        assert set(values) == {row.record["attributes"].get(name) for row in rows.values()} - {None}, name
    assert set(shipped.attributes) == {"style", "group", "base", "family", "skin_tone", "gender"}


def test_val_and_test_are_families_that_no_other_split_has(rows):
    families, drawings = defaultdict(set), defaultdict(set)
    for row in rows.values():
        families[row.split].add(row.record["attributes"]["family"])
        drawings[row.split].add(row.drawing)
    assert len(families["test"]) == 123 and len(families["val"]) == 123
    for split in ("val", "test"):
        others = [other for other in drawings if other != split]
        assert not families[split] & set().union(*(families[other] for other in others))
        assert not drawings[split] & set().union(*(drawings[other] for other in others))
    assert families["combinations"] <= families["train"]


def test_val_and_test_are_alike(rows):
    """Shares of each group, of skin tones and of genders differ by little: neither split is the easier one."""
    counts: dict[str, Counter] = {"val": Counter(), "test": Counter()}
    for row in rows.values():
        if row.split in counts:
            known = row.record["attributes"]
            counts[row.split].update(f"{name} {known.get(name)}" for name in ("group", "skin_tone", "gender"))
    totals = {split: sum(n for name, n in found.items() if name.startswith("group")) for split, found in counts.items()}
    for name in counts["val"] | counts["test"]:
        shares = [counts[split][name] / totals[split] for split in ("val", "test")]
        assert shares[0] == pytest.approx(shares[1], abs=0.05), name


def test_genders_are_balanced_in_each_family_of_a_split(rows):
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for row in rows.values():
        known = row.record["attributes"]
        if "gender" in known:
            counts[row.split, known["family"], known["style"], known.get("skin_tone")][known["gender"]] += 1
    assert len({family for _, family, *_ in counts}) == 82
    assert all(count["man"] == count["woman"] for count in counts.values())


def test_a_shipped_combination_is_nowhere_in_train(rows):
    """Style and skin tones of a base: those of `combinations` are unseen in train."""
    seen: dict[str, set] = defaultdict(set)
    for row in rows.values():
        tones = tuple(part for part in row.record["caption"].split(", ") if part.endswith(" skin tone"))
        seen[row.split].add((row.record["attributes"]["base"], row.record["attributes"]["style"], tones))
    assert len(seen["combinations"]) > 100 and not seen["combinations"] & seen["train"]


def test_the_card_counts_samples_and_families(shipped, rows):
    card = (shipped.root / "README.md").read_text("utf-8")
    for split in shipped.splits():
        families = {row.record["attributes"]["family"] for row in rows.values() if row.split == split}
        assert f"| {split} | {shipped.n_samples(split):,} | {len(families)} |" in card
