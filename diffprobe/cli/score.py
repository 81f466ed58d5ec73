"""``diffprobe score``: choose captions and classes by the model's own denoising error."""

import argparse
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_settings

if TYPE_CHECKING:
    from diffprobe.evaluation.score_settings import ScoreConfig

GROUP = "meaning"
HELP = "choose captions or classes by the model's denoising error"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings and `--check`."""
    add_settings(parser, note="an experiment of kind score is needed")
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table of accuracies. Returns 0."""
    config = load_score(args.settings)
    if args.check:
        print("\n".join(["the configuration is valid", *cost_lines(config)]))
        return 0
    from diffprobe.core.result import read_result
    from diffprobe.evaluation.score import score
    from diffprobe.report.score_table import terminal_lines

    path = score(config)
    print("\n".join([*terminal_lines(read_result(path)), f"result: {path}"]))
    return 0


def load_score(words: list[str]) -> "ScoreConfig":
    """Compose and validate a configuration: `experiment=NAME`, or a name or YAML file alone, and settings.

    Raises: ConfigError without an experiment, for several, or for errors of the configuration.
    """
    from diffprobe.config.compose import load, split_experiment
    from diffprobe.core.errors import ConfigError

    words = [word if "=" in word else f"experiment={word}" for word in words]
    experiment, settings = split_experiment(None, words)
    if experiment is None:
        raise ConfigError("the experiment is missing.", fix="diffprobe score experiment=emoji/score")
    found: ScoreConfig = load(experiment, settings, kinds=("score",))
    return found


def cost_lines(config: "ScoreConfig") -> list[str]:
    """Return the denoiser passes of an image, without those of ties and of learned weights."""
    from diffprobe.evaluation.score_settings import passes_per_image

    rule, lines = config.candidates, []
    if rule.kind == "classes":
        lines.append("the number of classes is known when the data are read; passes for 10 candidates:")
    n = 10 if rule.kind == "classes" else rule.n
    per_set = passes_per_image(n, config.n_timesteps, config.stages)
    runs = (config.noise_sets + config.random_denoiser) * max(1, len(rule.phrases))
    most = "at most " if rule.kind == "matched" else ""
    images = n if rule.kind == "retrieval" else config.limit
    lines.append(
        f"denoiser passes per image: {most}{per_set:,} for one set of noise, {most}{per_set * runs:,} for "
        f"{config.noise_sets} sets{' and the random denoiser' if config.random_denoiser else ''}"
    )
    if config.dsd.few_shot.images:
        lines.append(f"training before: {config.dsd.few_shot.steps:,} steps, each of the candidates of one image")
    if config.overlap.images:
        each = n * config.n_timesteps
        lines.append(f"overlap: {each:,} passes for each of {config.overlap.images} images per class")
    if images is not None:
        lines.append(f"denoiser passes of {images:,} images: at most {per_set * runs * images:,}")
    return lines
