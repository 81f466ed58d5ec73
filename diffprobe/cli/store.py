"""``diffprobe store``: list, show and check feature stores."""

import argparse

HELP = "list, show or verify feature stores"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the three commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="list the stores below a folder")
    listing.add_argument("path", nargs="?", default="runs/stores", help="the folder (default: runs/stores)")
    show = commands.add_parser("show", help="print what a store was made from, and its cells and splits")
    show.add_argument("path", help="the store's folder")
    verify = commands.add_parser("verify", help="compare every file of a store with its checksum")
    verify.add_argument("path", help="the store's folder")


def run(args: argparse.Namespace) -> int:
    """Run the command; `verify` returns 1 if the store has a fault."""
    return {"list": _list, "show": _show, "verify": _verify}[args.command](args.path)


def _list(root: str) -> int:
    from diffprobe.features.manifest import stored_counts
    from diffprobe.features.reader import list_stores

    broken: dict[str, str] = {}
    stores = list(list_stores(root, broken=broken))
    for store in stores:
        manifest, missing = store.manifest, store.missing()
        state = f"{len(missing)} of {len(manifest.shards)} shards missing" if missing else "complete"
        print(f"{store.path}  {manifest.recorded['backbone']} x {manifest.recorded['data']}")
        print(f"  {len(store.cells)} cells; {stored_counts(manifest)}; {_size(store.path)}; {state}")
    for name, fault in broken.items():
        print(f"{root}/{name}  cannot be read: {fault}")
    if not stores and not broken:
        print(f"no feature store in '{root}'. Make one: diffprobe extract experiment=NAME")
    return 1 if broken else 0


def _show(path: str) -> int:
    import json

    from diffprobe.features.manifest import stored_counts
    from diffprobe.features.reader import FeatureStore

    store = FeatureStore.open(path)
    manifest, missing = store.manifest, store.missing()
    print(f"store      {manifest.digest}")
    print(f"samples    {stored_counts(manifest)} in {len(manifest.shards)} shards, {len(missing)} of them missing")
    print(f"classes    {len(store.classes)}; attributes: {', '.join(store.attributes) or '(none)'}")
    for name, part in (("backbone", manifest.backbone), ("data", manifest.data)):
        for key, value in sorted(part.items()):
            print(f"{name:<10} {key} = {json.dumps(value, ensure_ascii=False)}")
    for name, version in sorted(manifest.recorded["versions"].items()):
        print(f"made with  {name} {version}")
    for cell, width in manifest.cells.items():
        print(f"cell       {cell} ({width})")
    return 0


def _verify(path: str) -> int:
    from diffprobe.features.reader import FeatureStore

    store = FeatureStore.open(path)
    faults = store.verify()
    for fault in faults:
        print(fault)
    n_files = len(store.manifest.shards) * (len(store.cells) + 1)
    print(f"{path}: {len(faults)} faults." if faults else f"{path}: all {n_files} files are as they were written.")
    return 1 if faults else 0


def _size(path: object) -> str:
    from pathlib import Path

    n_bytes = sum(file.stat().st_size for file in Path(str(path)).rglob("*") if file.is_file())
    return f"{n_bytes / 1e6:,.1f} MB"
