"""``diffprobe taps``: list the taps of a backbone, from its config alone."""

import argparse
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_backbone
from diffprobe.core.columns import aligned

if TYPE_CHECKING:
    from diffprobe.backbones.taps import BackboneInfo, TapInfo

GROUP = "features"
HELP = "list the taps of a backbone with their sizes and cost"

_FORMS = {
    "map": "a feature map",
    "tokens": "image tokens on their grid",
    "attention": "one channel per text token: the attention of each position to it",
    "text": "text tokens, one per row",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_backbone(parser, "hub id")
    parser.add_argument(
        "--inner", action="store_true", help="also list the modules inside the blocks, and the readouts (after a slash)"
    )


def run(args: argparse.Namespace) -> int:
    """Print a summary of the backbone and one line per tap, in the order of the forward pass."""
    from diffprobe.backbones.taps import backbone_info
    from diffprobe.core.errors import ConfigError

    if args.resolution is not None and args.resolution < 1:
        raise ConfigError(f"--resolution={args.resolution} is out of range: at least 1.")
    found = backbone_info(
        args.backbone,
        resolution=args.resolution,
        revision=args.revision,
        single_file_config=args.single_file_config,
        inner=args.inner,
    )
    print("\n".join([*_header(found), "", *_table(found.taps), "", *_notes(found)]).rstrip())
    return 0


def _header(found: "BackboneInfo") -> list[str]:
    spec = found.spec
    last = spec.schedule.n_timesteps - 1
    noised = " x ".join(map(str, spec.latent_shape))
    return [
        f"{spec.name}: family {spec.family}, {spec.resolution} px, noised as {noised} "
        f"(channels x height x width), timesteps {f'0..{last}' if last else 'only 0'}",
        f"conditions: {', '.join(spec.conditions)}; {_flops(found.flops)} per image in the whole denoiser",
    ]


def _table(taps: "tuple[TapInfo, ...]") -> list[str]:
    rows = [("tap", "aliases", "form", "channels", "size", "FLOPs to reach")]
    for tap in taps:
        size = f"{tap.size[0]} x {tap.size[1]}"
        share = f"{tap.flop_share or 0:.1%}"
        rows.append((tap.path, ", ".join(tap.aliases) or "-", tap.form, str(tap.channels), size, share))
    right = [False, False, False, True, True, True]  # names to the left, numbers to the right
    if not any(tap.warnings for tap in taps):
        return aligned(rows, right)
    warnings = ["warnings", *(", ".join(tap.warnings) or "-" for tap in taps)]
    return aligned([(*row, last) for row, last in zip(rows, warnings, strict=True)], [*right, False])


def _notes(found: "BackboneInfo") -> list[str]:
    from diffprobe.backbones.taps import WARNINGS

    forms = dict.fromkeys(tap.form for tap in found.taps)
    notes = [f"{form}: {_FORMS[form]}" for form in forms if form != "map"]
    warned = dict.fromkeys(name for tap in found.taps for name in tap.warnings)
    notes += [f"warning {name}: {WARNINGS[name]}" for name in warned]
    if found.n_inner:
        notes.append(f"{found.n_inner} more inside the blocks: --inner")
    return notes


def _flops(n: int) -> str:
    """Format a number of operations with a suitable unit.

    >>> _flops(0), _flops(3_100_000), _flops(803_000_000_000)
    ('0 FLOPs', '3.1 MFLOPs', '803 GFLOPs')
    """
    value, units = float(n), ["", "k", "M", "G", "T", "P"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}FLOPs"
