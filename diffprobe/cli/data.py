"""``diffprobe data``: build, adopt, index and verify shard sets, and predict the classes of their images."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.registry import DATASETS
from diffprobe.core.terminal import one_line

if TYPE_CHECKING:
    from diffprobe.config.schema import CapsConfig, FieldsConfig
    from diffprobe.shards.index import ShardSet

GROUP = "data"
HELP = "build, adopt, index or verify shards; predict classes of images"
STAYS = {"build": "finished shards are on disk"}
"""What a command that was stopped continues from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands index, adopt, verify, predict and build."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="index|adopt|verify|predict|build")
    index = actions.add_parser("index", help="scan the tar, tar.gz and tgz files of a folder and write index.json")
    adopt = actions.add_parser(
        "adopt", help="index shards of other tools (img2dataset, webdataset): find and show the names of their fields"
    )
    for action in (index, adopt):
        action.add_argument("dir", type=Path, metavar="DIR", help="folder of the shards")
        action.add_argument(
            "--name", required=action is index, help="name of the set in results (adopt: that of DIR by default)"
        )
        action.add_argument(
            "--licence", required=action is index, help="terms of the images, with attribution where required"
        )
        action.add_argument("--out", type=Path, metavar="FILE", help="write the index here (for a read-only folder)")
        action.add_argument("--on-error", choices=("raise", "skip"), default="raise", help="skip: list faulty samples")
        action.add_argument(
            "--split", action="append", default=[], metavar="NAME[=PATTERN]",
            help="split of the shards without a split in their names; with PATTERN (val=0000[89].tar) of these shards",
        )  # fmt: skip
        action.add_argument(
            "--rename", action="append", default=[], metavar="OLD=NEW", help="another name for an attribute"
        )
        action.add_argument(
            "--group",
            metavar="ATTRIBUTE",
            help="attribute whose samples are not independent (person, scene); 'sample': none",
        )
        action.add_argument(
            "--number-duplicates", action="store_true", help="append the label to class names that several labels have"
        )
    verify = actions.add_parser(
        "verify", help="compare checksums and counts, decode every image, find equal images in two splits"
    )
    verify.add_argument("set", metavar="DIR_OR_NAME", help="folder, index file, or name of a shipped data set")
    predict = actions.add_parser(
        "predict", help="write the class that a CLIP model names for each image, as a table for features.columns"
    )
    _add_prediction(predict)
    for action in (index, adopt, verify, predict):
        action.add_argument(
            "--field", action="append", default=[], metavar="KEY=NAME", help="name of a field: label=y, image=png,jpg"
        )
        action.add_argument(
            "--cap", action="append", default=[], metavar="KEY=N", help="largest part that is read: sample_bytes=N"
        )
    build = actions.add_parser("build", help="build a data set from its sources, the same bytes each time")
    sets = build.add_subparsers(dest="dataset", required=True, metavar="NAME")
    for name in DATASETS.names():
        dataset = DATASETS.load(name)
        options = sets.add_parser(
            name, help=dataset.HELP, description=dataset.HELP, epilog=f"licence of its images: {dataset.CARD.licence}"
        )
        dataset.add_arguments(options)
        options.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for shards and index")


def _add_prediction(predict: argparse.ArgumentParser) -> None:
    predict.add_argument("set", metavar="DIR_OR_NAME", help="folder, index file, or name of a shipped data set")
    predict.add_argument(
        "--model", required=True, metavar="FOLDER_OR_ID", help="a CLIP model of transformers, in safetensors"
    )
    predict.add_argument("--revision", metavar="NAME", help="commit, tag or branch of a hub id")
    predict.add_argument(
        "--template", action="append", default=[], metavar="TEXT",
        help="prompt of a class, with {class_name}; several are averaged (default: 'a photo of a {class_name}')",
    )  # fmt: skip
    predict.add_argument("--split", action="append", default=[], metavar="NAME", help="split to predict (default: all)")
    predict.add_argument("--batch-size", type=int, default=64, metavar="N", help="images per forward pass")
    predict.add_argument("--device", default="auto", help="torch device; auto: the accelerator if there is one")
    predict.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="skip: leave out faulty samples"
    )
    predict.add_argument("--out", type=Path, required=True, metavar="FILE", help="the table, a .csv that is not there")


def run(args: argparse.Namespace) -> int:
    """Run one subcommand and print a summary of the set. Returns 1 if `verify` found faults, else 0."""
    actions = {"index": _index, "adopt": _adopt, "verify": _verify, "predict": _predict, "build": _build}
    return actions[args.action](args)


def _adopt(args: argparse.Namespace) -> int:
    from diffprobe.shards.adopt import render_survey, survey

    fields = _fields(args.field)
    given = {name: getattr(fields, name) for name in _keys_of(args.field)}
    with _reading(args.dir) as on_shard:
        found = survey(args.dir, given=given, caps=_caps(args.cap), on_shard=on_shard)
    print(*render_survey(found), sep="\n")
    args.name = args.name or args.dir.resolve().name
    args.licence = args.licence or "not stated"
    _write_index(args, found.fields)
    _say_next(args.out or args.dir)
    return 0


def _index(args: argparse.Namespace) -> int:
    _write_index(args, _fields(args.field))
    return 0


def _write_index(args: argparse.Namespace, fields: "FieldsConfig") -> None:
    from diffprobe.shards.index import build_index, render

    split, assigned = _splits(args.split)
    with _reading(args.dir) as on_shard:
        shard_set = build_index(
            args.dir, name=args.name, licence=args.licence, fields=fields, index_path=args.out,
            on_error=args.on_error, on_shard=on_shard, split=split, assigned=assigned, renamed=_renamed(args.rename),
            number_duplicates=args.number_duplicates, caps=_caps(args.cap), grouped_by=args.group,
        )  # fmt: skip
    print(render(shard_set))
    for one in shard_set.shared_groups:
        print(
            f"splits {one.first} and {one.second} share {one.n:,} values of '{shard_set.group}', for example "
            f"'{one_line(one.example)}': no run is trained on both"
        )
    if "train" in shard_set.splits() and "val" not in shard_set.splits():
        print("no split 'val': runs cut one out of train with data.val_fraction=0.1")


def _say_next(path: Path) -> None:
    print(f"next: diffprobe data verify {shlex.quote(str(path))}")
    print(f"      diffprobe extract data=folder data.path={shlex.quote(str(path))} backbone=sd15 features=sd")


def _verify(args: argparse.Namespace) -> int:
    from diffprobe.core.progress import reading_files
    from diffprobe.shards.index import ShardSet, render
    from diffprobe.shards.verify import verify

    shard_set = ShardSet.load(args.set)
    with reading_files(len(shard_set.shards), "reading") as on_shard:
        found = verify(shard_set, fields=_fields(args.field), on_shard=on_shard, caps=_caps(args.cap))
    print(render(shard_set))
    faults = [*found.faults, *_other_counts(shard_set)]
    print(f"verified: {found.n_good:,} valid samples, {len(faults)} faults", *faults, sep="\n  ")
    if found.n_duplicates:
        print(f"equal images in two splits: {found.n_duplicates:,}", *map(one_line, found.duplicates), sep="\n  ")
    return 1 if faults else 0


def _predict(args: argparse.Namespace) -> int:
    from diffprobe.backbones.zero_shot import TEMPLATE, load_zero_shot
    from diffprobe.core.progress import ProgressDisplay
    from diffprobe.features.class_predictions import COLUMN, predict_classes
    from diffprobe.shards.index import ShardSet

    shard_set = ShardSet.load(args.set)
    splits = list(dict.fromkeys(args.split)) or list(shard_set.splits())
    n = sum(shard_set.n_samples(split) for split in splits)
    templates = args.template or [TEMPLATE]
    model = load_zero_shot(
        args.model, shard_set.classes, templates=templates, revision=args.revision, device=args.device
    )
    with ProgressDisplay(transient=True) as display, display.bar(n, "predicting", unit="images", keep=False) as bar:
        counts = predict_classes(
            shard_set, model, args.out, splits=splits, fields=_fields(args.field), caps=_caps(args.cap),
            batch_size=args.batch_size, on_error=args.on_error, bar=bar,
        )  # fmt: skip
    print(f"{args.model}, {len(model.classes):,} classes, templates: {', '.join(map(repr, model.templates))}")
    for split, one in counts.items():
        found = "no labels" if one.accuracy is None else f"zero-shot accuracy {one.accuracy:.4f}"
        left_out = f", {one.n_skipped:,} faulty samples left out" if one.n_skipped else ""
        print(f"  {split}: {one.n:,} images, {found} (n={one.n_labelled:,}){left_out}")
    print(f"written: {args.out}")
    prompt = f"'{templates[0].replace('class_name', COLUMN)}'"
    options = [f"features.columns={args.out}", "features.condition=template", f"features.prompt={prompt}"]
    print("use: " + " ".join(map(shlex.quote, options)))
    return 0


def _other_counts(shard_set: "ShardSet") -> list[str]:
    """Compare the counts of a set that has the name of one that diffprobe builds with those of its card."""
    from diffprobe.shards.published_set import count_faults

    if shard_set.name not in DATASETS.names():
        return []
    counts = {split: shard_set.n_samples(split) for split in shard_set.splits()}
    lines = count_faults(counts, len(shard_set.classes), DATASETS.load(shard_set.name).CARD)
    return [f"not '{shard_set.name}' as it was released: {line}" for line in lines]


def _build(args: argparse.Namespace) -> int:
    from inspect import signature

    from diffprobe.core.progress import ProgressDisplay
    from diffprobe.shards.index import render

    build = DATASETS.load(args.dataset).build
    wanted = signature(build).parameters
    values = {name: getattr(args, name) for name in wanted if name not in ("make_bar", "announce")}
    with ProgressDisplay(transient=True) as display:
        if "make_bar" in wanted:
            values["make_bar"] = lambda total: display.bar(total, "packing images", unit="images", keep=False)
        if "announce" in wanted:
            values["announce"] = lambda line: print(line, file=sys.stderr)
        shard_set = build(**values)
    print(render(shard_set))
    _say_next(args.out)
    return 0


def _reading(folder: Path) -> "AbstractContextManager[Callable[[str], None]]":
    """Show the shards of a folder as they are read, with the time left. Raises: ShardError, see `find_shards`."""
    from diffprobe.core.progress import reading_files
    from diffprobe.shards.shard_names import find_shards

    return reading_files(len(find_shards(folder)), "reading")


def _fields(settings: Sequence[str]) -> "FieldsConfig":
    """Read `--field KEY=NAME` options. Raises: ConfigError for an unknown key or no name."""
    from dataclasses import fields

    from diffprobe.config.schema import FieldsConfig

    allowed = [field.name for field in fields(FieldsConfig)]
    chosen: dict[str, str | tuple[str, ...]] = {}
    for setting in settings:
        key, _, name = setting.partition("=")
        if key not in allowed:
            raise unknown("field", key, allowed, ConfigError)
        if not name:
            raise ConfigError(f"--field {setting} has no value.", "expected: KEY=NAME, for example --field label=y")
        chosen[key] = tuple(name.split(",")) if key == "image" else name
    return FieldsConfig(**chosen)  # type: ignore[arg-type]  # image is the only tuple


def _keys_of(settings: Sequence[str]) -> list[str]:
    """Return the keys of `--field KEY=NAME` options."""
    return [setting.partition("=")[0] for setting in settings]


def _caps(settings: Sequence[str]) -> "CapsConfig":
    """Read `--cap KEY=N` options. Raises: ConfigError for an unknown key or a value that is not a number."""
    from dataclasses import fields

    from diffprobe.config.schema import CapsConfig

    allowed = [field.name for field in fields(CapsConfig)]
    chosen: dict[str, int] = {}
    for setting in settings:
        key, _, number = setting.partition("=")
        if key not in allowed:
            raise unknown("cap", key, allowed, ConfigError)
        if not number.isdecimal() or len(number) > 18:
            raise ConfigError(f"--cap {setting}: expected KEY=N, for example --cap sample_bytes=1000000000.")
        chosen[key] = int(number)
    return CapsConfig(**chosen)


def _splits(settings: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Read `--split NAME[=PATTERN]` options. Raises: ConfigError without a name, or for two names without pattern."""
    default: str | None = None
    assigned: dict[str, str] = {}
    for setting in settings:
        name, equals, pattern = setting.partition("=")
        if not name or (equals and not pattern) or pattern in assigned or (not equals and default is not None):
            raise ConfigError(
                f"--split {setting}: expected NAME for one split, or NAME=PATTERN, each pattern once.",
                "example: --split train --split 'val=0000[89].tar'",
            )
        if equals:
            assigned[pattern] = name
        else:
            default = name
    return default, assigned


def _renamed(settings: Sequence[str]) -> dict[str, str]:
    """Read `--rename OLD=NEW` options. Raises: ConfigError without a name, or for an attribute given twice."""
    chosen: dict[str, str] = {}
    for setting in settings:
        old, _, new = setting.partition("=")
        if not old or not new or old in chosen or new in chosen.values():
            raise ConfigError(f"--rename {setting}: expected OLD=NEW, each name once.")
        chosen[old] = new
    return chosen
