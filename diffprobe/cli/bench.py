"""`diffprobe bench`: speed beside a baseline and a floor, in one run."""

import argparse

HELP = "measure the speed of extraction or of SAE training beside the plain way and the least work"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    extraction = what.add_parser("extraction", help="features of a model of Stable Diffusion 1.5's shape")
    extraction.add_argument("--size", default="sd15", help="sd15, or small for a first try (default: sd15)")
    extraction.add_argument("--resolution", type=int, default=256, metavar="N", help="image side (default: 256)")
    extraction.add_argument("--images", type=int, default=2, metavar="N", help="images a call (default: 2)")
    extraction.add_argument("--repeats", type=int, default=3, metavar="N", help="the fastest counts (default: 3)")
    extraction.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    extraction.add_argument("--device", default="auto", help="torch device (default: the accelerator if there is one)")
    ksae = what.add_parser("ksae", help="a training step of the k-sparse autoencoder")
    ksae.add_argument(
        "--shape", action="append", type=_shape, metavar="B,D,M,K", help="batch, width, latents, k (default: three)"
    )
    ksae.add_argument("--steps", type=int, default=8, metavar="N", help="steps; the fastest counts (default: 8)")
    ksae.add_argument("--rounds", type=int, default=2, metavar="N", help="turns of each; the fastest (default: 2)")
    ksae.add_argument(
        "--no-peers", action="store_true", help="leave out other libraries (diffprobe[peers] installs them)"
    )
    for parser_of in (extraction, ksae):
        parser_of.add_argument("--json", metavar="FILE", help="write everything measured to a file")


def run(args: argparse.Namespace) -> int:
    """Measure and print a Markdown table."""
    _require_room(args.json)
    return {"extraction": _extraction, "ksae": _ksae}[args.what](args)


def _extraction(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.extraction import Setting, bench_extraction

    fields = ("size", "resolution", "images", "repeats", "dtype", "device")
    setting = Setting(**{name: getattr(args, name) for name in fields})
    report = bench_extraction(setting, say=_say)
    print(
        f"{report.machine}; {setting.size} at {setting.resolution} px, {setting.dtype}, {setting.images} images a call"
    )
    print(
        f"one image: VAE encoder {report.vae_gflop:,.0f} GFLOP, denoiser {report.denoiser_gflop:,.0f} GFLOP; "
        f"untouched denoiser {report.denoiser_gflops:,.0f} GFLOP/s, "
        f"{report.denoiser_gflops / report.matmul_gflops:.0%} of a plain matrix product"
    )
    print("\n| features | plain way, s/image | ours, s/image | floor, s/image | ours / floor | plain / ours |")
    print("|---|---|---|---|---|---|")
    for row in report.rows:
        print(
            f"| {row.name} | {row.naive_s:.3f} | {row.ours_s:.3f} | {row.floor_s:.3f} "
            f"| {row.over_floor:.2f} | {row.speed_up:.1f} |"
        )
    difference = max(row.largest_difference for row in report.rows)
    print(f"\nlargest difference between the two ways' features: {difference:.1e} of the largest feature")
    return _keep(args.json, report.to_json())


def _ksae(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.ksae import PRECISIONS, SHAPES, bench_ksae
    from diffprobe.benchmarks.ksae_peers import PEERS

    peers = () if args.no_peers else tuple(PEERS)
    report = bench_ksae(tuple(args.shape or SHAPES), steps=args.steps, rounds=args.rounds, peers=peers, say=_say)
    print(f"{report.machine}; the fastest of {report.rounds} x {report.steps - 1} steps")
    print("\n| batch, width, latents, k | precision | contender | s/step | x ours | x encoder | peak MiB | fvu |")
    print("|---|---|---|---|---|---|---|---|")
    cells = [(row, precision) for row in report.rows for precision in PRECISIONS]
    for row, precision in cells:
        ours, floor = row.of("ours", precision), row.of("floor", precision)
        for one in (floor, ours, *row.peers(precision), row.of("dense", precision)):
            name = {"floor": "encoder alone", "dense": "dense step"}.get(one.contender, one.contender)
            print(
                f"| {row.name} | {precision} | {name} | {one.seconds:.3f} | {one.seconds / ours.seconds:.2f} "
                f"| {one.seconds / floor.seconds:.2f} | {one.peak_mib:,.0f} ({one.loaded_mib:,.0f} before) "
                f"| {'' if one.fvu is None else f'{one.fvu:.4f}'} |"
            )
    print("\n| batch, width, latents, k | precision | dense / ours | fastest other / ours | ours / encoder |")
    print("|---|---|---|---|---|")
    for row, precision in cells:
        dense_s, ours_s, floor_s = (row.of(name, precision).seconds for name in ("dense", "ours", "floor"))
        best = [f"{peer.seconds / ours_s:.1f} ({peer.contender})" for peer in row.peers(precision)[:1]]
        ratio = f"{dense_s / ours_s:.1f} | {' '.join(best) or '-'} | {ours_s / floor_s:.2f}"
        print(f"| {row.name} | {precision} | {ratio} |")
    print()
    for name, version in report.versions.items():
        print(f"{name}: {version}")
    for name, reason in report.absent.items():
        print(f"{name}: {reason}")
    return _keep(args.json, report.to_json())


def _say(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)


def _require_room(file: str | None) -> None:
    """Try the file before anything is measured. Raises: OSError."""
    from pathlib import Path

    if file:
        path = Path(file)
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()


def _keep(file: str | None, text: str) -> int:
    from pathlib import Path

    if file:
        Path(file).write_text(text, encoding="utf-8")
    return 0


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(
            f"'{text}' is no shape: write batch,width,latents,k, for example 2048,1280,5120,32"
        )
    return tuple(map(int, parts))
