"""Taps: the places of a backbone that can be read. Owns their grammar (paths, globs, aliases) and their listing.

A tap is spelt as the module path in the denoiser (`mid_block`, `up_blocks.1`, `up_blocks.1.attentions.0`). A `*`
stands for any text between two dots. The papers' names are aliases: resolved here, never stored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffprobe.backbones.base import Outline
from diffprobe.backbones.capture import Trace, trace
from diffprobe.backbones.families import family_of
from diffprobe.backbones.weights import locate
from diffprobe.core.errors import DiffprobeError, UnknownTap, nearest

_N_TRACES = 8
_traces: dict[tuple[str, str, bool], Trace] = {}


@dataclass(frozen=True, kw_only=True)
class TapInfo:
    """One place that can be read."""

    path: str
    """Module path in the denoiser."""
    aliases: tuple[str, ...] = ()
    """Other names that are understood."""
    channels: int
    """Width of a pooled feature."""
    size: tuple[int, int]
    """Height and width of the feature map."""
    flop_share: float | None
    """Share of the denoiser's floating-point operations spent when the tap has been read; None if not counted."""


def tap_infos(outline: Outline, traced: Trace, *, counted: bool) -> list[TapInfo]:
    """List every tap of a traced backbone, in the order in which they are reached."""
    aliases: dict[str, list[str]] = {}
    for alias, path in outline.aliases.items():
        aliases.setdefault(path, []).append(alias)
    return [
        TapInfo(
            path=path,
            aliases=tuple(aliases.get(path, ())),
            channels=shape.channels,
            size=shape.size,
            flop_share=_share(shape.flops, traced.flops) if counted else None,
        )
        for path, shape in traced.taps.items()
    ]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0  # a backbone without a network spends nothing


def trace_outline(outline: Outline, *, count: bool) -> Trace:
    """Run an outline's denoiser on the meta device, counting operations if asked to; remembered by its signature."""
    key = (outline.family, outline.signature, count)
    if key not in _traces:
        if len(_traces) >= _N_TRACES:
            _traces.pop(next(iter(_traces)))
        _traces[key] = trace(outline.denoiser, outline.run, outline.layout, count=count)
    return _traces[key]


def list_taps(
    path: str, *, resolution: int | None = None, revision: str | None = None, inner: bool = False
) -> list[TapInfo]:
    """List the taps of a checkpoint from its config alone: no weights are read.

    Args:
        path: folder, hub id, `emoji-sd` or `pixels`.
        resolution: image side in pixels; None takes the checkpoint's own.
        revision: for hub ids.
        inner: list also the modules inside the blocks.
    Raises: WeightsMissing, WeightsMismatch, ConfigError.
    """
    checkpoint = locate(path, revision=revision, configs_only=True)
    outline = family_of(checkpoint).outline(checkpoint, resolution)
    taps = tap_infos(outline, trace_outline(outline, count=True), counted=True)
    return taps if inner else [tap for tap in taps if tap.path in outline.blocks]


def resolve(names: Sequence[str], taps: Sequence[TapInfo], outline: Outline) -> tuple[str, ...]:
    """Turn paths, globs and aliases into module paths, each once, in the order in which the backbone reaches them.

    Raises: UnknownTap for all names that fit nothing, with the nearest taps and the list of blocks.
    """
    known = {tap.path: tap for tap in taps}
    chosen: set[str] = set()
    bad: list[str] = []
    for name in names:
        pattern = re.compile(re.escape(outline.aliases.get(name, name)).replace(r"\*", "[^.]*"))
        hits = [path for path in known if pattern.fullmatch(path)]
        chosen.update(hits)
        if not hits:
            bad.append(name)
    if bad:
        raise _unknown_tap(bad, known, outline)
    return tuple(path for path in known if path in chosen)


def _unknown_tap(bad: Sequence[str], known: dict[str, TapInfo], outline: Outline) -> DiffprobeError:
    details: list[str] = []
    for name in bad:
        close = nearest(name, [*outline.aliases, *outline.blocks, *known])
        if close:
            details.append(f"nearest to '{name}': {', '.join(dict.fromkeys(close))}")
    blocks = (known[path] for path in outline.blocks if path in known)
    details.append(
        "allowed: "
        + ", ".join(f"{tap.path} ({tap.channels} x {tap.size[0]} x {tap.size[1]})" for tap in blocks)
        + f", and {len(known) - len(outline.blocks)} modules inside them"
    )
    if outline.aliases:
        details.append(f"aliases: {', '.join(outline.aliases)}")
    return UnknownTap(
        f"backbone '{outline.name}' (family {outline.family}) has no tap {', '.join(repr(name) for name in bad)}.",
        *details,
        fix=f"list all: diffprobe taps {outline.name} --inner",
    )
