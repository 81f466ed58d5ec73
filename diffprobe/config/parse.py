"""Validate a plain tree against a dataclass, strictly: nothing is dropped, guessed or converted.

All errors of a tree are reported at once, each with its file and line. Needs neither Hydra nor torch; any frozen
dataclass can be the root.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from diffprobe.core.errors import ConfigError, DiffprobeError, nearest

T = TypeVar("T")
Origin = Mapping[str, tuple[str, int]]
"""Dotted key -> (file, line); line 0 is the command line."""

UNRECORDED = {"recorded": False}
"""Metadata of a field that has no effect on numbers: `record_tree` leaves it out, and so do digests."""
_BAD = object()


class Located(dict[str, Any]):
    """A free-form block of a parsed config with the origin of its keys, so that it can be validated later."""

    def __init__(self, values: Any = (), origin: Origin | None = None, at: str = "") -> None:
        super().__init__(values)
        self.origin, self.at = origin or {}, at


def parse(cls: type[T], tree: Mapping[str, Any], origin: Origin | None = None, *, at: str = "") -> T:
    """Build `cls` from `tree`.

    The only conversions are int -> float, and list -> tuple, as YAML has no tuples. A bool is not an int.

    Args:
        cls: a dataclass; fields may be nested dataclasses, Literal, Optional, tuple, list, dict and plain types.
        tree: the content of YAML or JSON. A free-form block of another config (a `Located`) has its own origin.
        origin: file and line of each key, for messages.
        at: dotted path of `tree` in the whole configuration.

    Raises: ConfigError with all errors: unknown keys (with the nearest name), missing keys, wrong types, values that
        a dataclass's own checks reject.
    """
    if isinstance(tree, Located) and origin is None:
        origin, at = tree.origin, at or tree.at
    validator = _Validator(origin or {})
    value: T = validator.dataclass(cls, tree, at)
    if validator.errors:
        raise _joined(validator.errors)
    return value


def record_tree(config: Any) -> Any:
    """Convert a config to JSON types without the fields marked `UNRECORDED`, for records and digests."""
    return to_tree(config, recorded=True)


def to_tree(config: Any, *, recorded: bool = False) -> Any:
    """Convert a config to JSON types; `parse(type(config), to_tree(config))` equals `config`.

    Args:
        recorded: leave out the fields marked `UNRECORDED`.
    """
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {
            f.name: to_tree(getattr(config, f.name), recorded=recorded)
            for f in dataclasses.fields(config)
            if not recorded or f.metadata.get("recorded", True)
        }
    if isinstance(config, Mapping):
        return {str(key): to_tree(value, recorded=recorded) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_tree(value, recorded=recorded) for value in config]
    return config


def _joined(errors: list[tuple[str, list[str]]]) -> ConfigError:
    fix = "nothing was loaded or written; see the whole configuration: diffprobe config experiment=NAME"
    if len(errors) == 1:
        what, details = errors[0]
        return ConfigError(what, *details, fix=fix)
    lines = [line for what, details in errors for line in (what, *(f"  {detail}" for detail in details))]
    return ConfigError(f"{len(errors)} errors in the configuration.", *lines, fix=fix)


class _Validator:
    """Walks tree and types together and collects the errors."""

    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.errors: list[tuple[str, list[str]]] = []

    def error(self, what: str, key: str, *details: str) -> Any:
        self.errors.append((f"{what}{self.where(key)}.", list(details)))
        return _BAD

    def where(self, key: str) -> str:
        place = self.origin.get(key)
        if place is None:
            return ""
        file, line = place
        return f" in {file}, line {line}" if line else f" on {file}"

    def dataclass(self, cls: type[Any], tree: Any, at: str) -> Any:
        name = at or "the configuration"
        if not isinstance(tree, Mapping):
            preset = (
                [f"to select a preset: `override /{at}: {tree}` under `defaults:`"] if isinstance(tree, str) else []
            )
            return self.error(f"'{name}' is {_show(tree)}, expected keys of {cls.__name__}", at, *preset)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        hints = get_type_hints(cls)
        before = len(self.errors)
        for key in tree:
            if key not in fields:
                self.unknown(_join(at, key), str(key), fields, hints, at)
        values = {}
        for key, spec in fields.items():
            if key in tree:
                values[key] = self.value(hints[key], tree[key], _join(at, key))
            elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
                self.error(f"missing key '{_join(at, key)}' ({describe(hints[key])})", at)
        if len(self.errors) > before:
            return _BAD
        try:
            return cls(**values)
        except DiffprobeError as error:  # raised by the dataclass's own checks, which know keys but not their lines
            places = [self.where(_join(at, key)) for key in tree if str(key) in error.what]
            details = [f"set{place}" for place in dict.fromkeys(filter(None, places))]
            self.errors.append((f"{at}: {error.what}" if at else error.what, [*details, *error.details]))
            return _BAD

    def unknown(self, full: str, key: str, fields: Mapping[str, Any], hints: Mapping[str, Any], at: str) -> None:
        details = []
        close = nearest(key, fields, n=1)
        if close:
            details.append(f"nearest: {_join(at, close[0])} ({describe(hints[close[0]])}{_default(fields[close[0]])})")
        details.append(f"keys of {at or 'the top level'}: {', '.join(sorted(fields)) or '(none)'}")
        self.error(f"unknown key '{full}'", full, *details)

    def value(self, hint: Any, value: Any, at: str) -> Any:
        origin, args = get_origin(hint), get_args(hint)
        if hint is Any:
            return value
        if origin in (Union, types.UnionType):
            return self.union(hint, args, value, at)
        if origin is Literal:
            # True == 1 in Python, so compare the types as well
            if any(value == choice and type(value) is type(choice) for choice in args):
                return value
            close = nearest(str(value), [str(a) for a in args], n=1)
            details = [f"nearest: {close[0]}"] if close else []
            return self.wrong(hint, value, at, *details)
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            return self.dataclass(hint, value, at)
        if origin in (tuple, list):
            return self.sequence(hint, value, at)
        if origin is dict or hint is dict:
            return self.mapping(hint, args, value, at)
        return self.scalar(hint, value, at)

    def scalar(self, hint: Any, value: Any, at: str) -> Any:
        if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            return number if math.isfinite(number) else self.wrong(hint, value, at, "infinity and NaN are not numbers")
        if isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool):
            return value
        details = [f"write it in quotes to make it text: '\"{value}\"'"] if hint is str and _plain(value) else []
        return self.wrong(hint, value, at, *details)

    def union(self, hint: Any, args: tuple[Any, ...], value: Any, at: str) -> Any:
        if value is None and type(None) in args:
            return None
        arms = [arm for arm in args if arm is not type(None)]
        if len(arms) == 1:
            return self.value(arms[0], value, at)
        for arm in arms:  # the first arm that accepts the value is used
            trial = _Validator(self.origin)
            result = trial.value(arm, value, at)
            if not trial.errors:
                return result
        return self.wrong(hint, value, at)

    def sequence(self, hint: Any, value: Any, at: str) -> Any:
        origin, args = get_origin(hint), get_args(hint)
        if not isinstance(value, (list, tuple)):
            details = [f"write it as a list: [{value}]"] if _plain(value) or isinstance(value, str) else []
            return self.wrong(hint, value, at, *details)
        if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
            if len(args) != len(value):
                return self.wrong(hint, value, at, f"it has {len(value)} entries, expected {len(args)}")
            arms = list(args)
        else:
            arms = [args[0]] * len(value)
        before = len(self.errors)
        items = [self.value(arm, item, f"{at}[{i}]") for i, (arm, item) in enumerate(zip(arms, value, strict=True))]
        return _BAD if len(self.errors) > before else origin(items)

    def mapping(self, hint: Any, args: tuple[Any, ...], value: Any, at: str) -> Any:
        if not isinstance(value, Mapping):
            return self.wrong(hint, value, at)
        arm = args[1] if args else Any
        return Located(
            {str(key): self.value(arm, item, _join(at, key)) for key, item in value.items()}, self.origin, at
        )

    def wrong(self, hint: Any, value: Any, at: str, *details: str) -> Any:
        key = at.split("[")[0]  # an entry of a list has the line of its list
        return self.error(f"'{at}' is {_show(value)}, expected {describe(hint)}", key, *details)


def describe(hint: Any) -> str:
    """Format a type for messages: ``int``, ``float or none``, ``one of raise, skip``, ``list of str``."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return "anything"
    if origin in (Union, types.UnionType):
        return " or ".join("none" if arm is type(None) else describe(arm) for arm in args)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in args)
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
        return f"list of {len(args)}: " + ", ".join(describe(arm) for arm in args)
    if origin in (tuple, list):
        return f"list of {describe(args[0])}"
    if origin is dict:
        return f"keys with {describe(args[1])}"
    if dataclasses.is_dataclass(hint):
        return f"keys of {getattr(hint, '__name__', hint)}"
    return getattr(hint, "__name__", str(hint))


def _default(spec: dataclasses.Field[Any]) -> str:
    return "" if spec.default is dataclasses.MISSING else f", default {spec.default!r}"


def _join(at: str, key: Any) -> str:
    return f"{at}.{key}" if at else str(key)


def _plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return f"a block of keys ({', '.join(map(str, value)) or 'empty'})"
    return f"{value!r} ({type(value).__name__})"
