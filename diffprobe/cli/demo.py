"""``diffprobe demo``: the main job on the shipped images and model, from shards to a report; or another demo."""

import argparse
import re

from diffprobe.cli.arguments import add_check, add_settings

GROUP = "runs"
HELP = "run the main job, or another demo, on shipped data; writes a page"
STAYS = "finished steps and saved checkpoints are on disk"
"""What a command that was stopped continues from."""
_NAME = re.compile(r"[A-Za-z][\w-]*")
_FILE = "/demo"
"""A demo is an experiment file `<name>/demo`."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings, among which the name of a demo is found, and `--check`."""
    add_settings(
        parser,
        note="keys of the demo (output=DIR, panels.n_latents=12) apply to the demo, all others to every run "
        "(backbone.path=FOLDER, data.limit=500, logger=wandb). A word without = is the name of a demo: emoji (the "
        "default) or scenes (the rendered world, its twin models, planted and generated rates)",
    )
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Validate the demo, run it, print its tables and write its report."""
    from diffprobe.config.compose import kind_of, split_experiment

    name, settings = split_name(args.settings)
    experiment, settings = split_experiment(None if name is None else f"{name}{_FILE}", settings)
    if experiment is not None and kind_of(experiment) == "scenes_demo":
        return _run_scenes(experiment, settings, check=args.check)
    named = [] if experiment is None else [f"experiment={experiment}"]
    return _run_probes([*named, *settings], check=args.check)


def split_name(settings: list[str]) -> tuple[str | None, list[str]]:
    """Separate the name of a demo from the settings.

    Returns: the name, None if none is given; the settings.
    Raises: UnknownName for a demo that does not exist; ConfigError for two names.
    """
    from diffprobe.config import search_path
    from diffprobe.core.errors import ConfigError, unknown

    names = [setting for setting in settings if _NAME.fullmatch(setting)]
    demos = [name.removesuffix(_FILE) for name in search_path.experiments() if name.endswith(_FILE)]
    for name in names:
        if name not in demos:
            raise unknown("demo", name, demos)
    if len(names) > 1:
        raise ConfigError(f"{len(names)} demos are named: {', '.join(names)}.", fix=f"diffprobe demo {names[0]}")
    return (names[0] if names else None), [setting for setting in settings if setting not in names]


def _run_scenes(experiment: str, settings: list[str], *, check: bool) -> int:
    from diffprobe.demo.console import DemoConsole
    from diffprobe.demo.scenes.config import check_scenes
    from diffprobe.demo.scenes.measures import as_lines, comparison_table, notes, quality_table
    from diffprobe.demo.scenes.page import write_scenes_report
    from diffprobe.demo.scenes.run import load_scenes, run_scenes

    view = DemoConsole()
    with view.loading():
        config = load_scenes(experiment, settings)
        check_scenes(config)
    if check:
        models = " and ".join(twin.model for twin in config.twins)
        print(f"the configuration is valid: {models}, {len(config.prompts)} prompts, in {config.output}")
        return 0
    view.heading(config.title, [
        *((twin.model, f"trained on the world {twin.world}") for twin in config.twins),
        ("images", f"{config.n_per_role} per role and model, and {config.images_per_prompt} per prompt and model"),
    ])  # fmt: skip
    outcome = run_scenes(config, view)
    path = write_scenes_report(outcome, view)
    view.lines("Rates of striped clothes against those of both worlds", as_lines(comparison_table(outcome)))
    view.lines("What else is measured", as_lines(quality_table(outcome)))
    view.lines("How to read it", notes(outcome))
    results = ", ".join(str(one.path) for one in outcome.twins)
    view.ending([("report", str(path)), ("results", results)], "Next", config.next_steps)
    return 0


def _run_probes(settings: list[str], *, check: bool) -> int:
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.demo.console import DemoConsole
    from diffprobe.demo.needs import check_needs
    from diffprobe.demo.run import load_demo, run_demo, write_report

    keep_freed_memory()  # before the first tensor is allocated
    view = DemoConsole()
    with view.loading():
        demo = load_demo(settings)
    if check:
        check_needs(demo)
        print(f"the configurations are valid: {len(demo.runs)} runs, {len(demo.stores())} stores, in {demo.folder}")
        return 0
    outcome = run_demo(demo, view)
    directions = write_report(outcome, view)
    view.tables(outcome)
    view.directions(directions, demo.config.panels.n_printed)
    view.closing(outcome)
    return 0
