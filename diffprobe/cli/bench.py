"""``diffprobe bench``: speed of extraction and of SAE training, growth with the size of data, and plans of clusters."""

import argparse
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_settings

if TYPE_CHECKING:
    from pathlib import Path

GROUP = "runs"
HELP = "time extraction or SAE training; plan a large extraction"
STAYS = {
    "ksae": "with --quality and --json FILE, finished trainings are in FILE.partial.jsonl",
    "memory": "with --json FILE, finished measurements are in FILE.partial.jsonl",
    "dictionaries": "trained dictionaries and measured rows are on disk",
}
"""What a command that was stopped continues from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add extraction, prompts, ksae, scale, scaling, plan, solver, heads, scores, dictionaries, memory, quantize."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    extraction = what.add_parser(
        "extraction", help="features of a U-Net, DiT or MM-DiT, beside the plain way and a floor"
    )
    extraction.add_argument(
        "--size", default="sd15", help="sd15, sdxl, flux, dit, mmdit; small, or small- and a name (default: sd15)"
    )
    extraction.add_argument(
        "--resolution", type=int, default=256, metavar="N", help="image side in pixels (default: 256)"
    )
    extraction.add_argument("--images", type=int, default=2, metavar="N", help="images per call (default: 2)")
    extraction.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="repetitions; the fastest counts (default: 3)"
    )
    extraction.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="precision")
    extraction.add_argument("--device", default="auto", help="torch device (default: an accelerator if present)")
    extraction.add_argument("--compile", action="store_true", help="measure compiled blocks too; takes minutes more")
    prompts = what.add_parser("prompts", help="features of prompts, beside the bare denoiser at equal batches")
    prompts.add_argument("--backbone", default="emoji-sd", help="text-to-image model (default: emoji-sd)")
    prompts.add_argument("--prompts", type=int, default=64, metavar="N", help="prompts (default: 64)")
    prompts.add_argument("--seeds", type=int, default=8, metavar="N", help="samples per prompt (default: 8)")
    prompts.add_argument("--steps", type=int, default=4, metavar="N", help="sampling steps (default: 4)")
    prompts.add_argument("--guidance", type=float, default=0.0, metavar="W", help="weight of guidance (default: 0)")
    prompts.add_argument(
        "--taps", nargs="+", default=["mid_block", "up_blocks.*"], metavar="TAP", help="default: mid_block up_blocks.*"
    )
    samplers = ("ddim", "dpm", "euler", "lcm")
    prompts.add_argument("--sampler", choices=samplers, help="default: ddim; euler for a flow model")
    prompts.add_argument("--device", default="auto", help="torch device (default: an accelerator if present)")
    ksae = what.add_parser("ksae", help="a training step of the k-sparse autoencoder")
    ksae.add_argument(
        "--shape",
        action="append",
        type=_shape,
        metavar="B,D,M,K",
        help="batch size, d_in, n_latents, k; repeatable (default: three shapes)",
    )
    ksae.add_argument("--steps", type=int, metavar="N", help="training steps; the fastest counts (default: 8)")
    ksae.add_argument("--rounds", type=int, metavar="N", help="rounds; the fastest counts (default: 2)")
    ksae.add_argument("--device", help="torch device (default: cpu)")
    ksae.add_argument("--no-peers", action="store_true", help="skip other libraries (diffprobe[peers] installs them)")
    _add_quality(ksae)
    scale = what.add_parser("scale", help="growth of work with samples, classes, attribute values and cells")
    scale.add_argument("--samples", type=int, default=1_000_000, metavar="N", help="samples (default: 1,000,000)")
    scale.add_argument("--classes", type=int, default=100_000, metavar="N", help="classes, values (default: 100,000)")
    scale.add_argument("--cells", type=int, default=1000, metavar="N", help="cells (default: 1,000)")
    scaling = what.add_parser("scaling", help="reading, decoding and writing on one core; extraction by processes")
    scaling.add_argument("--images", type=int, default=512, metavar="N", help="images (default: 512)")
    scaling.add_argument("--side", type=int, default=512, metavar="N", help="image side in pixels (default: 512)")
    scaling.add_argument(
        "--processes", type=_numbers, default=(1, 2), metavar="N,N", help="numbers of processes (default: 1,2)"
    )
    scaling.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="repetitions; the fastest counts (default: 3)"
    )
    plan = what.add_parser("plan", help="what limits a large extraction, how long it takes and what it costs")
    plan.add_argument("--rates", required=True, metavar="FILE", help="what `bench scaling --json` wrote")
    plan.add_argument("--gpu-rate", required=True, type=float, metavar="X", help="images/s of the network on one GPU")
    plan.add_argument("--gpus", required=True, type=int, metavar="N", help="GPUs, with one process each")
    plan.add_argument("--images", required=True, type=int, metavar="N", help="images")
    plan.add_argument("--image-bytes", required=True, type=float, metavar="B", help="mean bytes of a sample")
    plan.add_argument("--cells", required=True, type=int, metavar="N", help="cells, a vector for each image")
    plan.add_argument("--width", required=True, type=int, metavar="N", help="mean width of a cell")
    plan.add_argument("--read-bandwidth", required=True, type=float, metavar="MB/S", help="storage, all processes")
    plan.add_argument("--write-bandwidth", required=True, type=float, metavar="MB/S", help="storage, all processes")
    plan.add_argument("--no-verify", action="store_true", help="plan for data.verify=false")
    solver = what.add_parser("solver", help="linear classifiers over a path of penalties, beside scikit-learn")
    solver.add_argument("--samples", type=int, default=2000, metavar="N", help="samples (default: 2,000)")
    solver.add_argument("--width", type=int, default=128, metavar="N", help="width of the features (default: 128)")
    solver.add_argument("--classes", type=int, default=8, metavar="N", help="classes (default: 8)")
    solver.add_argument("--folds", type=int, default=5, metavar="N", help="folds (default: 5)")
    solver.add_argument("--cells", type=int, default=2, metavar="N", help="cells (default: 2)")
    solver.add_argument(
        "--store", metavar="FOLDER", help="a feature store: its training split, in place of the first four"
    )
    solver.add_argument("--cell", default="", help="the cell of --store")
    solver.add_argument("--target", default="label", help="label or an attribute of --store (default: label)")
    solver.add_argument("--group", default="label", help="attribute of --store whose samples stay in one fold")
    solver.add_argument("--device", default="cpu", help="torch device of ours (default: cpu)")
    heads = what.add_parser("heads", help="all classifiers of an experiment in one run, beside runs of one each")
    add_settings(heads)
    heads.add_argument("--singles", type=int, default=8, metavar="N", help="heads that are timed alone (default: 8)")
    scores = what.add_parser("scores", help="caption choices by denoising error, beside the bare denoiser and pruned")
    scores.add_argument("--backbone", default="emoji-sd", help="text-conditional model (default: emoji-sd)")
    scores.add_argument("--data", default="emoji", help="captioned shards (default: emoji)")
    scores.add_argument("--split", default="test", help="split of --data (default: test)")
    scores.add_argument("--images", type=int, default=100, metavar="N", help="images (default: 100)")
    scores.add_argument("--candidates", type=int, default=94, metavar="N", help="captions per image (default: 94)")
    scores.add_argument("--timesteps", type=int, default=12, metavar="N", help="timesteps (default: 12)")
    scores.add_argument(
        "--stages", metavar="T:K,T:K", help="keep the best K after T timesteps (default: 1:40,2:16,4:5)"
    )
    scores.add_argument("--group", metavar="NAME", help="wrong captions have another value of this attribute")
    scores.add_argument("--device", default="auto", help="torch device (default: an accelerator if present)")
    dictionaries = what.add_parser("dictionaries", help="dictionaries of ours and of other libraries, certified")
    dictionaries.add_argument("board", choices=("scenes", "emoji"), help="model and data")
    dictionaries.add_argument(
        "--seconds", type=float, default=6.0, metavar="S", help="processor time of each training (default: 6)"
    )
    dictionaries.add_argument(
        "--seeds", type=_numbers, default=(0, 1, 2), metavar="N,N", help="seeds of the trainings (default: 0,1,2)"
    )
    dictionaries.add_argument(
        "--own", action="append", default=[], type=_named_folders, metavar="NAME=FOLDER[,FOLDER]",
        help="your dictionary, a folder per seed; repeatable",
    )  # fmt: skip
    dictionaries.add_argument("--no-peers", action="store_true", help="skip other libraries")
    dictionaries.add_argument(
        "--output", default="runs/dictionaries", metavar="FOLDER", help="trained dictionaries (default: "
        "runs/dictionaries)",
    )  # fmt: skip
    dictionaries.add_argument("--csv", metavar="FILE", help="write one line per dictionary and factor to a CSV file")
    memory = what.add_parser("memory", help="peak memory with the denoiser held whole, in files and in 8 bits")
    memory.add_argument("--size", default="xl", help="xl, wide, flux, tiny or tiny-flux (default: xl)")
    kinds = ("trained", "random")
    memory.add_argument("--weights", nargs="+", choices=kinds, default=kinds, help="weights to measure (default: both)")
    quantized = what.add_parser("quantize", help="error of features whose weights are held in 8 bits, on images")
    quantized.add_argument("--backbone", default="emoji-sd", help="folder or name (default: emoji-sd)")
    quantized.add_argument("--data", default="emoji", help="folder or name of the images (default: emoji)")
    quantized.add_argument("--split", default="val", help="split of the images (default: val)")
    quantized.add_argument("--images", type=int, default=32, metavar="N", help="the first N images (default: 32)")
    quantized.add_argument("--taps", nargs="+", metavar="TAP", default=["mid_block"], help="(default: mid_block)")
    quantized.add_argument("--timesteps", type=_numbers, default=(100,), metavar="T,T", help="(default: 100)")
    quantized.add_argument("--device", default="auto", help="torch device (default: auto)")
    timed = (extraction, prompts, ksae, scale, scaling, plan, solver, heads, scores, dictionaries, memory, quantized)
    for parser_of in timed:
        parser_of.add_argument("--json", metavar="FILE", help="write all measurements to a JSON file")


def _add_quality(ksae: argparse.ArgumentParser) -> None:
    """Add the options of `bench ksae --quality`."""
    ksae.add_argument("--quality", action="store_true", help="held-out fvu and dead latents against time instead")
    group = ksae.add_argument_group("with --quality")
    group.add_argument("--store", metavar="FOLDER", help="a feature store, with its splits")
    group.add_argument("--cell", help="the cell of --store")
    group.add_argument("--images", type=int, metavar="N", help="the first N images of each split of --store")
    group.add_argument("--rows", metavar="FILE", help="in place of --store: safetensors with train, val and test")
    group.add_argument("--k", type=int, metavar="N", help="latents kept per row (default: 16)")
    group.add_argument("--latents", type=int, metavar="N", help="latents (default: 8 times the width)")
    group.add_argument("--batch", type=int, metavar="N", help="rows per step (default: 4,096)")
    group.add_argument("--lengths", type=_numbers, metavar="N,N", help="steps of the trainings (default: 150,600)")
    group.add_argument("--rates", type=_values, metavar="X,X", help="learning rates (default: 0.001,0.003,0.01)")
    group.add_argument(
        "--try", dest="params", action="append", type=_tried, metavar="KEY=X,X", help="further settings of ours"
    )
    group.add_argument("--peer", action="append", metavar="NAME", help="a library to train; repeatable (default: all)")


_QUALITY = ("store", "cell", "images", "rows", "k", "latents", "batch", "lengths", "rates", "params", "peer")
_SPEED = ("shape", "steps", "rounds", "device")


def run(args: argparse.Namespace) -> int:
    """Measure and print a Markdown table."""
    _require_writable(args.json)
    _require_writable(getattr(args, "csv", None))
    verbs = {"extraction": _extraction, "ksae": _ksae, "scale": _scale, "scaling": _scaling, "plan": _plan}
    verbs |= {"solver": _solver, "prompts": _prompts, "heads": _heads, "scores": _scores, "memory": _memory}
    verbs |= {"dictionaries": _dictionaries, "quantize": _quantize}
    return verbs[args.what](args)


def _extraction(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.extraction import Setting, bench_extraction, render

    fields = ("size", "resolution", "images", "repeats", "dtype", "device", "compile")
    setting = Setting(**{name: getattr(args, name) for name in fields})
    report = bench_extraction(setting, progress=_progress)
    print(render(report))
    return _write_json(args.json, report.to_json())


def _prompts(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.prompts import PromptSetting, bench_prompts

    fields = ("backbone", "prompts", "seeds", "steps", "guidance", "sampler", "device")
    setting = PromptSetting(taps=tuple(args.taps), **{name: getattr(args, name) for name in fields})
    report = bench_prompts(setting, progress=_progress)
    print(f"{report.machine}; {args.backbone}, {report.sampler} with guidance {args.guidance:g}")
    print(f"{args.prompts:,} prompts x {args.seeds} seeds x {args.steps} steps, batches of {report.batch} samples")
    print("\n| passes | extraction, passes/s | bare denoiser, passes/s | extraction / bare |")
    print("|---|---|---|---|")
    ours, bare = (report.passes / s for s in (report.ours_s, report.bare_s))
    print(f"| {report.passes:,} | {ours:,.1f} | {bare:,.1f} | {report.share:.2f} |")
    return _write_json(args.json, report.to_json())


def _ksae(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.ksae import PRECISIONS, SHAPES, bench_ksae
    from diffprobe.benchmarks.ksae_peers import PEERS

    _refuse_others(args)
    if args.quality:
        return _ksae_quality(args)
    peers = () if args.no_peers else tuple(PEERS)
    report = bench_ksae(
        tuple(args.shape or SHAPES),
        steps=8 if args.steps is None else args.steps,
        rounds=2 if args.rounds is None else args.rounds,
        peers=peers,
        device=args.device or "cpu",
        progress=_progress,
    )
    print(f"{report.machine}; the fastest of {report.rounds} x {report.steps - 1} steps")
    print("\n| batch, d_in, n_latents, k | precision | method | s/step | x ours | x encoder | peak MiB | fvu |")
    print("|---|---|---|---|---|---|---|---|")
    cells = [(row, precision) for row in report.rows for precision in PRECISIONS]
    for row, precision in cells:
        ours, floor = row.of("ours", precision), row.of("floor", precision)
        dense = (row.of(name, precision) for name in ("ours_dense", "dense"))
        for measured in (floor, ours, *row.peers(precision), *dense):
            names = {"floor": "encoder alone", "ours_dense": "ours, step=dense", "dense": "dense step"}
            name = names.get(measured.method, measured.method)
            print(
                f"| {row.name} | {precision} | {name} | {measured.seconds:.3g} | {measured.seconds / ours.seconds:.2f} "
                f"| {measured.seconds / floor.seconds:.2f} "
                f"| {measured.peak_mib:,.0f} ({measured.loaded_mib:,.0f} before) "
                f"| {'' if measured.fvu is None else f'{measured.fvu:.4f}'} |"
            )
    print("\n| batch, d_in, n_latents, k | precision | dense / ours | fastest other / ours | ours / encoder |")
    print("|---|---|---|---|---|")
    for row, precision in cells:
        dense_s, ours_s, floor_s = (row.of(name, precision).seconds for name in ("dense", "ours", "floor"))
        best = [f"{peer.seconds / ours_s:.1f} ({peer.method})" for peer in row.peers(precision)[:1]]
        ratio = f"{dense_s / ours_s:.1f} | {' '.join(best) or '-'} | {ours_s / floor_s:.2f}"
        print(f"| {row.name} | {precision} | {ratio} |")
    print()
    for name, version in report.versions.items():
        print(f"{name}: {version}")
    for name, reason in report.absent.items():
        print(f"{name}: {reason}")
    return _write_json(args.json, report.to_json())


def _refuse_others(args: argparse.Namespace) -> None:
    """Raise ConfigError for options of `bench ksae` that have no effect with, or without, --quality."""
    from diffprobe.core.errors import ConfigError

    given = [f"--{'try' if name == 'params' else name}" for name in _SPEED if args.quality and getattr(args, name)]
    given += [
        f"--{'try' if name == 'params' else name}" for name in _QUALITY if not args.quality and getattr(args, name)
    ]
    if given:
        raise ConfigError(
            f"{', '.join(given)} has no effect {'with' if args.quality else 'without'} --quality.",
            fix=f"leave it out, or {'leave out' if args.quality else 'add'} --quality",
        )
    if not args.quality:
        return
    if (args.rows is None) == (args.store is None) or (args.store is None) != (args.cell is None):
        raise ConfigError("bench ksae --quality trains on --store FOLDER --cell CELL, or on --rows FILE.")
    if args.rows is not None and args.images is not None:
        raise ConfigError("--images has no effect with --rows.", fix="leave it out")
    if args.peer and args.no_peers:
        raise ConfigError("--peer contradicts --no-peers.", fix="leave one of them out")


def _ksae_quality(args: argparse.Namespace) -> int:
    from pathlib import Path

    from diffprobe.benchmarks.ksae_peers import PEERS
    from diffprobe.benchmarks.ksae_quality import QualitySetting, bench_quality, render
    from diffprobe.benchmarks.ksae_rows import load_rows, stored_rows

    named = {"k": args.k, "n_latents": args.latents, "batch": args.batch, "lengths": args.lengths, "rates": args.rates}
    given = {name: value for name, value in named.items() if value is not None}
    setting = QualitySetting(**given, params=dict(args.params or ()))
    rows = load_rows(args.rows) if args.rows else stored_rows(args.store, args.cell, images=args.images)
    peers = () if args.no_peers else tuple(args.peer or PEERS)
    kept = None if args.json is None else Path(f"{args.json}.partial.jsonl")
    report = bench_quality(rows, setting, peers=peers, kept=kept, progress=_progress)
    print(render(report))
    return _write_whole(args.json, report.to_json(), kept)


def _scale(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.scale import bench_scale

    report = bench_scale(samples=args.samples, classes=args.classes, cells=args.cells, progress=_progress)
    print(f"{report.machine}; CPU seconds at an eighth, a quarter, a half and all of the size")
    print("\n| work | sizes | seconds | growth exponents |")
    print("|---|---|---|---|")
    for row in report.rows:
        sizes, seconds = " / ".join(f"{n:,}" for n in row.sizes), " / ".join(f"{t:.2f}" for t in row.seconds)
        print(f"| {row.step} | {sizes} | {seconds} | {' / '.join(f'{e:.2f}' for e in row.exponents)} |")
    return _write_json(args.json, report.to_json())


def _scaling(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.scaling import Measurement, bench_scaling, render

    names = ("images", "side", "processes", "repeats")
    report = bench_scaling(Measurement(**{name: getattr(args, name) for name in names}), progress=_progress)
    print(render(report))
    return _write_json(args.json, report.to_json())


def _solver(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.solver import Size, bench_solver, render

    names = ("samples", "width", "classes", "folds", "cells", "device", "store", "cell", "target", "group")
    report = bench_solver(Size(**{name: getattr(args, name) for name in names}))
    print(render(report))
    return _write_json(args.json, report.to_json())


def _heads(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.heads import bench_heads, render
    from diffprobe.config.compose import load_run

    report = bench_heads(load_run(None, args.settings), singles=args.singles, progress=_progress)
    print(render(report))
    return _write_json(args.json, report.to_json())


def _scores(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.scores import STAGES, ScoreSetting, bench_scores, render, stages_of

    names = ("backbone", "data", "split", "images", "candidates", "timesteps", "group", "device")
    stages = STAGES if args.stages is None else stages_of(args.stages)
    setting = ScoreSetting(stages=stages, **{name: getattr(args, name) for name in names})
    report = bench_scores(setting, progress=_progress)
    print(render(report))
    return _write_json(args.json, report.to_json())


def _dictionaries(args: argparse.Namespace) -> int:
    from dataclasses import replace
    from pathlib import Path

    from diffprobe.benchmarks.leaderboard import bench_dictionaries
    from diffprobe.benchmarks.leaderboard_ground import BOARDS
    from diffprobe.benchmarks.peer_dictionaries import LIBRARIES
    from diffprobe.report.leaderboard_table import factor_table, leaderboard_csv, main_table

    board = BOARDS[args.board]
    board = replace(board, seeds=args.seeds, training=replace(board.training, seconds=args.seconds))
    own = {name: [Path(folder) for folder in folders] for name, folders in args.own}
    libraries = {} if args.no_peers else LIBRARIES
    found = bench_dictionaries(board, output=Path(args.output), libraries=libraries, own=own, progress=_progress)
    print(f"{found.machine}; {'; '.join(f'{name}: {fact}' for name, fact in found.facts.items())}")
    print(f"\n{main_table(found)}\n\n{factor_table(found)}\n")
    for row in found.rows:
        if row.version or row.note:
            print(f"{row.name}: {row.version or row.note}")
    for name, reason in {**found.absent, **found.not_measured}.items():
        print(f"{name}: {reason}")
    _write_text(args.csv, leaderboard_csv(found))
    return _write_json(args.json, found.to_json())


def _memory(args: argparse.Namespace) -> int:
    from pathlib import Path

    from diffprobe.benchmarks.memory import bench_memory, render

    kept = None if args.json is None else Path(f"{args.json}.partial.jsonl")
    report = bench_memory(args.size, weights=args.weights, kept=kept, progress=_progress)
    weights = f"{report.n_parameters / 1e9:.2f} billion parameters, {report.weights_gb:.2f} GB in {report.dtype}"
    print(f"{report.machine}; {weights}, {report.block_gb:.3f} GB in the largest block\n")
    print(render(report))
    return _write_whole(args.json, report.to_json(), kept)


def _quantize(args: argparse.Namespace) -> int:
    from diffprobe.benchmarks.quantized import bench_quantized, render

    report = bench_quantized(
        args.backbone, args.data, taps=args.taps, timesteps=args.timesteps, n_images=args.images, split=args.split,
        device=args.device, progress=_progress,
    )  # fmt: skip
    whole = f"{report.megabytes['float32']:.2f} MB in float32"
    print(f"{report.machine}; {report.backbone} on {report.n_images} images of {report.data}; denoiser {whole}\n")
    print(render(report))
    return _write_json(args.json, report.to_json())


def _plan(args: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from diffprobe.benchmarks.scaling_plan import Work, plan_extraction, read_rates, render_plan

    work = Work(
        gpu_images_s=args.gpu_rate,
        gpus=args.gpus,
        images=args.images,
        image_bytes=args.image_bytes,
        feature_bytes=4 * args.cells * args.width,
        storage_read_mb_s=args.read_bandwidth,
        storage_write_mb_s=args.write_bandwidth,
        verify=not args.no_verify,
    )
    rates = read_rates(args.rates)
    plan = plan_extraction(rates, work)
    print(render_plan(work, plan))
    written = {"rates": asdict(rates), "work": asdict(work), "plan": asdict(plan), "busy": plan.busy}
    return _write_json(args.json, json.dumps(written, indent=2) + "\n")


def _progress(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)


def _require_writable(file: str | None) -> None:
    """Check that a file can be written before anything is measured. Raises: OSError."""
    from pathlib import Path

    if file:
        path = Path(file)
        is_new = not path.exists()
        path.open("a").close()
        if is_new:
            path.unlink()


def _write_json(file: str | None, text: str) -> int:
    _write_text(file, text)
    return 0


def _write_whole(file: str | None, text: str, kept: "Path | None") -> int:
    """Write the report, then remove the lines of its finished parts."""
    _write_text(file, text)
    if kept is not None:
        kept.unlink(missing_ok=True)
    return 0


def _write_text(file: str | None, text: str) -> None:
    from pathlib import Path

    from diffprobe.core.atomic_file import atomic_file

    if file:
        with atomic_file(Path(file)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _named_folders(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, folders = text.partition("=")
    if not (name and equals and all(folders.split(","))):
        raise argparse.ArgumentTypeError(f"invalid dictionary '{text}': expected NAME=FOLDER, or NAME=FOLDER,FOLDER")
    return name, tuple(folders.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"invalid numbers '{text}': expected for example 1,2,4")
    return tuple(map(int, parts))


def _values(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) if any(c in part for c in ".eE") else int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid numbers '{text}': expected for example 0.001,0.003") from None


def _tried(text: str) -> tuple[str, tuple[float, ...]]:
    name, sign, values = text.partition("=")
    if not sign:
        raise argparse.ArgumentTypeError(f"invalid setting '{text}': expected for example decay=0,0.2,1")
    return name, _values(values)


def _shape(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(
            f"invalid shape '{text}': expected batch,d_in,n_latents,k, for example 2048,1280,5120,32"
        )
    return tuple(map(int, parts))
