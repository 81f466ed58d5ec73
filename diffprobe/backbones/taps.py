"""Taps: the places of a backbone that can be read, their names (paths, globs, aliases) and their listing.

A tap is named by the module path in the denoiser (`mid_block`, `up_blocks.1`, `up_blocks.1.attentions.0`), and if not
the module's own output is meant, a readout behind a slash (`up_blocks.1.attentions.0.transformer_blocks.0.attn2/probs`,
see readouts.py). A `*` matches any text between two dots or slashes. Names from papers are aliases, which are resolved
here and never stored.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diffprobe.backbones.attention_parts import PARTS
from diffprobe.backbones.base import BackboneSpec
from diffprobe.backbones.families import describe
from diffprobe.backbones.hooks import Trace, trace
from diffprobe.backbones.locate import locate
from diffprobe.backbones.modulation import MODULATED
from diffprobe.backbones.readouts import ATTENTION, READOUTS, split_tap
from diffprobe.core.errors import DiffprobeError, UnknownTap, nearest
from diffprobe.core.foreign import naming

WARNINGS = {
    "massive": "the residual stream of a transformer block, in which a few channels may be far above all others",
    "text": "the module outputs text tokens too; the tap reads the image alone, /text the text",
}
"""Warning of a tap -> what it means."""
_N_TRACES = 8
_traces: dict[tuple[str, str, bool], Trace] = {}


@dataclass(frozen=True, kw_only=True)
class TapInfo:
    """One place that can be read."""

    path: str
    """Module path in the denoiser, with its readout if it has one."""
    aliases: tuple[str, ...] = ()
    """Other names that are accepted."""
    form: str
    """`map`, `tokens` (laid out on their grid), `attention` (one channel per text token) or `text` (one row per
    token)."""
    channels: int
    """Width of a pooled feature."""
    size: tuple[int, int]
    """Height and width of the feature map."""
    flop_share: float | None
    """Share of the denoiser's floating-point operations spent when the tap has been read; None if not counted."""
    warnings: tuple[str, ...] = ()
    """What to know before the tap is read, a part of `WARNINGS`."""


def tap_infos(spec: BackboneSpec, traced: Trace, *, counted: bool) -> list[TapInfo]:
    """List every tap of a traced backbone, in the order in which they are reached."""
    aliases: dict[str, list[str]] = {}
    for alias, path in spec.aliases.items():
        aliases.setdefault(path, []).append(alias)
    return [
        TapInfo(
            path=path,
            aliases=tuple(aliases.get(path, ())),
            form=shape.form,
            channels=shape.channels,
            size=shape.size,
            flop_share=_share(shape.flops, traced.flops) if counted else None,
            warnings=_warnings(path, traced),
        )
        for path, shape in traced.taps.items()
    ]


def _warnings(path: str, traced: Trace) -> tuple[str, ...]:
    """Return the warnings of a tap. The residual stream is what a block with AdaLN outputs (massive.py)."""
    beside = {"massive": f"{path}/{MODULATED}", "text": f"{path}/text"}
    return tuple(name for name, other in beside.items() if other in traced.taps)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0  # a backbone without a network has no operations


def trace_spec(spec: BackboneSpec, *, count: bool) -> Trace:
    """Run a spec's denoiser on the meta device, counting operations if `count`; cached by its signature.

    Raises: WeightsMismatch if it does not run.
    """
    key = (spec.family, spec.signature, count)
    if not count and (counted := _traces.get((spec.family, spec.signature, True))) is not None:
        return counted
    if key not in _traces:
        if len(_traces) >= _N_TRACES:
            _traces.pop(next(iter(_traces)))
        with naming(spec.name, "a checkpoint whose denoiser runs as its configurations describe it"):
            _traces[key] = trace(spec.denoiser, spec.run, spec.layout, count=count)
    return _traces[key]


@dataclass(frozen=True, kw_only=True)
class BackboneInfo:
    """A checkpoint and its taps, from its config alone."""

    spec: BackboneSpec
    """The backbone as its config describes it."""
    taps: tuple[TapInfo, ...]
    """What can be read, in the order in which it is reached."""
    n_inner: int
    """Taps inside the blocks that are not listed."""
    flops: int
    """Floating-point operations of the whole denoiser for one image."""


def backbone_info(
    path: str,
    *,
    resolution: int | None = None,
    revision: str | None = None,
    single_file_config: str | None = None,
    inner: bool = False,
) -> BackboneInfo:
    """Describe a checkpoint and its taps from its config alone: no weights are read.

    Args:
        path: folder, hub id, single file, the name of a shipped model, or `pixels`.
        resolution: image side in pixels; None takes the checkpoint's own.
        revision: for hub ids.
        single_file_config: folder or hub id with the configurations of a single file.
        inner: list also the modules inside the blocks, and all readouts.
    Raises: WeightsMissing, WeightsMismatch, ConfigError.
    """
    checkpoint = locate(path, revision=revision, configs_only=True, single_file_config=single_file_config)
    _, spec = describe(checkpoint, resolution)
    traced = trace_spec(spec, count=True)
    taps = tap_infos(spec, traced, counted=True)
    shown = tuple(tap for tap in taps if inner or tap.path in spec.blocks)
    return BackboneInfo(spec=spec, taps=shown, n_inner=len(taps) - len(shown), flops=traced.flops)


def list_taps(
    path: str, *, resolution: int | None = None, revision: str | None = None, inner: bool = False
) -> list[TapInfo]:
    """List the taps of a checkpoint. See `backbone_info`."""
    return list(backbone_info(path, resolution=resolution, revision=revision, inner=inner).taps)


def resolve(names: Sequence[str], taps: Sequence[TapInfo], spec: BackboneSpec) -> tuple[str, ...]:
    """Turn paths, globs and aliases into taps, each once, in the order in which the backbone reaches them.

    Raises: UnknownTap for all names that match nothing, with the nearest taps and the list of blocks.
    """
    known = {tap.path: tap for tap in taps}
    chosen: set[str] = set()
    bad: list[str] = []
    for name in names:
        pattern = re.compile(re.escape(_without_alias(name, spec)).replace(r"\*", "[^./]*"))
        hits = [path for path in known if pattern.fullmatch(path)]
        chosen.update(hits)
        if not hits:
            bad.append(name)
    if bad:
        raise _unknown_tap(bad, known, spec)
    return tuple(path for path in known if path in chosen)


def _without_alias(name: str, spec: BackboneSpec) -> str:
    path, slash, readout = name.partition("/")
    return f"{spec.aliases.get(path, path)}{slash}{readout}"


def _unknown_tap(bad: Sequence[str], known: dict[str, TapInfo], spec: BackboneSpec) -> DiffprobeError:
    details: list[str] = []
    for name in bad:
        if "/" in name:
            details += _about_readout(_without_alias(name, spec), known, spec)
            continue
        close = nearest(name, [*spec.aliases, *spec.blocks, *known])
        if close:
            details.append(f"nearest to '{name}': {', '.join(dict.fromkeys(close))}")
    if not all("/" in name for name in bad):
        blocks = [known[path] for path in spec.blocks if path in known]
        listed = ", ".join(f"{tap.path} ({tap.channels} x {tap.size[0]} x {tap.size[1]})" for tap in blocks)
        details.append(f"allowed: {listed}, and {len(known) - len(blocks)} places inside them")
    if spec.aliases:
        details.append(f"aliases: {', '.join(spec.aliases)}")
    return UnknownTap(
        f"backbone '{spec.name}' (family {spec.family}) has no tap {', '.join(repr(name) for name in bad)}.",
        *details,
        fix=f"list all: diffprobe taps {spec.name} --inner",
    )


def _about_readout(name: str, known: dict[str, TapInfo], spec: BackboneSpec) -> list[str]:
    """Explain why a readout is not available, and where it is."""
    path, readout = split_tap(name)
    if readout not in READOUTS:
        return [f"unknown readout '{readout}' in '{name}'; allowed: {', '.join(READOUTS)}"]
    need = "is not an attention of the image to a text" if readout in ATTENTION else "does not output text and image"
    if readout == MODULATED:
        need = "is not a transformer block with AdaLN"
    elif readout in PARTS:
        need = "is not an attention that is computed as softmax(q k) v, or its keys mix text and image"
    why = f"'{path}' {need}" if path in known else f"there is no module '{path}' that can be read"
    places = [tap for tap in known if tap.endswith(f"/{readout}")]
    if not places:
        return [f"{why}; {spec.family} has no /{readout} anywhere"]
    shown = nearest(name, places) or places[:3]
    return [f"{why}", f"/{readout} is available at {len(places)} places, for example: {', '.join(shown)}"]
