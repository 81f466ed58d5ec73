"""`diffprobe bench`: speed beside a baseline and a floor, in one run."""

import argparse

HELP = "measure the speed of extraction beside the plain way and the least work"


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
    extraction.add_argument("--json", metavar="FILE", help="write everything measured to a file")


def run(args: argparse.Namespace) -> int:
    """Measure and print a Markdown table."""
    import sys
    from pathlib import Path

    from diffprobe.experiment.bench_extraction import Setting, bench_extraction

    fields = ("size", "resolution", "images", "repeats", "dtype", "device")
    setting = Setting(**{name: getattr(args, name) for name in fields})
    report = bench_extraction(setting, say=lambda line: print(line, file=sys.stderr, flush=True))
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
    if args.json:
        Path(args.json).write_text(report.to_json(), encoding="utf-8")
    return 0
