"""``diffprobe eval backbone``: measure a text-to-image model on held-out images before anything is read from it."""

import argparse

HELP = "measure a backbone: reconstruction, use of the text, choice among captions, samples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    backbone = what.add_parser("backbone", help="a StableDiffusionPipeline folder, or emoji-sd")
    backbone.add_argument("backbone", metavar="BACKBONE", help="emoji-sd, or a folder in diffusers format")
    backbone.add_argument(
        "settings", nargs="*", metavar="SETTING", help="key=value, for example data.limit=100 (default: emoji/evaluate)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print, and tell by the exit status whether all gates were reached."""
    from diffprobe.config.compose import load, split_experiment

    experiment, settings = split_experiment(None, args.settings)
    config = load(experiment or "emoji/evaluate", [f"model={args.backbone}", *settings])
    from diffprobe.core.result import read_result
    from diffprobe.experiment.evaluate_backbone import evaluate_backbone

    path, missed = evaluate_backbone(config)
    for record in read_result(path).metrics:
        nulls = ", ".join(f"{name} {value:.4g}" for name, value in record.nulls.items())
        interval = record.detail.get("interval")
        spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        print(
            f"{record.split:5} {record.name:24} {record.value:8.4g}{spread}  n={record.n}"
            + (f"  ({nulls})" if nulls else "")
        )
    print(f"result: {path}")
    for line in missed:
        print(f"gate missed: {line}")
    return 1 if missed else 0
