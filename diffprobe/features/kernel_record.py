"""Which library ran the linear layers of a store: decided when a store is begun, recorded in it, kept by a restart.

The last bits of features depend on it (`backbones.cpu_kernels`). So that one store is not made of both, the processes
of an extraction take what the manifest has recorded.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from diffprobe.backbones.cpu_kernels import KERNELS, KernelChoice, check_kernels, choose_kernels
from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.features.manifest import Manifest
from diffprobe.features.request import Request
from diffprobe.features.writer import MANIFEST

RECORD = "cpu_kernels"
"""Key in what a manifest has recorded: `asked` (the setting), `used`, and `ratio` where it was measured."""


def settle_kernels(request: Request, stores: Iterable[Path]) -> KernelChoice:
    """Return the library for the stores of one extraction: the one they were begun with, else what the setting gives.

    Args:
        request: what is extracted.
        stores: folders of the stores, which need not exist.
    Raises: ConfigError where a store was begun with another library than the setting names, or the setting has no
        effect; SchemaError for a damaged manifest.
    """
    asked = request.backbone.cpu_kernels
    begun = {path: recorded_kernels(Manifest.read(path / MANIFEST)) for path in stores if (path / MANIFEST).exists()}
    if not begun:
        return choose_kernels(request.plan)
    check_kernels(request.plan)
    first = next(iter(begun.values())) if asked == "auto" else asked
    for path, used in begun.items():
        if used != first:
            raise ConfigError(
                f"store '{path}' was begun with linear layers by {used}; now they would run by {first}.",
                "the last bits of features depend on it, and one extraction has one library",
                fix=f"backbone.cpu_kernels={used}, or move that folder away",
            )
    return KernelChoice(used=first)


def record_kernels(request: Request, choice: KernelChoice) -> None:
    """Add a choice to the manifest of a request; without `backbone.cpu_kernels` a manifest has no record of it."""
    asked, manifest = request.backbone.cpu_kernels, request.manifest
    if asked != "mkl":
        record = {"asked": asked, "used": choice.used, "ratio": choice.ratio}
        vars(request)["manifest"] = replace(manifest, recorded={**manifest.recorded, RECORD: record})


def recorded_kernels(manifest: Manifest) -> str:
    """Return the library that a manifest has recorded, MKL if none. Raises: SchemaError for one that is not known."""
    found = manifest.recorded.get(RECORD, {"used": "mkl"})
    used = found.get("used") if isinstance(found, dict) else None
    if used not in KERNELS:
        raise SchemaError(f"recorded.{RECORD}: {found!r}.", fix="extract the store again")
    return str(used)
