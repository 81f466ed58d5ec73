"""The exception family. Owns the shape of a message: what is wrong, what was given, what is allowed, what to do.

Each class also derives from the built-in exception that a caller would catch. Standard library only.
"""

import difflib
from collections.abc import Iterable


class DiffprobeError(Exception):
    """Base of all errors that diffprobe raises on purpose.

    Args:
        what: one sentence: what is wrong, and where (file, key, sample).
        details: further lines: what was given, what is allowed, the nearest names.
        fix: what to do next, best a command to paste.

    >>> print(DiffprobeError("no shard in 'data'.", "looked for: *.tar", fix="diffprobe data index data"))
    no shard in 'data'.
      looked for: *.tar
      fix: diffprobe data index data
    """

    def __init__(self, what: str, *details: str, fix: str | None = None) -> None:
        self.what, self.details, self.fix = what, details, fix
        super().__init__(what, *details)

    def __str__(self) -> str:  # KeyError would otherwise print the repr of a tuple
        lines = [self.what, *(f"  {line}" for line in self.details)]
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:  # errors cross process borders (loader workers, DDP)
        return _rebuild, (type(self), self.what, self.details, self.fix)


def _rebuild(cls: type[DiffprobeError], what: str, details: tuple[str, ...], fix: str | None) -> DiffprobeError:
    return cls(what, *details, fix=fix)


class ConfigError(DiffprobeError, ValueError):
    """A configuration that cannot be run: unknown key, wrong type, value out of range."""


class UnknownName(DiffprobeError, KeyError):
    """A name that its catalogue does not hold."""


class UnknownTap(DiffprobeError, KeyError):
    """A tap that the backbone does not have."""


class BadTimestep(DiffprobeError, ValueError):
    """A timestep outside the training grid of the backbone."""


class WeightsMissing(DiffprobeError, FileNotFoundError):
    """A checkpoint, or a part of one, that is not on this machine."""


class WeightsMismatch(DiffprobeError, ValueError):
    """A checkpoint that does not fit the network or family it was loaded for."""


class ShardError(DiffprobeError, ValueError):
    """A fault in a shard set: unreadable file, stale index."""


class SampleError(ShardError):
    """A fault in one sample: undecodable image, missing field, bad label. Named by shard and key."""


class DuplicateKey(ShardError):
    """A key that stands twice in a shard set."""


class StoreMismatch(DiffprobeError, ValueError):
    """A feature store that was not made with the settings asked for."""


class StoreIncomplete(DiffprobeError, FileNotFoundError):
    """A feature store, or a part of it, that has not been written yet."""


class SchemaError(DiffprobeError, ValueError):
    """An artifact whose kind or schema version this code does not read."""


class EmptyClass(DiffprobeError, ValueError):
    """A class or attribute value without the samples that an estimate needs."""


class NonFinite(DiffprobeError, ValueError):
    """NaN or infinity where numbers were promised."""


class RunFailed(DiffprobeError, RuntimeError):
    """A step of a run that cannot be completed."""


def nearest(name: str, allowed: Iterable[str], n: int = 3) -> list[str]:
    """Return up to `n` allowed names that look like `name`, best first.

    >>> nearest("up_block.1", ["mid_block", "up_blocks.0", "up_blocks.1"], n=1)
    ['up_blocks.1']
    """
    return difflib.get_close_matches(name, list(allowed), n=n, cutoff=0.5)


def unknown(kind: str, name: str, allowed: Iterable[str], cls: type[DiffprobeError] = UnknownName) -> DiffprobeError:
    """Make the error for an unknown `name`: nearest names first, then all that is allowed."""
    names = sorted(allowed)
    close = nearest(name, names)
    details = [f"nearest: {', '.join(close)}"] if close else []
    details.append(f"allowed: {', '.join(names) if names else '(none)'}")
    return cls(f"unknown {kind} '{name}'.", *details)
