"""``diffprobe train``: train one probe, or a diffusion model, and write its result."""

import argparse
from typing import Any

HELP = "train a probe (sae, classifier or direction) on features and write result.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument(
        "settings", nargs="*", metavar="SETTING", help="experiment=NAME, group=choice (data=emoji), key=value"
    )
    parser.add_argument("--check", action="store_true", help="judge the configuration and stop; nothing is loaded")


def run(args: argparse.Namespace) -> int:
    """Judge, train, and say where the result is."""
    from diffprobe.config.compose import compose, require_kind, validate
    from diffprobe.config.kinds import PROBE, kinds_of
    from diffprobe.core.memory import keep_freed_memory

    keep_freed_memory()  # before the first tensor
    composed = compose(None, args.settings)
    require_kind(composed, kinds_of("train"))
    config = validate(composed)
    if composed.kind != PROBE:
        return _train_backbone(config, check=args.check)
    from diffprobe.runs.train import plan, train

    if args.check:
        print(f"the configuration is fine; the run's folder is {plan(config).run_dir}")
        return 0
    path = train(config)
    from diffprobe.training.trainer import is_main_process

    if is_main_process():
        _print(str(path))
    return 0


def _train_backbone(config: Any, *, check: bool) -> int:
    from diffprobe.runs.train_generative import plan_backbone, train_backbone

    if check:
        print(f"the configuration is fine; the run's folder is {plan_backbone(config)}")
    else:
        print(f"result: {train_backbone(config)}")
    return 0


def _print(path: str) -> None:
    from diffprobe.core.result import read_result

    for record in read_result(path).metrics:
        if record.split == "test":
            of = " ".join(part for part in (record.cell, record.target) if part)
            controls = ", ".join(f"{name} {value:.4g}" for name, value in record.controls.items())
            print(f"test {record.name} = {record.value:.4g}  {of}" + (f"  (controls: {controls})" if controls else ""))
    print(f"result: {path}")
