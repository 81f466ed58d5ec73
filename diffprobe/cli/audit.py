"""``diffprobe audit``: associations of subjects with attributes, read from prompt latents of a model."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_settings

if TYPE_CHECKING:
    from diffprobe.evaluation.audit_settings import Audit

GROUP = "meaning"
HELP = "associations of subjects with attributes, from prompts alone"
STAYS = "the latents of finished steering are on disk"
"""What a command that was stopped continues from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings, `--prompts` and `--check`."""
    add_settings(parser, note="an experiment of kind audit is needed, and store=FOLDER")
    parser.add_argument(
        "--prompts", metavar="FILE", help="write the prompts whose latents the audit reads, one per line, and stop"
    )
    parser.add_argument(
        "--speed", type=float, metavar="PASSES_PER_SECOND",
        help="with --check: denoiser passes per second of the device, for the hours",
    )  # fmt: skip
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table of each axis. Returns 0."""
    from diffprobe.core.errors import ConfigError

    config = load_audit(args.settings)
    if args.speed is not None and not args.check:
        raise ConfigError("--speed has no effect without --check.", fix="diffprobe audit EXPERIMENT --check --speed 30")
    if args.prompts is not None:
        return _write_prompts(Path(args.prompts), config)
    if args.check:
        return _check(config, args.speed)
    from diffprobe.core.result import read_result
    from diffprobe.evaluation.audit import audit
    from diffprobe.report.audit_steering import steering_lines
    from diffprobe.report.audit_table import terminal_lines

    written = audit(config)
    result = read_result(written.result)
    for line in [*terminal_lines(result), *steering_lines(result)]:
        print(line)
    print(f"result: {written.result}")
    print(f"table: {written.csv}")
    print(f"page: {written.page}")
    if written.steering is not None:
        print(f"steering: {written.steering}")
    if written.rates is not None:
        print(f"rates of {config.main_axis}: {written.rates}")
    return 0


def load_audit(words: list[str]) -> "Audit":
    """Compose and validate an audit: `experiment=NAME`, or a name or YAML file alone, and settings.

    Raises: ConfigError without an experiment, for several, or for errors of the configuration.
    """
    from diffprobe.config.compose import load, split_experiment
    from diffprobe.core.errors import ConfigError

    words = [word if "=" in word else f"experiment={word}" for word in words]
    experiment, settings = split_experiment(None, words)
    if experiment is None:
        from diffprobe.config import search_path
        from diffprobe.config.source_lines import read_kind

        known = [name for name, path in search_path.experiments().items() if read_kind(path) == "audit"]
        raise ConfigError("the experiment is missing.", f"experiments of kind audit: {', '.join(known) or '(none)'}",
                          fix="diffprobe audit experiment=NAME")  # fmt: skip
    found: Audit = load(experiment, settings, kinds=("audit",))
    return found


def _check(config: "Audit", speed: float | None) -> int:
    """Check prompts by the tokenizer, where it is there, and print what the audit costs."""
    from diffprobe.core.errors import ConfigError
    from diffprobe.evaluation.audit_cost import check_tokens, cost_lines, cost_of

    if speed is not None and not 0 < speed < float("inf"):
        raise ConfigError(f"--speed={speed:g} is out of range: above 0.")
    lines = [*check_tokens(config), *cost_lines(config, cost_of(config), speed=speed)]
    print("\n".join(["the configuration is valid", *lines]))
    return 0


def _write_prompts(path: Path, config: "Audit") -> int:
    from diffprobe.analysis.audit.prompts import all_prompts
    from diffprobe.core.atomic_file import atomic_file
    from diffprobe.core.errors import ConfigError
    from diffprobe.evaluation.audit_cost import check_tokens

    check_tokens(config)
    prompts = all_prompts(config)
    if broken := [text for text in prompts if len(text.splitlines()) != 1]:
        raise ConfigError(f"the prompt {broken[0]!r} has several lines; the file has one prompt per line.")
    with atomic_file(path) as temporary:
        temporary.write_text("".join(f"{text}\n" for text in prompts), encoding="utf-8")
    print(f"{len(prompts):,} prompts: {path}")
    return 0
