"""``diffprobe eval``: measure a backbone before anything is read from it, or a trained autoencoder by what it costs."""

import argparse
from pathlib import Path

HELP = "measure a backbone on held-out images, or what a trained sae costs the backbone it reads"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    backbone = what.add_parser("backbone", help="a StableDiffusionPipeline folder, or emoji-sd")
    backbone.add_argument("backbone", metavar="BACKBONE", help="emoji-sd, or a folder in diffusers format")
    backbone.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="SETTING",
        help="key=value, for example data.limit=100 (default: emoji/evaluate)",
    )
    sae = what.add_parser("sae", help="denoising error with the features replaced by their reconstruction")
    sae.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a trained sae run, or grid of them")
    sae.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="SETTING",
        help="key=value, for example limit=100 (default: emoji/evaluate_sae)",
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, and tell by the exit status whether all gates were reached."""
    return _run_sae(args) if args.what == "sae" else _run_backbone(args)


def _run_backbone(args: argparse.Namespace) -> int:
    from diffprobe.config.compose import load, setting_text, split_experiment

    experiment, settings = split_experiment(None, args.settings)
    settings = [f"model={setting_text(args.backbone)}", *settings]
    config = load(experiment or "emoji/evaluate", settings, kinds=("evaluate_backbone",))
    from diffprobe.evaluation.backbone import evaluate_backbone

    path, missed = evaluate_backbone(config)
    _print(path)
    for line in missed:
        print(f"gate missed: {line}")
    return 1 if missed else 0


def _run_sae(args: argparse.Namespace) -> int:
    from diffprobe.config.compose import load, setting_text, split_experiment

    experiment, settings = split_experiment(None, args.settings)
    settings = [f"run={setting_text(args.run_folder)}", *settings]
    config = load(experiment or "emoji/evaluate_sae", settings, kinds=("evaluate_sae",))
    from diffprobe.evaluation.sae import evaluate_sae

    paths = evaluate_sae(config)
    for path in paths:
        _print(path, headed=len(paths) > 1)
    return 0


def _print(path: Path, *, headed: bool = False) -> None:
    from diffprobe.core.result import read_result

    result = read_result(path)
    if headed:
        print(f"{result.config['run']}:")
    for record in result.metrics:
        controls = ", ".join(f"{name} {value:.4g}" for name, value in record.controls.items())
        interval = record.detail.get("interval")
        spread = f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else ""
        of = f"  {record.cell}" if record.cell else ""
        print(
            f"{record.split:5} {record.name:24} {record.value:8.4g}{spread}  n={record.n}{of}"
            + (f"  ({controls})" if controls else "")
        )
        if "no_recovered" in record.detail:
            print(f"{record.split:5} no share recovered: {record.detail['no_recovered']}")
    print(f"result: {path}")
