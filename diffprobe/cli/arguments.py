"""The grammar that all verbs share: the parser with its suggestions, the settings of a configuration, and `--check`."""

import argparse
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from diffprobe.core.errors import ConfigError, nearest

T = TypeVar("T")

GROUPS = ("data", "features", "probes", "meaning", "generation", "runs", "cluster")
"""Groups of verbs in `diffprobe --help`, along the flow. A verb's file names its own in `GROUP`."""


class Parser(argparse.ArgumentParser):
    """An argument parser that names the nearest option or sub-verb for an unknown one.

    Options and settings may be mixed in any order: ``diffprobe train probe=topk --check data=emoji``.
    """

    _is_mixing = False

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse options and positionals in any order; one with sub-verbs or a whole command leaves that to theirs."""
        whole = any(
            isinstance(action, argparse._SubParsersAction) or action.nargs == argparse.REMAINDER
            for action in self._actions
        )
        if self._is_mixing or whole:
            return super().parse_known_args(args, namespace)
        self._is_mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_mixing = False

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Parse, and report unknown arguments with the nearest options. Exits with status 2."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = sorted({name for parser in _chosen(self, found) for name in _options(parser)})
            hints = [
                f"nearest to {argument}: {', '.join(close)}"
                for argument in unknown
                if argument.startswith("-") and (close := nearest(argument.partition("=")[0], options))
            ]
            self.error("; ".join([f"unrecognized arguments: {' '.join(unknown)}", *hints]))
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        close = nearest(str(value), choices)
        hint = f" (nearest: {', '.join(close)})" if close else ""
        raise argparse.ArgumentError(action, f"invalid choice: '{value}'{hint}; choose from {', '.join(choices)}")


def add_settings(parser: argparse.ArgumentParser, *, note: str = "") -> None:
    """Add the `SETTING` positionals of a verb that reads a configuration.

    Args:
        note: what is special about the settings of this verb, appended to the help.
    """
    text = "experiment=NAME, group=choice (data=emoji), key=value"
    parser.add_argument("settings", nargs="*", default=[], metavar="SETTING", help=f"{text}; {note}" if note else text)


def add_keys(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the `KEY=VALUE` positionals of a verb that reads no experiment file; `text` is their help."""
    parser.add_argument("keys", nargs="*", default=[], metavar="KEY=VALUE", help=text)


def parse_keys(settings: list[str], config: type[T]) -> T:
    """Return a dataclass of settings `key=value`. Raises: ConfigError with all errors."""
    from diffprobe.config.parse import parse

    tree = settings_tree(settings)
    return parse(config, tree, dict.fromkeys(tree, ("the command line", 0)))


def settings_tree(settings: list[str]) -> dict[str, Any]:
    """Return the settings `key=value` as a tree; values are YAML.

    Raises: ConfigError for a text of another form, a key that is given twice, or a value that is not YAML.
    """
    import yaml

    tree: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"'{setting}' is not a setting.", "allowed: key=value, for example backbone=pixels")
        if key in tree:
            raise ConfigError(f"the setting '{key}' is given twice.")
        try:
            tree[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"invalid setting '{setting}': the value is not valid YAML.") from error
    return tree


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add `--check` to a verb that can validate its configuration without running it."""
    parser.add_argument("--check", action="store_true", help="validate the configuration and stop; nothing is loaded")


def add_backbone(parser: argparse.ArgumentParser, hub: str) -> None:
    """Add the arguments that name a backbone and the size of its images; `hub` is what the help calls a hub id."""
    parser.add_argument("backbone", help=f'folder in diffusers format, {hub}, "emoji-sd" (shipped) or "pixels"')
    parser.add_argument(
        "--resolution", type=int, metavar="N", help="image side in pixels (default: the checkpoint's own)"
    )
    parser.add_argument("--revision", help="commit, tag or branch of a hub id")
    parser.add_argument(
        "--single-file-config", metavar="FOLDER", help="configurations of a single safetensors file, or a hub id"
    )


def sub_verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of a parser's sub-verbs, by name; empty without sub-verbs."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def _chosen(parser: argparse.ArgumentParser, found: argparse.Namespace) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of the sub-verbs that were given; all of them where none was."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            name = getattr(found, action.dest, None)
            for sub in [action.choices[name]] if name in action.choices else action.choices.values():
                yield from _chosen(sub, found)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def part_of(text: str) -> tuple[int, int]:
    """Return the numbers of `--process I/N`. Raises: ArgumentTypeError."""
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is not a part; expected I/N with I from 0 to N-1, for example 0/2")
    return int(index), int(count)
