"""The embedded data set `emoji`: Noto and Twemoji drawings with captions and known attributes.

Source: the npm packages `emoji-datasource-google` and `emoji-datasource-twitter` 16.0.0 (folder ``img/*/64``) and
`emojibase-data` 17.0.0 (``en/data.json`` with ``en/messages.json`` beside it). Noto emoji: Apache-2.0, Google.
Twemoji graphics: CC BY 4.0, Twitter, Inc. and other contributors. emojibase: MIT, Miles Johnson.

Owns which drawings are samples, what is said of them, and which split each belongs to. Writing tars is `shards.write`.
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diffprobe.core.errors import ShardError
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.writer import write_shard

SKIN_TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
N_CAPTION_TAGS = 3
SAMPLES_PER_SHARD = 512
LEFT_OUT_GROUPS = ("component", "flags")
LICENCE = "noto: Apache-2.0; twemoji: CC BY 4.0; names: MIT (see README.md)"

# Words that only tell who is shown; a family is what stays of a base without them.
_PERSON_WORDS = frozenset("man men woman women person people boy boys girl girls adult child and".split())
_MALE_WORDS = frozenset("man men boy boys".split())
_FEMALE_WORDS = frozenset("woman women girl girls".split())
_SIZE = (64, 64)
_NAMES_FROM = "needed: en/data.json and en/messages.json of emojibase-data 17.0.0"
_DRAWINGS_FROM = "expected: the folder img/*/64 of emoji-datasource"


@dataclass(frozen=True)
class Emoji:
    """One named emoji (a base or one of its skin tones), before a style is chosen."""

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
        """What is drawn, in all styles and skin tones, whichever way it faces: the name, in lower case.

        >>> Emoji("1F468-200D-2695", "man health worker", (), "people-body", "person-role", ()).base
        'man health worker'
        """
        return re.sub(r":? facing right", "", self.name.lower())

    @property
    def family(self) -> str:
        """What is shown, whoever shows it: "woman health worker" and "man health worker" are of one family.

        >>> Emoji("1F468-200D-2695", "man health worker", (), "people-body", "person-role", ()).family
        'health worker'
        """
        words = [word for word in re.findall(r"[\w'.’!?-]+", self.base) if word not in _PERSON_WORDS]
        return " ".join(words) if words else "person"

    @property
    def gender(self) -> str | None:
        """ "man" or "woman" where the name tells exactly one of them."""
        words = set(re.findall(r"\w+", self.name.lower()))
        male, female = bool(words & _MALE_WORDS), bool(words & _FEMALE_WORDS)
        return None if male == female else ("man" if male else "woman")

    def captions(self, style: str) -> list[str]:
        """All captions of one style: first the one with several tags, then the name alone, then one tag each."""
        tone = [f"{tone} skin tone" for tone in self.tones]
        words = set(re.findall(r"\w+", self.name.lower()))
        tags = [tag for tag in self.tags if not set(re.findall(r"\w+", tag.lower())) <= words]
        choices = [tags[:N_CAPTION_TAGS], [], *([tag] for tag in tags)]
        texts = (", ".join([f"{style} emoji", self.name, *chosen, *tone]) for chosen in choices)
        return list(dict.fromkeys(texts))


def read_names(names: Path) -> list[Emoji]:
    """Read emojibase's `data.json` (and `messages.json` beside it for the names of groups).

    Raises: ShardError if either file is missing or is not emojibase's.
    """
    messages = names.with_name("messages.json")
    for path in (names, messages):
        if not path.is_file():
            raise ShardError(f"{path} does not exist.", _NAMES_FROM)
    try:
        return _emojis(json.loads(names.read_text("utf-8")), json.loads(messages.read_text("utf-8")))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ShardError(
            f"{names} and {messages.name} beside it are not emojibase's: {type(error).__name__}: {error}.", _NAMES_FROM
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
    """Map text to [0, 1) by its sha256: a split that depends on names alone, not on order or on the other samples."""
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big") / 2**64


def split_of(
    base: str, family: str, style: str, tones: tuple[str, ...], combinations: set[tuple[str, tuple[str, ...]]]
) -> str:
    """Give the split of one sample.

    A tenth of the bases is `test`, whole. Of the others, a tenth of the (style, skin tone) combinations is `val`, the
    same ones for all bases of a family, as long as another combination of that base stays in `train`.

    Args:
        base: of bases that share a drawing the first one, so that all or none of them are in `test`.
        combinations: in which the base is drawn.
    """
    if _fraction("test", base) < 0.1:
        return "test"
    ranks = {combination: _fraction("val", family, combination[0], *combination[1]) for combination in combinations}
    chosen = (style, tones)
    kept = max(ranks, key=lambda item: (ranks[item], item))
    return "val" if ranks[chosen] < 0.1 and chosen != kept else "train"


def _encode(path: Path) -> bytes:
    """Put a drawing on white and store it as lossless WebP (40 % smaller than PNG, the same pixels)."""
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


def _first_of_equals(bases: Sequence[str], images: Sequence[bytes]) -> dict[str, str]:
    """Map each base to the first name, in the alphabet, among those that a chain of equal drawings leads to."""
    first = {base: base for base in bases}
    by_image: dict[bytes, set[str]] = {}
    for base, image in zip(bases, images, strict=True):
        by_image.setdefault(image, set()).add(base)
    chains = [equals for equals in by_image.values() if len(equals) > 1]
    for _ in chains:  # each pass carries a name at least one drawing further
        for equals in chains:
            least = min(first[base] for base in equals)
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
        raise ShardError(f"no drawing of {names} found in {folders[style]}.", _DRAWINGS_FROM)
    classes = sorted({emoji.subgroup for emoji, _, _ in drawn})
    combinations: dict[str, set[tuple[str, tuple[str, ...]]]] = {}
    for emoji, style, _ in drawn:
        combinations.setdefault(emoji.base, set()).add((style, emoji.tones))
    images = [_encode(path) for _, _, path in drawn]
    first = _first_of_equals([emoji.base for emoji, _, _ in drawn], images)
    for (emoji, style, _), image in zip(drawn, images, strict=True):
        attributes = {"style": style, "group": emoji.group, "base": emoji.base, "family": emoji.family}
        if len(emoji.tones) == 1:
            attributes["skin_tone"] = emoji.tones[0]
        if emoji.gender:
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
        split = split_of(first[emoji.base], emoji.family, style, emoji.tones, combinations[emoji.base])
        yield split, f"{style}-{emoji.hexcode}", members


def build(noto: Path, twemoji: Path, names: Path, out: Path) -> ShardSet:
    """Build the shard set from the unpacked packages, byte for byte the same each time.

    Samples stand in a hashed order, so that the first shards are a fair sample of the whole.

    Args:
        noto, twemoji: folders of 64 x 64 PNG files named by hexcode.
        names: emojibase's `en/data.json`, with `messages.json` beside it.
        out: folder for ``<split>-NNNN.tar.gz`` and ``index.json``; made if missing.
    Raises: ShardError if a source is missing or is not what it should be, or if `out` holds other shards.
    """
    by_split: dict[str, list[tuple[str, dict[str, bytes]]]] = {"train": [], "val": [], "test": []}
    for split, key, members in samples(noto, twemoji, names):
        by_split[split].append((key, members))
    shards = {}
    for split, rows in by_split.items():
        rows.sort(key=lambda row: _fraction("order", row[0]))
        for number, start in enumerate(range(0, len(rows), SAMPLES_PER_SHARD)):
            shards[f"{split}-{number:04d}.tar.gz"] = rows[start : start + SAMPLES_PER_SHARD]
    strangers = sorted({path.name for path in out.glob("*.tar*")} - set(shards))
    if strangers:
        raise ShardError(f"{out} holds shards that are not of this set: {', '.join(strangers)}.", fix="an empty --out")
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in shards.items():
        write_shard(out / name, rows)
    return build_index(out, name="emoji", licence=LICENCE)
