"""``diffprobe doctor``: show what diffprobe runs on, and what keeps it from running."""

import argparse

GROUP = "runs"
HELP = "show versions, devices, caches, write access, W&B and SLURM"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb has no arguments."""


def run(args: argparse.Namespace) -> int:
    """Print one line per finding; status 1 if something keeps diffprobe from running."""
    from diffprobe.core.errors import shown
    from diffprobe.runs.doctor import examine

    found = examine()
    width = max(len(finding.topic) for finding in found)
    for finding in found:
        mark = "STOPS  " if finding.stops else ""
        print(f"{finding.topic:<{width}}  {mark}{shown(finding.text)}")
        if finding.fix:
            print(f"{'':<{width}}    fix: {shown(finding.fix)}")
    stopping = sum(finding.stops for finding in found)
    print(f"{stopping} of them stop diffprobe" if stopping else "nothing here stops diffprobe")
    return 1 if stopping else 0
