"""``diffprobe demo``: the main job on the shipped images and model, from shards to a report."""

import argparse

HELP = "the main job on the shipped images and model: extract, train, print tables, write report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="SETTING",
        help="for every run: backbone.path=FOLDER, data.limit=500, logger=wandb, ...; for the demo: output=DIR, "
        "panels.n_latents=12, or another demo with experiment=NAME",
    )
    parser.add_argument("--check", action="store_true", help="judge all configurations and stop; nothing is loaded")


def run(args: argparse.Namespace) -> int:
    """Judge, run, and show."""
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.demo.console import DemoConsole
    from diffprobe.demo.run import load_demo, run_demo, write_report

    keep_freed_memory()  # before the first tensor
    view = DemoConsole()
    with view.loading():
        demo = load_demo(args.settings)
    if args.check:
        print(f"the configurations are fine: {len(demo.runs)} runs, {len(demo.stores())} stores, in {demo.folder}")
        return 0
    outcome = run_demo(demo, view)
    directions = write_report(outcome, view)
    view.tables(outcome)
    view.directions(directions, demo.config.panels.n_printed)
    view.closing(outcome)
    return 0
