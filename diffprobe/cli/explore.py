"""``diffprobe explore``: a folder of pages on the latents of an autoencoder that opens from disk."""

import argparse
from functools import partial
from pathlib import Path

from diffprobe.cli.arguments import add_check, parse_keys
from diffprobe.core.errors import ConfigError

GROUP = "meaning"
HELP = "write pages on the latents of an autoencoder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the runs, the settings and the output folder."""
    parser.add_argument("run", metavar="RUN", help="folder of a trained SAE run, or of a grid over seeds")
    parser.add_argument(
        "words", nargs="*", default=[], metavar="RUN2 KEY=VALUE",
        help="a second run to compare with; settings: split=NAME, seeds=[RUN,...], and those of the documentation",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FOLDER", help="folder of the pages (default: RUN/explorer)")
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Write the pages, and print their path and size."""
    from diffprobe.evaluation.explore_settings import ExploreConfig

    others, settings = split_words(args.words)
    config = parse_keys(settings, ExploreConfig)
    if len(others) > 1:
        raise ConfigError(f"explore compares two runs; given: {', '.join([args.run, *others])}.")
    if args.check:
        print("the configuration is valid")
        return 0
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.evaluation.explore import FOLDER, Measure, explore
    from diffprobe.evaluation.explore_files import columns_of_files
    from diffprobe.evaluation.explore_monosemanticity import monosemanticity_numbers
    from diffprobe.evaluation.explore_numbers import held_out_numbers
    from diffprobe.evaluation.explore_parts import part_numbers
    from diffprobe.report.explorer.writer import ExplorerWriter

    keep_freed_memory()
    folder = Path(args.run) / FOLDER if args.out is None else Path(args.out)
    measures: list[Measure] = []
    if config.numbers:
        measures = [held_out_numbers, part_numbers, partial(monosemanticity_numbers, config=config)]
    of_first: list[Measure] = [partial(columns_of_files, config.columns)] if config.columns else []
    page = explore([args.run, *others], config, ExplorerWriter(folder), measures=measures, of_first=of_first)
    files = [path for path in folder.rglob("*") if path.is_file()]
    n_bytes = sum(path.stat().st_size for path in files)
    print(f"page: {page}")
    print(f"size: {n_bytes / 1e6:,.1f} MB in {len(files):,} files")
    return 0


def split_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Return the further runs and the settings `key=value` among words. A folder whose path has "=" is a run."""
    runs: list[str] = []
    settings: list[str] = []
    for word in words:
        key, equals, _ = word.partition("=")
        is_setting = bool(equals) and key.isidentifier() and not Path(word).is_dir()
        (settings if is_setting else runs).append(word)
    return runs, settings
