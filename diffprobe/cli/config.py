"""``diffprobe config``: validate a configuration and print it in full."""

import argparse

from diffprobe.cli.arguments import add_settings

GROUP = "runs"
HELP = "validate a configuration and print it in full"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    add_settings(parser)
    parser.add_argument("--list", action="store_true", help="list the experiments and the choices of each group")
    parser.add_argument("--keys", action="store_true", help="explain every key: type, default, meaning")


def run(args: argparse.Namespace) -> int:
    """Print the resolved configuration as YAML, after validation, including the probe's own keys."""
    from diffprobe.config import compose, describe, search_path
    from diffprobe.config.kinds import KINDS, PROBE

    if args.list:
        print("experiment:", *(f"  {name}" for name in search_path.experiments()), sep="\n")
        for group, choices in search_path.groups().items():
            print(f"{group}: {', '.join(choices)}")
        return 0
    composed = compose.compose(None, args.settings)
    if args.keys:
        print(describe.render_keys(KINDS[composed.kind].load()), end="")
        return 0
    from diffprobe.runs.ladder import RUN_ITSELF, each_rung, is_ladder
    from diffprobe.runs.seeds import each_seed

    configs = [compose.validate(one) for rung in each_rung(composed) for one in each_seed(rung)]
    if is_ladder(composed):
        configs = [config for config in configs if config.control == RUN_ITSELF]
        print("# control=ladder: the run itself; `diffprobe train --check` names the rungs that apply")
    if composed.kind == PROBE:
        from diffprobe.runs.plan import plan

        for config in configs:
            plan(config)
    if len(configs) > 1:
        print(f"# the first of {len(configs)} runs; seed: {', '.join(str(config.seed) for config in configs)}")
    print(describe.render_yaml(configs[0]), end="")
    return 0
