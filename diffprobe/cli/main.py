"""The entry point of the command line: finds the verb, prints help, and turns errors into exit statuses."""

import os
import sys
from collections.abc import Sequence
from types import ModuleType

from diffprobe import __version__
from diffprobe.cli.arguments import GROUPS, Parser
from diffprobe.core.errors import DiffprobeError, nearest
from diffprobe.core.registry import VERBS
from diffprobe.core.terminal import terminal_output

_EPILOG = "first steps: diffprobe demo    help on a verb: diffprobe VERB --help"
_TRACEBACK = "--traceback shows where an error was raised"


def verbs() -> list[str]:
    """List the verbs as typed: file names with '-' for '_'."""
    return [name.replace("_", "-") for name in VERBS.names()]


def verb_groups() -> dict[str, list[str]]:
    """Return the verbs of each group, groups in the order of `GROUPS`, verbs in alphabetical order."""
    found: dict[str, list[str]] = {group: [] for group in GROUPS}
    for verb in verbs():
        found[_load(verb).GROUP].append(verb)
    return {group: names for group, names in found.items() if names}


def make_parser(verb: str) -> Parser:
    """Build the parser of a verb. Raises: UnknownName."""
    module = _load(verb)
    parser = Parser(prog=f"diffprobe {verb}", description=module.HELP, epilog=_TRACEBACK)
    module.add_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns: the exit status: 0 success, 1 a negative answer of the command, 2 a user error, 130 interrupted.
    """
    with terminal_output():
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
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
        print("interrupted; finished work is on disk, run the command again to continue.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the pipe has exited, as in `diffprobe ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder without write permission, an unreachable hub
        if traceback:
            raise
        print(f"{type(error).__name__}: {' '.join(str(error).split())}\n  {_TRACEBACK}", file=sys.stderr)
        return 2


def _dispatch(arguments: list[str]) -> int:
    name = arguments[0] if arguments else ""
    if name.startswith("-") or not name:
        options = Parser(prog="diffprobe", usage="diffprobe [-h] [--version] VERB ...", add_help=False)
        options.add_argument("-h", "--help", action="store_true")
        options.add_argument("--version", action="version", version=f"diffprobe {__version__}")
        options.parse_args(arguments)
        print(_overview())
        return 0
    known = verbs()
    if name not in known:
        close = nearest(name, known)
        hint = f" (nearest: {', '.join(close)})" if close else ""
        print(f"diffprobe: unknown verb '{name}'{hint}. Verbs: {', '.join(known)}", file=sys.stderr)
        return 2
    status: int = _load(name).run(make_parser(name).parse_args(arguments[1:]))
    return status


def _overview() -> str:
    """Return the help of the program: the verbs by group, one line each."""
    groups = verb_groups()
    width = max((len(verb) for names in groups.values() for verb in names), default=0)
    lines = ["usage: diffprobe [-h] [--version] VERB ...", "", "Read what a frozen diffusion model knows."]
    for group, names in groups.items():
        lines.append(f"\n{group}:" if len(lines) == 3 else f"{group}:")
        lines += [f"  {verb:<{width}}  {_load(verb).HELP}" for verb in names]
    return "\n".join([*lines, "", _EPILOG, _TRACEBACK])


def _load(verb: str) -> ModuleType:
    return VERBS.load(verb.replace("-", "_"))
