"""Merge presets, an experiment file and command-line settings into one tree. Owns Hydra: its compose API only.

Hydra merges and nothing more; `parse.py` judges, so that every fault is found with its file and line. Where each key
was written is read from the same files in the order in which Hydra merged them.
"""

import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffprobe.config import search_path
from diffprobe.config.compose_errors import fault, reasons
from diffprobe.config.kinds import KINDS, PROBE
from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig
from diffprobe.config.source_lines import COMMAND_LINE, origins, read_kind
from diffprobe.core.errors import ConfigError, nearest, unknown

VERSION_BASE = "1.3"
_SETTING = re.compile(r"^[A-Za-z_][\w/-]*(\.[\w-]+)*=", re.DOTALL | re.ASCII)
_WORD = re.compile(r"[A-Za-z/_.*][\w/.*@%+-]*", re.ASCII)
_GROUP = re.compile(r"[A-Za-z_][\w-]*(/[A-Za-z_][\w-]*)*", re.ASCII)
_NO_TEXT = re.compile(r"null|none|true|false|inf|nan", re.IGNORECASE)
"""Words that a setting reads as another value than the text."""


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A merged configuration, not judged yet."""

    tree: dict[str, Any]
    """The merged keys, interpolations resolved."""
    origin: dict[str, tuple[str, int]]
    """Dotted key -> (file, line) of the value that won; line 0 for the command line."""
    kind: str = PROBE
    """Kind of the experiment file (`kinds.py`): its dataclass validates the tree."""
    experiment: str | None = None
    """Name of the experiment file."""


def compose(experiment: str | None, overrides: Sequence[str] = ()) -> Composed:
    """Merge `configs/base/run.yaml` and its groups, the experiment file, and settings, in this order.

    An experiment file with a `kind:` key starts from nothing instead of that base: it lists the groups it wants.

    Args:
        experiment: name of a file below `experiments/`, without suffix; None for a run described by settings alone.
        overrides: ``group=choice`` (data=emoji) or ``key=value`` (trainer.max_epochs=3); ``experiment=NAME`` too.
    Raises: ConfigError on an unknown experiment, group choice or malformed setting. Keys are judged by `parse`.
    """
    experiment, settings = split_experiment(experiment, overrides)
    kind = PROBE
    if experiment is not None:
        path = _experiment_path(experiment)
        kind = read_kind(path) or PROBE
        if kind not in KINDS:
            raise unknown(f"kind of experiment in {search_path.display(path)}:", kind, KINDS, ConfigError)
    groups = search_path.groups()
    chosen, values = _sort_settings(settings, groups)
    folders = search_path.search_path()
    if experiment is not None and _choice(experiment)[0] == search_path.EXPERIMENTS:
        folders += search_path.roots()
    tree, merged = _merge(kind == PROBE, experiment, chosen, values, folders)
    tree.pop("kind", None)
    tree = _from_home(tree)
    origin = origins(merged, folders)
    for setting in values:
        _mark(origin, tree, setting.split("=", 1)[0])
    return Composed(tree=tree, origin=origin, kind=kind, experiment=experiment)


def load(experiment: str | None, overrides: Sequence[str] = (), *, kinds: Collection[str] = tuple(KINDS)) -> Any:
    """Compose a configuration and validate it by the dataclass of its kind.

    Args:
        kinds: kinds of experiment files that the caller can run.
    Raises: ConfigError with every fault of the configuration, or for an experiment of another kind.
    """
    composed = compose(experiment, overrides)
    require_kind(composed, kinds)
    return validate(composed)


def load_run(experiment: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Compose and validate a probe run. Raises: ConfigError, see `load`."""
    config: RunConfig = load(experiment, overrides, kinds=(PROBE,))
    return config


def require_kind(composed: Composed, kinds: Collection[str]) -> None:
    """Refuse an experiment that the caller cannot run. Raises: ConfigError that names the verb which can."""
    if composed.kind not in kinds:
        raise ConfigError(
            f"experiment '{composed.experiment}' is of kind '{composed.kind}'; expected: {', '.join(kinds)}.",
            fix=f"diffprobe {KINDS[composed.kind].verb} experiment={composed.experiment}",
        )


def validate(composed: Composed) -> Any:
    """Build the dataclass of a composed configuration; fill in the name of its experiment, where it has that field.

    Raises: ConfigError with every fault.
    """
    cls = KINDS[composed.kind].load()
    tree = dict(composed.tree)
    if "experiment" in {f.name for f in fields(cls)}:
        if "experiment" in tree:
            raise ConfigError("'experiment' names the file itself; it cannot be set inside one.")
        tree["experiment"] = composed.experiment or ""
    return parse(cls, tree, composed.origin)


def split_experiment(experiment: str | None, overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Take ``experiment=NAME`` out of the settings. Raises: ConfigError if two experiments are named."""
    named = [o.split("=", 1)[1] for o in overrides if o.startswith("experiment=")]
    rest = [o for o in overrides if not o.startswith("experiment=")]
    names = list(dict.fromkeys(([experiment] if experiment else []) + named))
    if len(names) > 1:
        raise ConfigError(f"more than one experiment is named: {', '.join(names)}.")
    return (names[0].removesuffix(".yaml").removeprefix("experiments/") if names else None), rest


def _experiment_path(name: str) -> Path:
    known = search_path.experiments()
    if name not in known:
        raise unknown("experiment", name, known, ConfigError)
    return known[name]


def _choice(experiment: str) -> tuple[str, str]:
    """Return the group and the choice by which Hydra finds an experiment file.

    A group has to be a word or several; a choice may have any name, so other files are seen from their root.
    """
    group, _, name = experiment.rpartition("/")
    return (group, name) if _GROUP.fullmatch(group) else (search_path.EXPERIMENTS, experiment)


def _sort_settings(settings: Sequence[str], groups: dict[str, list[str]]) -> tuple[dict[str, str], list[str]]:
    """Part settings into group choices and key values. Raises: ConfigError naming every malformed one."""
    chosen: dict[str, str] = {}
    values, faults = [], []
    for setting in settings:
        key, _, value = setting.partition("=")
        if not _SETTING.match(setting):
            faults.append(f"'{setting}' is not of the form key=value or group=choice")
        elif key in groups:
            if value not in groups[key]:
                close = nearest(value, groups[key])
                hint = f"; nearest: {', '.join(close)}" if close else ""
                faults.append(f"{setting}: no such {key}{hint}; there are: {', '.join(groups[key])}")
            chosen[key] = value
        else:
            values.append(setting)
    if faults:
        raise ConfigError("settings that cannot be read.", *faults, fix="key=value, for example trainer.max_epochs=3")
    return chosen, values


def _merge(
    with_base: bool, experiment: str | None, chosen: dict[str, str], values: list[str], folders: list[Path]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Let Hydra merge. Returns: the tree, and (config name, package) of each file in merge order."""
    import yaml
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    paths = ",".join(_quoted(f"file://{folder}") for folder in folders[1:])
    overrides = [f"hydra.searchpath=[{paths}]"]
    if with_base:
        overrides.append(
            f"+{search_path.BASE}@_global_=run"
        )  # no primary config: Hydra looks for one in one folder only
    if experiment is not None:
        group, name = _choice(experiment)
        overrides.append(f"+{group}@_global_={_quoted(name)}")
    overrides += [f"{group}={name}" for group, name in chosen.items()]
    overrides += [_added(value) for value in values]
    listed: list[Any] = []
    try:
        with initialize_config_dir(config_dir=str(folders[0]), version_base=VERSION_BASE):
            config = hydra_compose(config_name=None, overrides=overrides)
            loader = GlobalHydra.instance().config_loader()
            listed = loader.compute_defaults_list(None, overrides, RunMode.RUN).defaults
        tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise fault(error, experiment, values, _files(listed), folders) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}, _files(listed)


def _files(listed: Sequence[Any]) -> list[tuple[str, str]]:
    return [(d.config_path, d.package or "") for d in listed if d.config_path and not d.config_path.startswith("hydra")]


def _from_home(value: Any) -> Any:
    """Return a tree in which `~/...` is the path that it means: a shell leaves it as it is after `key=`."""
    if isinstance(value, dict):
        return {key: _from_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _added(setting: str) -> str:
    """Write `key=value` as Hydra takes it: added or replaced alike, as unknown keys are `parse`'s to refuse.

    A value that is none in Hydra's grammar (a path with an umlaut, a prompt with an apostrophe) is the text it is.
    Raises: ConfigError for a list, block or quoted text that does not end, and for several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, _, value = setting.partition("=")
    try:
        several = OverridesParser.create().parse_override(setting).is_sweep_override()
    except HydraException as error:
        if value.lstrip().startswith(("[", "{", "'", '"')) or "${" in value:
            raise ConfigError(
                f"the setting {setting} cannot be composed.",
                *reasons(error),
                "a value that begins with [, { or a quote is a list, a block of keys or quoted text up to its end",
                fix=f"as plain text: {_typed(f'{key}={_quoted(value)}')}",
            ) from error
        return f"++{key}={_quoted(value.strip())}"
    if several:
        raise ConfigError(
            f"the setting {setting} gives several values; a key has one.",
            fix=f"as a list: {_typed(f'{key}=[{value}]')}; as one text, quote the value: "
            f"{_typed(f'{key}={_quoted(value)}')}",
        )
    return f"++{setting}"


def _typed(setting: str) -> str:
    """Write a setting as a shell takes it."""
    return shlex.quote(setting) if set('"$`\\!') & set(setting) else f'"{setting}"'


def setting_text(value: object) -> str:
    """Write a value as a setting holds it: words as they are, other text in quotes, which settings read as one text.

    >>> [setting_text(value) for value in ("up_blocks.*", "a cat, it's red", "true", True, None)]
    ['up_blocks.*', "'a cat, it\\\\'s red'", "'true'", 'True', 'null']
    """
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    return value if _WORD.fullmatch(value) and not _NO_TEXT.fullmatch(value) else _quoted(value)


def _quoted(text: str) -> str:
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)  # a quote, and the backslashes before it, are escaped
    trailing = len(escaped) - len(escaped.rstrip("\\"))
    return f"'{escaped}{escaped[len(escaped) - trailing :]}'"


def _mark(origin: dict[str, tuple[str, int]], tree: dict[str, Any], key: str) -> None:
    """Say that `key`, and all below it, came from the command line."""
    for known in [k for k in origin if k.startswith(f"{key}.")]:
        del origin[known]
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    while "." in key and key.rpartition(".")[0] not in origin:  # blocks that only this setting has made
        key, value = key.rpartition(".")[0], {key.rpartition(".")[2]: value}
    stack = [(key, value)]
    while stack:
        at, value = stack.pop()
        origin[at] = COMMAND_LINE
        if isinstance(value, dict):
            stack += [(f"{at}.{name}", item) for name, item in value.items()]
