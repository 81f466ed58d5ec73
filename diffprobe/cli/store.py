"""``diffprobe store``: list, show and verify stores of features and of latents."""

import argparse
from typing import TYPE_CHECKING, Any

from diffprobe.core.errors import DiffprobeError, SchemaError

if TYPE_CHECKING:
    from diffprobe.features.manifest import Manifest

GROUP = "features"
HELP = "list, show or verify feature stores and latent caches"
_BACKBONE = ("family", "resolution", "dtype", "pool", "draws", "keep_draws", "seed", "random_weights", "random_seed")
"""Keys of the backbone's fingerprint that are printed first, in this order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the three commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the stores below a folder")
    listing.add_argument("path", nargs="?", default="runs/stores", help="the folder (default: runs/stores)")
    show = commands.add_parser("show", help="print the settings of a store, its cells and its splits")
    show.add_argument("path", help="the store's folder")
    verify = commands.add_parser("verify", help="compare every file of a store with its checksum")
    verify.add_argument("path", help="the store's folder")


def run(args: argparse.Namespace) -> int:
    """Run the command; `verify` returns 1 if the store has a fault."""
    return {"list": _list, "show": _show, "verify": _verify}[args.command](args.path)


def _list(root: str) -> int:
    from diffprobe.core.byte_size import folder_bytes, size
    from diffprobe.features.manifest import LATENTS, stored_counts
    from diffprobe.features.reader import list_stores

    broken: dict[str, DiffprobeError] = {}
    stores = list(list_stores(root, broken=broken, kind=None))
    for store in stores:
        manifest, missing = store.manifest, store.missing()
        state = f"{len(missing)} of {len(manifest.shards)} shards missing" if missing else "complete"
        what = "latents" if manifest.kind == LATENTS else f"{len(store.cells)} cells"
        print(f"{store.path}  {manifest.recorded['backbone']} x {manifest.recorded['data']}")
        print(f"  {what}; {stored_counts(manifest)}; {size(folder_bytes(store.path))}; {state}")
    for name, error in broken.items():
        print(f"{root}/{name}  cannot be read: {str(error).splitlines()[0]}")
        if error.fix:
            print(f"  fix: {error.fix}")
    if not stores and not broken:
        print(f"no feature store in '{root}'. To create one: diffprobe extract experiment=NAME")
    return 1 if broken else 0


def _show(path: str) -> int:
    from diffprobe.features.manifest import stored_counts
    from diffprobe.features.reader import FeatureStore

    store = FeatureStore.open(path, kind=None)
    manifest, missing = store.manifest, store.missing()
    _print("store", manifest.digest, manifest.kind)
    _print("samples", f"{stored_counts(manifest)} in {len(manifest.shards)} shards, {len(missing)} of them missing")
    _print("classes", f"{len(store.classes())}; attributes: {', '.join(store.attributes) or '(none)'}")
    _print("licence", manifest.recorded["licence"])
    try:
        _show_backbone(manifest)
        _show_massive(manifest)
    except (LookupError, TypeError, AttributeError, ValueError) as error:  # names that the digest does not cover
        raise SchemaError(
            f"'{path}': what the manifest has recorded is not complete ({type(error).__name__}: {error}).",
            fix="extract the store again",
        ) from error
    for name, value in sorted(manifest.data.items()):
        _print("data", f"{name} = {_text(value)}")
    for name, version in sorted(manifest.recorded["versions"].items()):
        _print("made with", f"{name} {version}")
    for cell, width in manifest.cells.items():
        _print("cell", f"{cell} ({width})")
    return 0


def _show_backbone(manifest: "Manifest") -> None:
    """Print the backbone's names in the request, then all settings that its features depend on."""
    recorded, content = manifest.recorded, dict(manifest.backbone)
    for name in ("backbone", "revision", "commit", "denoiser_weights", "single_file_config", "lora"):
        if recorded.get(name) is not None:
            _print("backbone", f"{'name' if name == 'backbone' else name} = {recorded[name]}")
    if "cpu_kernels" in recorded:
        _print("backbone", f"linear layers by {recorded['cpu_kernels']['used']}")
    for part, digest in sorted(content.pop("weights", {}).items()):
        _print("weights", f"{part} {digest}")
    for tap in content.pop("taps", []):
        shape = recorded["taps"][tap]
        _print("tap", f"{tap}: {shape['channels']} channels, {shape['size'][0]} x {shape['size'][1]}")
    for t in content.pop("timesteps", []):
        noise = recorded["timesteps"][str(t)]
        asked = "".join(f", requested as SNR {ratio:g}" for ratio, found in recorded["snr"] if found == t)
        _print("timestep", f"{t}: sigma {_number(noise['sigma'])}, SNR {_number(noise['snr'])}{asked}")
    for condition, prompt in content.pop("conditions", {}).items():
        _print("condition", condition if prompt is None else f"{condition}: {_text(prompt)}")
    for name, value in content.pop("conditioning", {}).items():
        _print("conditioning", f"{name} = {_text(value)}")
    for name in (*(name for name in _BACKBONE if name in content), *sorted(set(content) - set(_BACKBONE))):
        _print("backbone", f"{name} = {_text(content[name])}")


def _show_massive(manifest: "Manifest") -> None:
    """Print the massive channels of each cell, where they were looked for."""
    for cells in manifest.recorded.get("massive", {}).get("taps", {}).values():
        for cell, one in cells.items():
            channels = ", ".join(f"{channel} ({value:.3g} x the median)" for channel, value in one["channels"].items())
            _print("massive", f"{cell}: {channels or 'none'}; limit {_number(one['limit'])}")


def _verify(path: str) -> int:
    from diffprobe.core.progress import ProgressDisplay
    from diffprobe.features.reader import FeatureStore
    from diffprobe.features.verify import verify_folder

    with ProgressDisplay(transient=True) as display:
        faults = verify_folder(path, make_bar=lambda n: display.bar(n, "comparing checksums", unit="files", keep=False))
    for fault in faults:
        print(fault)
    if faults:
        print(f"{path}: {len(faults)} faults.")
        return 1
    store = FeatureStore.open(path, kind=None)
    n_files = (len(store.manifest.shards) - len(store.missing())) * (len(store.cells) + 1)
    print(f"{path}: all {n_files} files match their checksums.")
    return 0


def _print(name: str, *values: str) -> None:
    print(f"{name:<10} {'  '.join(values)}")


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"


def _text(value: Any) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)
