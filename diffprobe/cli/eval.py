"""``diffprobe eval``: evaluate a backbone on held-out images, the rates of its images, directions from prompts, ways to
steer, the clusters of a self-guided denoiser, the classes or lifetimes of an SAE's latents, points that are matched
between images, classes or depth of pixels (read from few labelled images, or by words), or the denoising error that
changes inside it cause: the reconstruction of an SAE, single latents ablated, or taps that are ablated and patched."""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.cli.arguments import add_check, add_settings

if TYPE_CHECKING:
    from diffprobe.core.result import MetricRecord, RunResult

GROUP = "probes"
HELP = "evaluate a backbone, its use of taps, or an autoencoder"
STAYS = {
    "use": "the errors of finished cells are on disk",
    "latents": "the results of finished blocks of latents are on disk",
    "generations": "the images of finished cells are on disk",
    "rates": "the images of finished roles are on disk",
    "long-tail": "the images of finished roles are on disk",
    "joint": "the images of finished roles are on disk",
    "steering": "the latents of finished edits are on disk",
    "correspondence": "the matches of finished cells are on disk",
    "directions": "extracted latents of prompts are on disk",
}
"""What a command that was stopped continues from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-verbs: what is evaluated."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    backbone = what.add_parser("backbone", help="reconstruction, denoising and captions of a text-to-image backbone")
    backbone.add_argument("backbone", metavar="BACKBONE", help="emoji-sd, or a StableDiffusionPipeline folder")
    sae = what.add_parser("sae", help="denoising error with the features replaced by their reconstruction")
    sae.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a trained SAE run, or of a grid of them")
    labels = what.add_parser("labels", help="classes of the top images of an SAE's latents: sigma_label, purity, AUROC")
    labels.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a trained SAE run, or of a grid of them")
    granularity = what.add_parser("granularity", help="how fine an SAE's latents are, by a rater of their top images")
    granularity.add_argument(
        "run_folder", metavar="RUN_FOLDER", help="folder of a trained SAE run, or of a grid of them"
    )
    correspondence = what.add_parser("correspondence", help="named points of one image found in another (DIFT)")
    segmentation = what.add_parser("segmentation", help="classes of pixels, read from few labelled images")
    depth = what.add_parser("depth", help="depth of pixels, read linearly from few labelled images")
    concepts = what.add_parser("concepts", help="classes of pixels by words, without training (ConceptAttention)")
    lifetimes = what.add_parser("lifetimes", help="timesteps at which an SAE's latents are born, peak and die")
    lifetimes.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a trained SAE run on several timesteps")
    latents = what.add_parser("latents", help="what an SAE's latents read, beside what the denoiser uses of them")
    latents.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a trained SAE run")
    use = what.add_parser("use", help="denoising error with the taps of a probe experiment ablated or patched")
    generations = what.add_parser("generations", help="attributes of generated images with taps ablated or patched")
    rates = what.add_parser("rates", help="rates of an attribute in the images of a model, against planted rates")
    rates.add_argument("model", metavar="MODEL", help="a StableDiffusionPipeline folder, or renderer (rendered images)")
    long_tail = what.add_parser("long-tail", help="images of classes with many, medium and few training images")
    long_tail.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a denoiser that was trained on classes")
    clusters = what.add_parser("clusters", help="clusters of a self-guided denoiser, against labels it did not read")
    clusters.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a finished scenes/train_self_guided")
    joint = what.add_parser("joint", help="captions retrieved and images drawn by a denoiser of joint training")
    joint.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a denoiser, with or without alignment")
    directions = what.add_parser("directions", help="directions from prompts, against counterfactual scenes")
    directions.add_argument("model", metavar="MODEL", help="scenes-sd, or the folder of another model of that world")
    steering = what.add_parser("steering", help="latents, directions, neurons and texts that steer, compared")
    steering.add_argument("run_folder", metavar="RUN_FOLDER", help="folder of a trained SAE run of scenes")
    selectors = what.add_parser("selectors", help="cells chosen without labels, beside those that val chooses")
    selectors.add_argument("run_folders", metavar="RUN_FOLDER", nargs="+", help="finished classifiers of several cells")
    selectors.add_argument("--encoder", metavar="PATH", help="features for CKNNA: a feature store, or an .npz file")
    selectors.add_argument("--encoder-cell", metavar="CELL", help="cell of the store; default: its only one")
    selectors.add_argument("--metric", default="accuracy", help="metric by which val selects (default: accuracy)")
    selectors.add_argument("--neighbours", type=int, default=10, metavar="K", help="k of CKNNA (default: 10)")
    selectors.add_argument("--limit", type=int, default=2000, metavar="N", help="training samples (default: 2000)")
    for parser_of, default in (
        (backbone, "emoji/evaluate"), (sae, "emoji/evaluate_sae"), (labels, "emoji/labels/evaluate"),
        (granularity, "emoji/labels/granularity"), (lifetimes, "emoji/lifetimes"), (latents, "emoji/latent_use"),
        (use, "emoji/use"), (generations, "emoji/generations"), (rates, "scenes/rates"),
        (long_tail, "scenes/long_tail/evaluate"), (clusters, "scenes/clusters"),
        (joint, "scenes/diffdis_joint/evaluate"),
        (directions, "scenes/directions"), (correspondence, "scenes/correspondence"), (steering, "scenes/steering"),
        (segmentation, "scenes/segmentation"), (depth, "scenes/depth"), (concepts, "scenes/concepts"),
    ):  # fmt: skip
        of_cells = parser_of in (use, generations)
        note = "or the folder of a finished run, whose cells are measured; " if of_cells else ""
        add_settings(parser_of, note=f"{note}default experiment: {default}")
        add_check(parser_of)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the metrics. Returns 1 if a gate is missed, else 0."""
    verbs: dict[str, Callable[[argparse.Namespace], int]] = {
        "backbone": _run_backbone, "sae": _run_sae, "labels": _run_labels,
        "granularity": _run_granularity, "lifetimes": _run_lifetimes, "latents": _run_latents, "use": _run_use,
        "generations": _run_generations, "rates": _run_rates, "directions": _run_directions,
        "long-tail": partial(_run_of_run, default="scenes/long_tail/evaluate", kind="evaluate_long_tail"),
        "clusters": partial(_run_of_run, default="scenes/clusters", kind="evaluate_clusters"),
        "joint": partial(_run_of_run, default="scenes/diffdis_joint/evaluate", kind="evaluate_joint"),
        "steering": _run_steering, "selectors": _run_selectors, "correspondence": _run_correspondence,
        "segmentation": _run_segmentation, "depth": _run_depth, "concepts": _run_concepts,
    }  # fmt: skip
    return verbs[args.what](args)


def _run_backbone(args: argparse.Namespace) -> int:
    config = _load(args, f"model={_text(args.backbone)}", "emoji/evaluate", "evaluate_backbone")
    if args.check:
        return _valid()
    from diffprobe.evaluation.backbone import evaluate_backbone
    from diffprobe.evaluation.backbone_tables import TABLES_FILE

    path, checks = evaluate_backbone(config)
    _print(path, notes=_caption_notes)
    print(f"tables: {path.with_name(TABLES_FILE)}")
    missed = [check for check in checks if not check.reached]
    for check in missed:
        print(f"gate missed: {check.line}")
    return 1 if missed else 0


def _caption_notes(record: "MetricRecord") -> list[str]:
    """Return lines with the paired differences of an accuracy, and with the accuracy by the values of attributes."""
    from diffprobe.evaluation.caption_accuracy import BY
    from diffprobe.evaluation.gates import DIFFERENCES

    lines = [
        f"  minus {name}: {found['estimate']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
        for name, found in record.detail.get(DIFFERENCES, {}).items()
    ]
    for attribute, values in record.detail.get(BY, {}).items():
        shown = ", ".join(f"{value} {found['accuracy']:.3f} (n={found['n']:,})" for value, found in values.items())
        lines.append(f"  by {attribute}: {shown}")
    return lines


def _run_sae(args: argparse.Namespace) -> int:
    config = _load(args, f"run={_text(args.run_folder)}", "emoji/evaluate_sae", "evaluate_sae")
    if args.check:
        return _valid()
    from diffprobe.evaluation.sae import evaluate_sae

    paths = evaluate_sae(config)
    for path in paths:
        _print(path, headed=len(paths) > 1)
    return 0


def _run_labels(args: argparse.Namespace) -> int:
    config = _load(args, f"run={_text(args.run_folder)}", "emoji/labels/evaluate", "evaluate_labels")
    if args.check:
        return _valid()
    from diffprobe.core.result import read_result
    from diffprobe.evaluation.labels import evaluate_labels, summary_lines

    for path in evaluate_labels(config):
        print("\n".join(summary_lines(read_result(path))))
        print(f"result: {path}")
    return 0


def _run_granularity(args: argparse.Namespace) -> int:
    settings = f"run={_text(args.run_folder)}"
    config = _load(args, settings, "emoji/labels/granularity", "evaluate_granularity")
    if args.check:
        return _valid()
    from diffprobe.evaluation.granularity import evaluate_granularity

    paths = evaluate_granularity(config)
    for path in paths:
        _print(path, headed=len(paths) > 1)
    return 0


def _run_lifetimes(args: argparse.Namespace) -> int:
    config = _load(args, f"run={_text(args.run_folder)}", "emoji/lifetimes", "evaluate_lifetimes")
    if args.check:
        return _valid()
    from diffprobe.evaluation.lifetimes import FIGURE_FILE, TABLE_FILE, evaluate_lifetimes

    paths = evaluate_lifetimes(config)
    for path in paths:
        _print(path, headed=len(paths) > 1)
        print(f"latents: {path.with_name(TABLE_FILE)}")
        print(f"figure: {path.with_name(FIGURE_FILE)}")
    return 0


def _run_latents(args: argparse.Namespace) -> int:
    config = _load(args, f"run={_text(args.run_folder)}", "emoji/latent_use", "evaluate_latents")
    if args.check:
        return _valid()
    from diffprobe.evaluation.latent_use import evaluate_latents
    from diffprobe.evaluation.latent_use_tables import TABLE_FILE, summary_lines

    path = evaluate_latents(config)
    print("\n".join(summary_lines(path)))
    print(f"table: {path.with_name(TABLE_FILE)}")
    print(f"result: {path}")
    return 0


def _run_use(args: argparse.Namespace) -> int:
    from diffprobe.evaluation.use_settings import load_use

    config = load_use(args.settings)
    if args.check:
        return _valid()
    from diffprobe.evaluation.use import evaluate_use

    _print(evaluate_use(config))
    return 0


def _run_generations(args: argparse.Namespace) -> int:
    from diffprobe.evaluation.use_settings import load_generations

    config = load_generations(args.settings)
    if args.check:
        return _valid()
    from diffprobe.evaluation.generations import evaluate_generations

    _print(evaluate_generations(config))
    return 0


def _run_rates(args: argparse.Namespace) -> int:
    config = _load(args, f"model={_text(args.model)}", "scenes/rates", "evaluate_rates")
    if args.check:
        return _valid()
    from diffprobe.evaluation.rates import evaluate_rates

    _print(evaluate_rates(config))
    return 0


def _run_directions(args: argparse.Namespace) -> int:
    config = _load(args, f"model={_text(args.model)}", "scenes/directions", "evaluate_directions")
    if args.check:
        return _valid()
    from diffprobe.evaluation.direction_tables import TABLES_FILE, summary_lines
    from diffprobe.evaluation.directions import evaluate_directions

    return _print_summary(evaluate_directions(config), summary_lines, {"tables": TABLES_FILE})


def _run_segmentation(args: argparse.Namespace) -> int:
    config = _load(args, None, "scenes/segmentation", "evaluate_segmentation")
    if args.check:
        return _valid(*config.cost_lines)
    from diffprobe.evaluation.dense_scores import summary_lines
    from diffprobe.evaluation.segmentation import evaluate_segmentation

    return _print_summary(evaluate_segmentation(config), summary_lines)


def _run_depth(args: argparse.Namespace) -> int:
    config = _load(args, None, "scenes/depth", "evaluate_depth")
    if args.check:
        return _valid(*config.cost_lines)
    from diffprobe.evaluation.dense_scores import summary_lines
    from diffprobe.evaluation.depth import evaluate_depth

    return _print_summary(evaluate_depth(config), summary_lines)


def _run_concepts(args: argparse.Namespace) -> int:
    config = _load(args, None, "scenes/concepts", "evaluate_concepts")
    if args.check:
        return _valid(*config.cost_lines)
    from diffprobe.evaluation.concepts import evaluate_concepts
    from diffprobe.evaluation.concepts_picture import PICTURE_FILE
    from diffprobe.evaluation.concepts_records import summary_lines

    files = {"picture": PICTURE_FILE} if config.n_shown else {}
    return _print_summary(evaluate_concepts(config), summary_lines, files)


def _run_correspondence(args: argparse.Namespace) -> int:
    config = _load(args, None, "scenes/correspondence", "evaluate_correspondence")
    if args.check:
        return _valid(*config.cost_lines)
    from diffprobe.evaluation.correspondence import evaluate_correspondence
    from diffprobe.evaluation.correspondence_records import summary_lines

    return _print_summary(evaluate_correspondence(config), summary_lines)


def _run_steering(args: argparse.Namespace) -> int:
    config = _load(args, f"run={_text(args.run_folder)}", "scenes/steering", "evaluate_steering")
    if args.check:
        return _valid()
    from diffprobe.core.result import read_result
    from diffprobe.evaluation.steering import evaluate_steering
    from diffprobe.evaluation.steering_tables import TABLE_FILE, TABLES_FILE, matched_table

    path = evaluate_steering(config)
    print(matched_table(read_result(path)))
    print(f"tables: {path.with_name(TABLES_FILE)}, {path.with_name(TABLE_FILE)}")
    print(f"result: {path}")
    return 0


def _run_of_run(args: argparse.Namespace, *, default: str, kind: str) -> int:
    """Evaluate a finished run by the function `kind` of the file of its name, and print its metrics."""
    config = _load(args, f"run={_text(args.run_folder)}", default, kind)
    if args.check:
        return _valid()
    module = import_module(f"diffprobe.evaluation.{kind.removeprefix('evaluate_')}")
    _print(getattr(module, kind)(config))
    return 0


def _run_selectors(args: argparse.Namespace) -> int:
    from diffprobe.evaluation.selectors import compare_selectors

    found = compare_selectors(
        args.run_folders, encoder=args.encoder, encoder_cell=args.encoder_cell, metric=args.metric, k=args.neighbours,
        limit=args.limit,
    )  # fmt: skip
    print("\n".join(found.lines()))
    return 0


def _load(args: argparse.Namespace, subject: str | None, default: str, kind: str) -> Any:
    """Load the configuration: the evaluated folder, if there is one, first, so that a setting can still replace it."""
    from diffprobe.config.compose import load, split_experiment

    experiment, settings = split_experiment(None, args.settings)
    return load(experiment or default, [*([] if subject is None else [subject]), *settings], kinds=(kind,))


def _text(value: str) -> str:
    from diffprobe.config.compose import setting_text

    return setting_text(value)


def _valid(*lines: str) -> int:
    print("\n".join(["the configuration is valid", *lines]))
    return 0


def _print_summary(
    path: Path, lines: "Callable[[RunResult], list[str]]", files: Mapping[str, str] | None = None
) -> int:
    """Print the lines of a result, the files beside it by what they are, and where it is."""
    from diffprobe.core.result import read_result

    print("\n".join(lines(read_result(path))))
    for what, name in (files or {}).items():
        print(f"{what}: {path.with_name(name)}")
    print(f"result: {path}")
    return 0


def _print(
    path: Path, *, headed: bool = False, notes: Callable[["MetricRecord"], list[str]] = lambda record: []
) -> None:
    from diffprobe.core.result import read_result
    from diffprobe.report.entry import format_record

    result = read_result(path)
    if headed:
        print(f"{result.config['run']}:")
    for record in result.metrics:
        named = f"{record.probe}: " if result.kind in ("use", "generations") else ""  # the intervention
        print(named + format_record(record))
        for line in notes(record):
            print(line)
        if "no_recovered" in record.detail:
            print(f"{record.split} {record.name}: no share recovered: {record.detail['no_recovered']}")
    for reason in dict.fromkeys(record.detail.get("not_valid") for record in result.metrics):
        if reason:
            print(f"not valid: {reason}")
    print(f"result: {path}")
