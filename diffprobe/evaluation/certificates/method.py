"""What is certified: a saved method on disk, or a Python callable named as `module:callable`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, RunFailed


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method as it was named on the command line: exactly one of path and call is set."""

    name: str
    """The text that names it."""
    path: Path | None = None
    """Its file or folder."""
    call: Callable[..., Any] | None = None
    """The imported callable."""

    def digests(self) -> dict[str, str]:
        """Return name -> sha256 of the files of a saved method; empty for a callable."""
        if self.path is None:
            return {}
        if self.path.is_file():
            return {f"input/{self.path.name}": digest_file(self.path)}
        names = ("probe.json", "probe.safetensors", "result.json")
        return {f"input/{name}": digest_file(self.path / name) for name in names if (self.path / name).is_file()}


def is_callable_name(text: str) -> bool:
    """Return whether a text has the form `module:callable`, and is not a path that exists.

    >>> is_callable_name("my_lab.audits:by_vote"), is_callable_name("runs/a:b/c")
    (True, False)
    """
    module, colon, name = text.partition(":")
    named = bool(colon) and all(part.isidentifier() for part in module.split(".")) and name.isidentifier()
    return named and not Path(text).exists()


def load_callable(text: str, signature: str, n_arguments: int) -> Callable[..., Any]:
    """Import `module:callable`. This runs the code of the module; the working folder is searched too.

    Args:
        text: module and name.
        signature: what the callable has to take and return, for messages.
        n_arguments: number of positional arguments that it is called with.

    Raises: ConfigError for a module that cannot be imported, a name that it lacks, an object that cannot be called, or
        one that does not take the arguments.
    """
    module_name, _, name = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module is the user's code
        raise ConfigError(f"'{text}': module '{module_name}' cannot be imported: {type(error).__name__}: {error}.",
                          f"needed: {signature}") from error  # fmt: skip
    finally:
        sys.path.remove(os.getcwd())
    found = getattr(module, name, None)
    if not callable(found):
        what = "has no such name" if found is None else f"is {type(found).__name__}, which cannot be called"
        raise ConfigError(f"'{text}': '{name}' in module '{module_name}' {what}.", f"needed: {signature}")
    try:
        inspect.signature(found).bind(*range(n_arguments))
    except TypeError as error:
        raise ConfigError(
            f"'{text}' does not take {n_arguments} positional arguments: its signature is {inspect.signature(found)}.",
            f"needed: {signature}",
        ) from error
    except ValueError:
        pass  # a builtin without a signature: the call itself shows it
    return found


def call(method: Callable[..., Any], name: str, signature: str, *arguments: object) -> Any:
    """Call the user's code. Raises: RunFailed with its error, and the signature that is needed."""
    try:
        return method(*arguments)
    except Exception as error:
        raise RunFailed(f"'{name}' failed: {type(error).__name__}: {error}.", f"needed: {signature}") from error
