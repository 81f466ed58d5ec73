"""``diffprobe score``: choose captions and classes by the model's own denoising error."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_settings, part_of

if TYPE_CHECKING:
    from diffprobe.evaluation.score_settings import ScoreConfig

GROUP = "meaning"
HELP = "choose captions or classes by the model's denoising error"
STAYS = "the errors of finished images are on disk"
"""What a command that was stopped continues from."""
TAKES_PROCESSES = True
_PROCESS = (
    "score part I of N of the images (0/2 and 1/2 together make the result); parts share the output folder and can run "
    "at the same time. Default: the numbers that torchrun, srun or mpirun gives its processes, or all images"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings and `--check`."""
    add_settings(parser, note="an experiment of kind score is needed")
    add_check(parser)
    parser.add_argument("--process", metavar="I/N", type=part_of, help=_PROCESS)
    parser.add_argument("--figure", metavar="FILE", help="draw accuracy against denoiser passes (.pdf, .svg or .png)")


def run(args: argparse.Namespace) -> int:
    """Print the table of accuracies. Returns 0."""
    from diffprobe.features.process_partition import Share, share_of
    from diffprobe.report.figure_file import check_ending

    config = load_score(args.settings)
    if args.figure:
        check_ending(args.figure)
    if args.check:
        print("\n".join(["the configuration is valid", *cost_lines(config)]))
        return 0
    from diffprobe.core.result import read_result
    from diffprobe.evaluation.score import score
    from diffprobe.report.score_table import terminal_lines

    share = share_of(os.environ) if args.process is None else Share(*args.process)
    if share.note:
        print(f"process {share} ({share.note})", file=sys.stderr)
    path = score(config, process=(share.index, share.count))
    if path is None:
        print(f"part {share} is scored; errors of other parts are missing. The part that ends last writes the result.")
        return 0
    result = read_result(path)
    print("\n".join([*terminal_lines(result), f"result: {path}"]))
    if args.figure:
        from diffprobe.report.figure_file import save_figures
        from diffprobe.report.score_figure import accuracy_by_passes

        print("\n".join(f"figure: {file}" for file in save_figures([accuracy_by_passes(result)], args.figure)))
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
    if rule.kind in ("classes", "sets"):
        lines.append("the number of candidates is known when the data are read; passes for 10 candidates:")
    n = 10 if rule.kind in ("classes", "sets") else rule.n
    per_set = passes_per_image(n, config.n_timesteps, config.stages)
    others = {
        "the random denoiser": config.random_denoiser,
        "the text-free model": config.text_free_model is not None,
        "generated images": config.generated.steps > 0,
    }
    runs = (config.noise_sets + sum(others.values())) * max(1, len(rule.phrases))
    also = "".join(f" and {name}" for name, is_run in others.items() if is_run)
    most = "at most " if rule.kind == "matched" else ""
    images = n if rule.kind == "retrieval" else config.limit
    lines.append(
        f"denoiser passes per image: {most}{per_set:,} for one set of noise, {most}{per_set * runs:,} for "
        f"{config.noise_sets} sets{also}"
    )
    if config.generated.steps:
        lines.append(f"denoiser passes of a generated image: {config.generated.passes:,}")
    if config.dsd.few_shot.images:
        lines.append(f"training before: {config.dsd.few_shot.steps:,} steps, each of the candidates of one image")
    if config.overlap.images:
        each = n * config.n_timesteps
        lines.append(f"overlap: {each:,} passes for each of {config.overlap.images} images per class")
    if images is not None:
        lines.append(f"denoiser passes of {images:,} images: at most {per_set * runs * images:,}")
    return lines
