"""The embedded data set `emoji`: Noto and Twemoji drawings with captions and known attributes.

Source: the npm packages `emoji-datasource-google` and `emoji-datasource-twitter` 16.0.0 (folder ``img/*/64``) and
`emojibase-data` 17.0.0 (``en/data.json`` with ``en/messages.json`` beside it). Noto emoji: Apache-2.0, Google.
Twemoji graphics: CC BY 4.0, Twitter, Inc. and other contributors. emojibase: MIT, Miles Johnson.

The module decides which drawings are samples, their captions and attributes, and the split of each.
"""

import argparse
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffprobe.core.errors import ShardError
from diffprobe.shards.dataset_card import DatasetCard
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.writer import write_shard

HELP = "Noto and Twemoji drawings, 64 x 64, with captions and attributes"
CARD = DatasetCard(
    name="emoji",
    licence="noto: Apache-2.0; twemoji: CC BY 4.0; names: MIT (see README.md)",
    counts={"train": 4868, "val": 656, "test": 592, "combinations": 494},
    n_classes=94,
    disjoint_by={"test": "family", "val": "family"},
    group="family",
)
SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
N_CAPTION_TAGS = 3
SAMPLES_PER_SHARD = 512
LEFT_OUT_GROUPS = ("component", "flags")

# Words for the person that is shown; a family is a base without them.
_PERSON_WORDS = frozenset("man men woman women person people boy boys girl girls adult child and".split())
_MALE_WORDS = frozenset("man men boy boys".split())
_FEMALE_WORDS = frozenset("woman women girl girls".split())
_SIZE = (64, 64)
_NAMES_FROM = "needed: en/data.json and en/messages.json of emojibase-data 17.0.0"
_DRAWINGS_FROM = "expected: the folder img/*/64 of emoji-datasource"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sources."""
    parser.add_argument("--noto", type=Path, required=True, metavar="DIR", help="img/google/64 of the Noto package")
    parser.add_argument("--twemoji", type=Path, required=True, metavar="DIR", help="img/twitter/64 of Twemoji's")
    parser.add_argument("--names", type=Path, required=True, metavar="FILE", help="en/data.json of emojibase-data")


@dataclass(frozen=True)
class Emoji:
    """One named emoji (a base or one of its skin tones), in any style."""

    hexcode: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    tones: tuple[str, ...]

    @property
    def name(self) -> str:
        """The label without the skin tones that emojibase appends to it."""
        if not self.tones:
            return self.label
        head, _, tail = self.label.rpartition(":")
        kept = [part.strip() for part in tail.split(",") if not part.strip().endswith("skin tone")]
        return head + (": " + ", ".join(kept) if kept else "")

    @property
    def base(self) -> str:
        """The name in lower case, shared by all styles, skin tones and directions.

        >>> Emoji("1F468-200D-2695", "man health worker", (), "people-body", "person-role", ()).base
        'man health worker'
        """
        return re.sub(r":? facing right", "", self.name.lower())

    @property
    def family(self) -> str:
        """The base without the person: "woman health worker" and "man health worker" are one family.

        >>> Emoji("1F468-200D-2695", "man health worker", (), "people-body", "person-role", ()).family
        'health worker'
        """
        words = [word for word in re.findall(r"[\w'.’!?-]+", self.base) if word not in _PERSON_WORDS]
        return " ".join(words) if words else "person"

    @property
    def gender(self) -> str | None:
        """ "man" or "woman" where the name mentions exactly one of them, else None."""
        words = set(re.findall(r"\w+", self.name.lower()))
        male, female = bool(words & _MALE_WORDS), bool(words & _FEMALE_WORDS)
        return None if male == female else ("man" if male else "woman")

    def captions(self, style: str) -> list[str]:
        """Return all captions in one style: with several tags, with the name alone, then with one tag each."""
        tone = [f"{tone} skin tone" for tone in self.tones]
        words = set(re.findall(r"\w+", self.name.lower()))
        tags = [tag for tag in self.tags if not set(re.findall(r"\w+", tag.lower())) <= words]
        choices = [tags[:N_CAPTION_TAGS], [], *([tag] for tag in tags)]
        texts = (", ".join([f"{style} emoji", self.name, *chosen, *tone]) for chosen in choices)
        return list(dict.fromkeys(texts))


def read_names(names: Path) -> list[Emoji]:
    """Read emojibase's `data.json` (and `messages.json` beside it for the names of groups).

    Raises: ShardError if one of the files is missing or has another format.
    """
    messages = names.with_name("messages.json")
    for path in (names, messages):
        if not path.is_file():
            raise ShardError(f"{path} does not exist.", _NAMES_FROM)
    try:
        return _emojis(json.loads(names.read_text("utf-8")), json.loads(messages.read_text("utf-8")))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ShardError(
            f"{names} and {messages.name} do not have emojibase's format: {type(error).__name__}: {error}.", _NAMES_FROM
        ) from error


def _emojis(entries: list[dict[str, Any]], titles: dict[str, Any]) -> list[Emoji]:
    """Turn the two files into emoji, each base followed by its skin tones."""
    groups = {item["order"]: item["key"] for item in titles["groups"]}
    subgroups = {item["order"]: item["key"] for item in titles["subgroups"]}
    found = []
    for entry in entries:
        group = groups.get(entry.get("group", -1))
        if group is None or group in LEFT_OUT_GROUPS:
            continue
        for variant in [entry, *entry.get("skins", [])]:
            tone = variant.get("tone", [])
            tones = [SKIN_TONES[index - 1] for index in (tone if isinstance(tone, list) else [tone])]
            found.append(
                Emoji(
                    hexcode=variant["hexcode"].lower(),
                    label=variant["label"],
                    tags=tuple(str(tag) for tag in entry.get("tags", [])),
                    group=group,
                    subgroup=subgroups[entry["subgroup"]],
                    tones=tuple(dict.fromkeys(tones)),
                )
            )
    return found


def _fraction(*parts: str) -> float:
    """Map text to [0, 1) by its sha256, so that a split depends on names alone, not on order or other samples."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big") / 2**64


def split_families(drawn: Sequence[Emoji], first: Mapping[str, str]) -> dict[str, str]:
    """Assign whole families to `train`, `val` and `test`; the latter two get a tenth of the families each.

    Families are ordered by what they are like: group, whether they have genders and skin tones, number of drawings,
    then a hash of the name. Of each ten in that order the second is `test` and the seventh `val`, so that the two are
    exchangeable and similar in size.

    Args:
        drawn: the emoji of each drawing.
        first: family -> the first of the families that share a drawing with it; they are assigned as one.
    Returns: family -> split.
    """
    members: dict[str, list[Emoji]] = {}
    for emoji in drawn:
        members.setdefault(first[emoji.family], []).append(emoji)

    def likeness(name: str) -> tuple[str, bool, bool, int, float]:
        of = members[name]
        gendered, toned = any(one.gender for one in of), any(one.tones for one in of)
        return (of[0].group, gendered, toned, len(of), _fraction("family", name))

    places = {name: place % 10 for place, name in enumerate(sorted(members, key=likeness))}
    return {family: {1: "test", 6: "val"}.get(places[name], "train") for family, name in first.items()}


def is_combination(
    family: str, style: str, tones: tuple[str, ...], combinations: set[tuple[str, tuple[str, ...]]]
) -> bool:
    """Whether a sample of a training family is held out in `combinations`.

    A tenth of the (style, skin tone) combinations of a family is, the same ones for all of its bases, as long as
    another combination of the base stays in `train`.

    Args:
        combinations: (style, skin tones) of all drawings of the base.
    """
    ranks = {combination: _fraction("val", family, combination[0], *combination[1]) for combination in combinations}
    kept = max(ranks, key=lambda item: (ranks[item], item))
    return ranks[style, tones] < 0.1 and (style, tones) != kept


def _balanced(drawn: Iterable[tuple[Emoji, str]]) -> set[tuple[str, str, tuple[str, ...]]]:
    """Return the (family, style, skin tones) with as many drawings of men as of women, and at least one of each."""
    counts: dict[tuple[str, str, tuple[str, ...]], Counter[str | None]] = {}
    for emoji, style in drawn:
        counts.setdefault((emoji.family, style, emoji.tones), Counter())[emoji.gender] += 1
    return {key for key, count in counts.items() if count["man"] == count["woman"] > 0}


def _encode(path: Path) -> bytes:
    """Return a drawing on white as lossless WebP (the same pixels as PNG, 40 % smaller)."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            size, layer = image.size, image.convert("RGBA")
    except (OSError, SyntaxError) as error:  # the latter is Pillow's for a broken PNG chunk
        raise ShardError(f"{path} is not a readable image: {error}.", _DRAWINGS_FROM) from error
    if size != _SIZE:
        raise ShardError(f"{path} has size {size}, not {_SIZE}.", _DRAWINGS_FROM)
    flat = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    buffer = io.BytesIO()
    flat.save(buffer, format="WEBP", lossless=True, quality=80, method=4)
    return buffer.getvalue()


def _find(folder: Path, hexcode: str) -> Path | None:
    for name in (hexcode, hexcode.replace("-fe0f", "")):
        path = folder / f"{name}.png"
        if path.is_file():
            return path
    return None


def _first_of_equals(families: Sequence[str], images: Sequence[bytes]) -> dict[str, str]:
    """Map each family to the alphabetically first one that a chain of equal drawings connects it to."""
    first = {family: family for family in families}
    by_image: dict[bytes, set[str]] = {}
    for family, image in zip(families, images, strict=True):
        by_image.setdefault(image, set()).add(family)
    chains = [equals for equals in by_image.values() if len(equals) > 1]
    for _ in chains:  # each pass propagates a name by at least one drawing
        for equals in chains:
            least = min(first[family] for family in equals)
            first.update(dict.fromkeys(equals, least))
    return first


def samples(noto: Path, twemoji: Path, names: Path) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """Yield (split, key, members) of every sample, styles within emoji, emoji in emojibase's order."""
    emojis = read_names(names)
    folders = {"noto": noto, "twemoji": twemoji}
    drawn = [
        (emoji, style, path)
        for emoji in emojis
        for style, folder in folders.items()
        if (path := _find(folder, emoji.hexcode)) is not None
    ]
    for style in sorted(set(folders) - {style for _, style, _ in drawn}):
        raise ShardError(f"'{folders[style]}' has no drawing of an emoji in {names}.", _DRAWINGS_FROM)
    classes = sorted({emoji.subgroup for emoji, _, _ in drawn})
    combinations: dict[str, set[tuple[str, tuple[str, ...]]]] = {}
    for emoji, style, _ in drawn:
        combinations.setdefault(emoji.base, set()).add((style, emoji.tones))
    images = [_encode(path) for _, _, path in drawn]
    first = _first_of_equals([emoji.family for emoji, _, _ in drawn], images)
    families = split_families([emoji for emoji, _, _ in drawn], first)
    balanced = _balanced((emoji, style) for emoji, style, _ in drawn)
    for (emoji, style, _), image in zip(drawn, images, strict=True):
        attributes = {"style": style, "group": emoji.group, "base": emoji.base, "family": emoji.family}
        if len(emoji.tones) == 1:
            attributes["skin_tone"] = emoji.tones[0]
        if emoji.gender and (emoji.family, style, emoji.tones) in balanced:
            attributes["gender"] = emoji.gender
        captions = emoji.captions(style)
        record = {
            "attributes": attributes,
            "caption": captions[0],
            "captions": captions,
            "class_name": emoji.subgroup,
            "label": classes.index(emoji.subgroup),
        }
        members = {"json": json.dumps(record, ensure_ascii=False, sort_keys=True).encode(), "webp": image}
        split = families[emoji.family]
        if split == "train" and is_combination(emoji.family, style, emoji.tones, combinations[emoji.base]):
            split = "combinations"
        yield split, f"{style}-{emoji.hexcode}", members


def build(noto: Path, twemoji: Path, names: Path, out: Path) -> ShardSet:
    """Build the shard set from the unpacked packages, the same bytes each time.

    Samples are in the order of a hash of their key, so that the first shards are a random sample of the set.

    Args:
        noto, twemoji: folders of 64 x 64 PNG files named by hexcode.
        names: emojibase's `en/data.json`, with `messages.json` beside it.
        out: folder for ``<split>-NNNN.tar.gz`` and ``index.json``; made if missing.

    Raises: ShardError if a source is missing or has another format, or if `out` contains other shards.
    """
    by_split: dict[str, list[tuple[str, dict[str, bytes]]]] = {name: [] for name in CARD.counts}
    for split, key, members in samples(noto, twemoji, names):
        by_split[split].append((key, members))
    shards = {}
    for split, rows in by_split.items():
        rows.sort(key=lambda row: _fraction("order", row[0]))
        for number, start in enumerate(range(0, len(rows), SAMPLES_PER_SHARD)):
            shards[f"{split}-{number:04d}.tar.gz"] = rows[start : start + SAMPLES_PER_SHARD]
    foreign = sorted({path.name for path in out.glob("*.tar*")} - set(shards))
    if foreign:
        raise ShardError(f"'{out}' contains shards of another set: {', '.join(foreign)}.", fix="use an empty --out")
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in shards.items():
        write_shard(out / name, rows)
    return build_index(out, name=CARD.name, licence=CARD.licence, grouped_by=CARD.group)


def tiny(folder: Path) -> tuple[dict[str, Path], int]:
    """Write a source of five emoji: Noto draws all, Twemoji two. Returns: the arguments of `build`, and 7 samples."""
    from PIL import Image, ImageDraw

    groups = [("people", 1), ("component", 2), ("animals", 3)]
    subgroups = [("role", 10), ("mammal", 11), ("tone", 12)]
    titles = {
        "groups": [{"key": key, "order": order} for key, order in groups],
        "subgroups": [{"key": key, "order": order} for key, order in subgroups],
    }
    worker = {"hexcode": "1F9D1-1F3FB-200D-2695", "label": "health worker: light skin tone", "tone": 1}
    couple = {"hexcode": "1F46B-1F3FB", "label": "couple: light skin tone, dark skin tone", "tone": [1, 5]}
    tags = ["doctor", "health", "care", "nurse", "ward"]
    entries = [
        {"hexcode": "1F9D1-200D-2695", "label": "health worker", "tags": tags, "group": 1, "subgroup": 10}
        | {"skins": [worker]},
        {"hexcode": "1F46B", "label": "couple", "group": 1, "subgroup": 10, "skins": [couple]},
        {"hexcode": "1F408-FE0F", "label": "cat", "tags": ["pet"], "group": 3, "subgroup": 11},
        {"hexcode": "1F3FB", "label": "light skin tone", "group": 2, "subgroup": 12},
        {"hexcode": "1F1E6", "label": "regional indicator A"},
    ]
    names = folder / "data.json"
    names.write_text(json.dumps(entries), "utf-8")
    (folder / "messages.json").write_text(json.dumps(titles), "utf-8")
    codes = ["1f9d1-200d-2695", "1f9d1-1f3fb-200d-2695", "1f46b", "1f46b-1f3fb", "1f408"]
    for i, (style, drawn) in enumerate({"noto": codes, "twemoji": codes[:2]}.items()):
        (folder / style).mkdir()
        for j, code in enumerate(drawn):
            image = Image.new("RGBA", _SIZE, (0, 0, 0, 0))
            ImageDraw.Draw(image).ellipse((8 * i, 4 * j, 40, 50), fill=(200, 40 * j, 90, 255))
            image.save(folder / style / f"{code}.png")
    return {"noto": folder / "noto", "twemoji": folder / "twemoji", "names": names}, 7
