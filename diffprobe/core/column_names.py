"""Names of data columns (attributes) beside the names that diffprobe itself uses for columns, folders and curves.

One rule, checked where an index is written or read and where a store is opened: an attribute may not have a name of
ours, be blank, or differ from another one in case only. A name that passes may still contain any character, so every
path and curve that is named after a column uses `path_part`. Standard library only.
"""

import unicodedata
from collections.abc import Iterable, Mapping

RESERVED = {
    "label": "the class id of a sample",
    "class_name": "the name of its class",
    "caption": "its caption",
    "captions": "its alternative captions",
    "key": "its identity",
}
"""Column names of diffprobe: targets of probes, columns of templates and of stores, groups of data sets."""
_ENCODED = frozenset('/\\:*?"<>|%')
"""Characters that separate folders, or that some file system refuses."""
_LONGEST = 120
"""Longest name in UTF-8 bytes; file systems allow 255 bytes, and encoding triples some of them."""


def column_faults(names: Iterable[str]) -> dict[str, str]:
    """Return the attribute names that cannot be used beside the columns of diffprobe, each with the reason.

    >>> column_faults(["style", "label"])
    {'label': 'diffprobe uses this name for the class id of a sample'}
    >>> column_faults(["Style", "style"])
    {'style': "equal to 'Style' except for case, which not all file systems distinguish"}
    """
    faults: dict[str, str] = {}
    by_folded: dict[str, str] = {}
    for name in sorted(names):
        folded = _folded(name)
        first = by_folded.setdefault(folded, name)
        if folded in RESERVED:
            faults[name] = f"diffprobe uses this name for {RESERVED[folded]}"
        elif not name or name != name.strip():
            faults[name] = "it is empty, or a space is at one of its ends"
        elif not all(_is_visible(character) for character in name):
            faults[name] = "it has a control character"
        elif len(name.encode("utf-8", "surrogatepass")) > _LONGEST:
            faults[name] = f"it has more than {_LONGEST} bytes"
        elif first != name:
            faults[name] = f"equal to {first!r} except for case, which not all file systems distinguish"
    return faults


def describe_faults(faults: Mapping[str, str]) -> list[str]:
    """Return one printable line per fault.

    >>> describe_faults({"label": "taken"})
    ["attribute 'label': taken"]
    """
    return [f"attribute {_shown(name)}: {reason}" for name, reason in faults.items()]


def path_part(name: str) -> str:
    """Encode a column name as one part of a path or of a curve's name; different names stay different.

    >>> [path_part(name) for name in ("style", "hair/colour", "..", "a:b", "50%")]
    ['style', 'hair%2Fcolour', '%2E.', 'a%3Ab', '50%25']
    """
    encoded = "".join(f"%{ord(c):02X}" if c in _ENCODED or not _is_visible(c) else c for c in name)
    return f"%2E{encoded[1:]}" if encoded.startswith(".") else encoded


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _shown(name: str) -> str:
    short = name if len(name) <= 40 else f"{name[:40]}..."
    return repr(short) if all(map(_is_visible, short)) else ascii(short)


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
