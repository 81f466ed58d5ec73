"""The entry point of the command line: finds the verb, prints help, and turns errors into exit statuses."""

import os
import select
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

from diffprobe import __version__
from diffprobe.cli.arguments import GROUPS, Parser
from diffprobe.core.errors import DiffprobeError, nearest, shown
from diffprobe.core.processes import is_main_process, require_one_process
from diffprobe.core.registry import VERBS
from diffprobe.core.signals import INTERRUPTED, TERMINATED, Terminated, end_on_sigterm
from diffprobe.core.terminal import one_line, terminal_output

_PACKAGE = Path(__file__).resolve().parents[1]
_EPILOG = "first steps: diffprobe demo    help on a verb: diffprobe VERB --help"
_TRACEBACK = "--traceback shows where an error was raised"
FAULT = 70
"""Exit status where diffprobe itself is wrong (EX_SOFTWARE of sysexits.h)."""


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

    Returns: the exit status: 0 success, 1 a negative answer of the command, 2 a user error or an error of the machine,
        70 a fault of diffprobe, 130 interrupted (Ctrl-C), 143 terminated (SIGTERM).
    """
    with terminal_output(), _plain_warnings():
        return _run(argv)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print warnings of diffprobe as one line; those of libraries keep file and line."""
    before = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if Path(filename).is_relative_to(_PACKAGE):
            return f"warning: {one_line(str(message))}\n"
        return before(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = before


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    try:
        with end_on_sigterm(), _requeued_by_slurm():
            return _dispatch(arguments)
    except Terminated:
        _say_ended("terminated (SIGTERM)", arguments)
        return TERMINATED
    except KeyboardInterrupt:
        _say_ended("interrupted", arguments)
        return INTERRUPTED
    except BrokenPipeError as error:
        if _reader_is_gone():  # as in `diffprobe ... | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if traceback:
            raise
        return _failed(error, 2)
    except Exception as error:
        if traceback:
            raise
        return _failed(error, _status(error))


def _requeued_by_slurm() -> AbstractContextManager[object]:
    """Return what puts a job of SLURM back into the queue at SIGUSR1; nothing elsewhere."""
    if "SLURM_JOB_ID" not in os.environ:
        return nullcontext()
    from diffprobe.training.requeue import Requeue

    return Requeue()


def _say_ended(how: str, arguments: Sequence[str]) -> None:
    if is_main_process():  # the others of a distributed run end with it
        kept = what_stays(arguments)
        print(f"{how}; {kept}; run the command again to continue." if kept else f"{how}.", file=sys.stderr)


def what_stays(arguments: Sequence[str]) -> str:
    """Return what a command that was stopped has left on disk to continue from; empty if nothing is known to be.

    A verb says it in `STAYS`, a text, or a text per sub-verb.
    """
    name = arguments[0] if arguments else ""
    if name not in verbs():
        return ""
    stays: str | Mapping[str, str] = getattr(_load(name), "STAYS", "")
    if isinstance(stays, str):
        return stays
    return next((stays[word] for word in arguments[1:] if word in stays), "")


def _failed(error: Exception, status: int) -> int:
    """Print an error and return its exit status; the whole of an expected one, one line of any other."""
    if isinstance(error, DiffprobeError):
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return status
    lines = [line for line in str(error).splitlines() if line.strip()] or ["(no message)"]
    text = " ".join(" ".join(lines if isinstance(error, OSError) else lines[:1]).split())
    print(f"{type(error).__name__}: {shown(text)}", file=sys.stderr)
    if status == FAULT:
        print(f"  this is a fault of diffprobe, please report it; {_TRACEBACK}", file=sys.stderr)
    elif _is_out_of_memory(error):
        print("  fix: a smaller data.batch_size, or a machine with more memory", file=sys.stderr)
    else:
        print(f"  {_TRACEBACK}", file=sys.stderr)
    return status


def _status(error: Exception) -> int:
    """Return 2 for what the user or the machine caused (a full disk, a folder without write permission), else 70."""
    return 2 if isinstance(error, DiffprobeError | OSError) or _is_out_of_memory(error) else FAULT


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory is exhausted; torch's own class is known by its name, since it takes long to import."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _reader_is_gone() -> bool:
    """Return whether standard output is a pipe that nobody reads any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such system call, or no such file
        return True


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
    module = _load(name)
    args = make_parser(name).parse_args(arguments[1:])
    if not getattr(module, "TAKES_PROCESSES", False):
        require_one_process(f"diffprobe {name}")
    status: int = module.run(args)
    return status


def _overview() -> str:
    """Return the help of the program: the verbs by group, one line each."""
    groups = verb_groups()
    width = max((len(verb) for names in groups.values() for verb in names), default=0)
    lines = ["usage: diffprobe [-h] [--version] VERB ...", "", "Read what a frozen diffusion model knows."]
    for group, names in groups.items():
        lines.append(f"\n{group}:" if len(lines) == 3 else f"{group}:")
        lines += [f"  {verb:<{width}}  {_load(verb).HELP}" for verb in names]
    return "\n".join([*lines, _EPILOG, _TRACEBACK])


def _load(verb: str) -> ModuleType:
    return VERBS.load(verb.replace("-", "_"))
