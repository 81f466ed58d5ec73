"""``diffprobe demo``: the main job on the shipped images and model, from shards to a report."""

import argparse

from diffprobe.cli.arguments import add_check, add_settings

GROUP = "runs"
HELP = "run the main job on the shipped data and write report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings and `--check`."""
    add_settings(
        parser,
        note="keys of the demo (output=DIR, panels.n_latents=12) apply to the demo, all others to every run "
        "(backbone.path=FOLDER, data.limit=500, logger=wandb)",
    )
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Validate all runs, run them, print the tables and write the report."""
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.demo.console import DemoConsole
    from diffprobe.demo.needs import check_needs
    from diffprobe.demo.run import load_demo, run_demo, write_report

    keep_freed_memory()  # before the first tensor is allocated
    view = DemoConsole()
    with view.loading():
        demo = load_demo(args.settings)
    if args.check:
        check_needs(demo)
        print(f"the configurations are valid: {len(demo.runs)} runs, {len(demo.stores())} stores, in {demo.folder}")
        return 0
    outcome = run_demo(demo, view)
    directions = write_report(outcome, view)
    view.tables(outcome)
    view.directions(directions, demo.config.panels.n_printed)
    view.closing(outcome)
    return 0
