"""The door of the command line. Owns finding the verbs, help, and how an error leaves the program."""

import argparse
import os
import sys
from collections.abc import Sequence

from diffprobe import __version__
from diffprobe.core.errors import DiffprobeError, nearest
from diffprobe.core.registry import VERBS
from diffprobe.report.terminal_encoding import print_what_can_be

_EPILOG = "first steps: diffprobe demo    one verb: diffprobe VERB --help"


def verbs() -> list[str]:
    """List the verbs as typed: file names with '-' for '_'."""
    return [name.replace("_", "-") for name in VERBS.names()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns: the exit status: 0 done, 1 the command's own "no", 2 an error of the user's making, 130 interrupted.
    """
    print_what_can_be(sys.stdout)  # names, captions and marks are more than a Latin-1 terminal has
    arguments = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        return _dispatch(arguments)
    except DiffprobeError as error:
        if traceback:
            raise
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is complete stays on disk, run the command again to continue.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader left, as `diffprobe ... | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a disk that is full, a folder that cannot be written, a hub that cannot be reached
        if traceback:
            raise
        print(f"{type(error).__name__}: {' '.join(str(error).split())}\n  {_trace_note()}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name.startswith("-") or not name:
        parser = _overview()
        parser.parse_args(arguments)
        parser.print_help()
        return 0 if not name else 2
    known = verbs()
    if name not in known:
        close = nearest(name, known)
        hint = f" (nearest: {', '.join(close)})" if close else ""
        print(f"diffprobe: there is no verb '{name}'{hint}. Verbs: {', '.join(known)}", file=sys.stderr)
        return 2
    verb = VERBS.load(name.replace("-", "_"))
    parser = argparse.ArgumentParser(prog=f"diffprobe {name}", description=verb.HELP, epilog=_trace_note())
    verb.add_arguments(parser)
    status: int = verb.run(parser.parse_args(arguments[1:]))
    return status


def _overview() -> argparse.ArgumentParser:
    """Make the parser of bare options; its help lists every verb with its own line."""
    width = max(map(len, verbs()), default=0)
    lines = [f"  {name:<{width}}  {VERBS.load(name.replace('-', '_')).HELP}" for name in verbs()]
    parser = argparse.ArgumentParser(
        prog="diffprobe",
        usage="diffprobe [-h] [--version] VERB ...",
        description="Read what a frozen diffusion model knows.\n\nverbs:\n" + "\n".join(lines),
        epilog=f"{_EPILOG}\n{_trace_note()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"diffprobe {__version__}")
    return parser


def _trace_note() -> str:
    return "--traceback shows where an error was raised"
