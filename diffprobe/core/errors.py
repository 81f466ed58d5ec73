"""Exceptions of diffprobe. Each message states what is wrong, what was given, what is allowed, and a fix.

Each class also derives from the corresponding built-in exception. Each part of a message is one printable line, also
where it quotes names of a file or messages of a library. Standard library only.
"""

import difflib
from collections.abc import Iterable

from diffprobe.core.terminal import one_line

_LONGEST = 2000
"""Longest part of a message that is shown in full, in characters."""


class DiffprobeError(Exception):
    """Base class of all errors that diffprobe raises.

    Args:
        what: one sentence that states the problem and its place (file, key, sample).
        details: further lines: the given value, the allowed values, the nearest names.
        fix: the next step of the user, preferably a command.

    >>> print(DiffprobeError("no shard in 'data'.", "looked for: *.tar", fix="diffprobe data index data"))
    no shard in 'data'.
      looked for: *.tar
      fix: diffprobe data index data
    """

    def __init__(self, what: str, *details: str, fix: str | None = None) -> None:
        self.what, self.details, self.fix = what, details, fix
        super().__init__(what, *details)

    def __str__(self) -> str:  # KeyError prints the repr of a tuple
        lines = [shown(self.what), *(f"  {shown(line)}" for line in self.details)]
        if self.fix:
            lines.append(f"  fix: {shown(self.fix)}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:  # errors are sent between processes (loader workers, DDP)
        return _rebuild, (type(self), self.what, self.details, self.fix)


def shown(text: str) -> str:
    """Return a part of a message as one line; of a long one, for example of a number of 4,000 digits, both ends."""
    line = one_line(text)
    if len(line) <= _LONGEST:
        return line
    return f"{line[: _LONGEST - 300]} [{len(line) - _LONGEST + 100:,} characters] {line[-200:]}"


def _rebuild(cls: type[DiffprobeError], what: str, details: tuple[str, ...], fix: str | None) -> DiffprobeError:
    return cls(what, *details, fix=fix)


class ConfigError(DiffprobeError, ValueError):
    """Invalid configuration: unknown key, wrong type, value out of range."""


class UnknownName(DiffprobeError, KeyError):
    """A name that is not in its registry."""


class UnknownTap(DiffprobeError, KeyError):
    """A tap that the backbone does not have."""


class BadTimestep(DiffprobeError, ValueError):
    """A timestep outside the training grid of the backbone."""


class WeightsMissing(DiffprobeError, FileNotFoundError):
    """A checkpoint, or a part of one, that was not found on this machine."""


class WeightsMismatch(DiffprobeError, ValueError):
    """A checkpoint that does not match the network or family it is loaded for."""


class ShardError(DiffprobeError, ValueError):
    """An invalid shard set: unreadable file, outdated index."""


class SampleError(ShardError):
    """An invalid sample, given by shard and key: undecodable image, missing field, invalid label."""


class DuplicateKey(ShardError):
    """A key that occurs twice in a shard set."""


class StoreMismatch(DiffprobeError, ValueError):
    """A feature store that was made with other settings than requested."""


class StoreIncomplete(DiffprobeError, FileNotFoundError):
    """A feature store, or a part of it, that is not written yet."""


class SchemaError(DiffprobeError, ValueError):
    """An artifact of an unsupported kind or schema version, or a modified one."""


class EmptyClass(DiffprobeError, ValueError):
    """A class or attribute value with too few samples for an estimate."""


class UninformativeReader(DiffprobeError, ValueError):
    """A classifier whose errors hide what it reads, so that rates cannot be corrected by its confusion."""


class SelectionOnTest(ConfigError):
    """Many cells compared on test, which is there to score the one that was chosen before."""


class SplitLeak(ConfigError):
    """Samples, or whole groups of them, that are in two splits: what is scored was seen before."""


class TooFewGroups(ConfigError):
    """Fewer groups of samples than an interval or a test needs."""


class NonFinite(DiffprobeError, ValueError):
    """NaN or infinity where a finite number is required."""


class RunFailed(DiffprobeError, RuntimeError):
    """A step of a run that cannot be completed."""


def nearest(name: str, allowed: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` allowed names that are similar to `name`, best first.

    >>> nearest("up_block.1", ["mid_block", "up_blocks.0", "up_blocks.1"], n=1)
    ['up_blocks.1']
    """
    return difflib.get_close_matches(name, list(allowed), n=n, cutoff=0.5)


def unknown(kind: str, name: str, allowed: Iterable[str], cls: type[DiffprobeError] = UnknownName) -> DiffprobeError:
    """Return the error for an unknown `name`, with the nearest and all allowed names."""
    names = sorted(allowed)
    close = nearest(name, names)
    details = [f"nearest: {', '.join(close)}"] if close else []
    details.append(f"allowed: {', '.join(names) if names else '(none)'}")
    return cls(f"unknown {kind} '{name}'.", *details)
