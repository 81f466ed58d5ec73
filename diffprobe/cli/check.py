"""``diffprobe check``: can a backbone be read, what is missing, how large is it."""

import argparse
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_backbone
from diffprobe.core.byte_size import size

if TYPE_CHECKING:
    from diffprobe.backbones.check import CheckReport, MemoryReport

GROUP = "features"
HELP = "check that a backbone can be read; its licence, size and memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_backbone(parser, "cached hub id")
    parser.add_argument("--lora", metavar="FILE[@WEIGHT]", help="also check that this LoRA fits the backbone")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", default=64, help="images per batch, for the memory (default: 64)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="precision, for the memory"
    )
    parser.add_argument(
        "--offload", choices=("none", "blocks"), default="none", help="backbone.offload of the run, for the memory"
    )
    parser.add_argument(
        "--quantize", choices=("none", "int8", "fp8"), default="none", help="backbone.quantize, for the memory"
    )


def run(args: argparse.Namespace) -> int:
    """Print what was found; status 1 with all reasons if the backbone cannot be read. Nothing is downloaded."""
    from diffprobe.backbones.check import check_backbone
    from diffprobe.core.errors import ConfigError

    for name in ("resolution", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}={value} is out of range: at least 1.")
    found = check_backbone(
        args.backbone,
        resolution=args.resolution,
        revision=args.revision,
        single_file_config=args.single_file_config,
        lora=args.lora,
        batch_size=args.batch_size,
        dtype=args.dtype,
        offload=args.offload,
        quantize=args.quantize,
    )
    print("\n".join([*_header(found), *_parts(found), *_memory(found, args), *_verdict(found)]))
    return 1 if found.faults else 0


def _header(found: "CheckReport") -> list[str]:
    lines = [found.name]
    if found.folder is not None and str(found.folder) != found.name:
        lines.append(f"  folder: {found.folder}")
    if found.pipeline is not None and found.folder is not None:
        lines.append(f"  pipeline: {found.pipeline}")
    if found.family is not None:
        lines.append(f"  family: {found.family}, {found.resolution} px")
    if found.folder is not None:
        lines.append(f"  licence: {found.licence or 'not stated'}")
    return lines


def _parts(found: "CheckReport") -> list[str]:
    lines = []
    for part in found.parts:
        n = part.n_parameters
        counts = "" if n is None else f": {n:,} parameters, files of {size(part.n_bytes)}"
        lines.append(f"  {part.name} ({part.kind}){counts}")
    n_parameters = sum(part.n_parameters or 0 for part in found.parts)
    if n_parameters:
        total = sum(part.n_bytes for part in found.parts)
        lines.append(f"  together: {n_parameters:,} parameters that are read, files of {size(total)}")
    return lines


def _memory(found: "CheckReport", args: argparse.Namespace) -> list[str]:
    from diffprobe.core.memory import free_memory

    memory: MemoryReport | None = found.memory
    if memory is None:
        return []
    free = free_memory()
    ways = {"offload": args.offload, "quantize": args.quantize}
    way = "".join(f", {name}={value}" for name, value in ways.items() if value != "none")
    loading = f"; while they are read {size(memory.loading)} more" if memory.loading else ""
    batch = f"a batch of {args.batch_size} images in {args.dtype}{way}"
    return [
        f"  memory for {batch}: about {size(memory.batch)} (an estimate)",
        f"    weights {size(memory.weights)}{loading}; activations: encoding {size(memory.encoding)}, "
        f"a pass of {memory.rows} rows {size(memory.denoising)}",
        f"    with several timesteps, draws or conditions a pass has up to {memory.most_rows} rows: about "
        f"{size(memory.largest)}; backbone.max_rows_per_pass bounds them",
        "    computed from the shapes in a pass without weights; without workspaces of kernels and the libraries",
        *([] if free is None else [f"    free in this process: {size(free)}"]),
    ]


def _verdict(found: "CheckReport") -> list[str]:
    if not found.faults:
        return ["it can be read"]
    lines = [f"it cannot be read, {len(found.faults)} fault{'s' if len(found.faults) > 1 else ''}:"]
    for fault in found.faults:
        lines += [f"  {line}" for line in f"{type(fault).__name__}: {fault}".splitlines()]
    return lines
