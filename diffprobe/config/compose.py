"""Merge presets, an experiment file and command-line settings into one tree, with Hydra's compose API.

Hydra only merges; `parse.py` validates, so that every error is reported with its file and line. The line of each key
is read from the same files, in the order in which Hydra merged them (`source_lines.py`).
"""

import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffprobe.config import search_path
from diffprobe.config.advice import UnreadableSetting, is_accepted, ways_to_give
from diffprobe.config.compose_errors import compose_error, reasons
from diffprobe.config.kinds import KINDS, PROBE
from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig
from diffprobe.config.source_lines import COMMAND_LINE, origins, read_kind
from diffprobe.config.yaml_guard import check_interpolations, guard_files, refuse_resolvers
from diffprobe.core.errors import ConfigError, DiffprobeError, nearest, unknown
from diffprobe.core.signals import end_behind

VERSION_BASE = "1.3"
_SETTING = re.compile(r"^[A-Za-z_][\w/-]*(\.[\w-]+)*=", re.DOTALL | re.ASCII)
_WORD = re.compile(r"[A-Za-z/_.*][\w/.*@%+-]*", re.ASCII)
_GROUP = re.compile(r"[A-Za-z_][\w-]*(/[A-Za-z_][\w-]*)*", re.ASCII)
_HYDRA = re.compile(r"hydra[./=@]")
_NO_TEXT = re.compile(r"null|none|true|false|inf|nan", re.IGNORECASE)
"""Words that a setting parses as another value than text."""


@dataclass(frozen=True, kw_only=True)
class Composed:
    """A merged configuration that is not validated yet."""

    tree: dict[str, Any]
    """The merged keys, interpolations resolved."""
    origin: dict[str, tuple[str, int]]
    """Dotted key -> (file, line) of the value that took precedence; line 0 for the command line."""
    kind: str = PROBE
    """Kind of the experiment file (`kinds.py`): its dataclass validates the tree."""
    experiment: str | None = None
    """Name of the experiment file."""


def compose(experiment: str | None, overrides: Sequence[str] = ()) -> Composed:
    """Merge `configs/base/run.yaml` and its groups, the experiment file, and settings, in this order.

    An experiment file with a `kind:` key does not start from that base: it lists the groups that it needs.

    Args:
        experiment: name of a file below `experiments/`, without suffix; None for a run described by settings alone.
        overrides: ``group=choice`` (data=emoji), ``key=value`` (trainer.max_epochs=3) or ``experiment=NAME``.

    Raises: ConfigError on an unknown experiment or group choice, or a malformed setting. Keys are validated by `parse`.
    """
    experiment, settings = split_experiment(experiment, overrides)
    kind = PROBE if experiment is None else kind_of(experiment)
    groups = search_path.groups()
    _refuse_hydra({}, settings)  # before Hydra reads them: some end the program with its own help
    _refuse_cluster(settings)
    chosen, values = _sort_settings(settings, groups)
    folders = search_path.folders()
    if experiment is not None and _choice(experiment)[0] == search_path.EXPERIMENTS:
        folders += search_path.roots()
    for setting in settings:
        refuse_resolvers(setting, f"on {COMMAND_LINE[0]}")
    try:
        tree, merged = _merge(kind == PROBE, experiment, chosen, values, folders)
    except UnreadableSetting as error:
        others = [setting for setting in settings if setting != error.setting and _is_readable(setting)]
        raise error.advised(lambda way: _accepts(experiment, [*others, way]), _typed) from error
    tree.pop("kind", None)
    tree = _from_home(tree)
    origin = origins(merged, folders)
    _refuse_hydra(origin, ())
    for setting in values:
        _mark(origin, tree, setting.split("=", 1)[0])
    return Composed(tree=tree, origin=origin, kind=kind, experiment=experiment)


def compose_group(
    group: str, choice: str | None, settings: Sequence[str]
) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """Merge one preset of a group that stands alone, such as `cluster`, and settings of its keys.

    Returns: {group: keys}, and the file and line of each key.
    Raises: ConfigError without a choice, for an unknown one (with the nearest), or a malformed setting.
    """
    choices = search_path.groups().get(group, [])
    if choice is None:
        raise ConfigError(f"{group}=NAME is missing.", f"allowed: {', '.join(choices) or '(none)'}")
    if choice not in choices:
        raise unknown(group, choice, choices, ConfigError)
    _, values = _sort_settings(settings, {})
    for setting in settings:
        refuse_resolvers(setting, f"on {COMMAND_LINE[0]}")
    folders = search_path.folders()
    try:
        tree, merged = _merge(False, None, {f"+{group}": choice}, values, folders)
    except UnreadableSetting as error:
        raise error.advised(lambda way: True, _typed) from error
    origin = origins(merged, folders)
    for setting in values:
        _mark(origin, tree, setting.split("=", 1)[0])
    return _from_home(tree), origin


def values_of(setting: str) -> list[str]:
    """Return the values of `key=1,2,3`, one for each run of a sweep; a setting with one value has that.

    >>> values_of("seed=0,1"), values_of("probe=topk"), values_of("features.prompt='a, b'"), values_of("a=[1,2]")
    (['0', '1'], ['topk'], ["'a, b'"], ['[1,2]'])
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(setting)
        if parsed.is_sweep_override():
            return list(parsed.sweep_string_iterator())
    except (HydraException, ValueError):  # text outside of Hydra's grammar is one value
        pass
    return [setting.partition("=")[2]]


def typed_value(setting: str) -> int | float | bool | str:
    """Return the value of `key=value`: a number or a truth value as such, everything else as its text.

    >>> typed_value("seed=20_000"), typed_value("lr=1e-4"), typed_value("a=true"), typed_value("a=null")
    (20000, 0.0001, True, 'null')
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    text = setting.partition("=")[2]
    try:
        value = OverridesParser.create().parse_override(setting).value()
    except (HydraException, ValueError):  # text outside of Hydra's grammar
        return text
    return value if isinstance(value, (bool, int, float)) else text


def load(experiment: str | None, overrides: Sequence[str] = (), *, kinds: Collection[str] = tuple(KINDS)) -> Any:
    """Compose a configuration and validate it by the dataclass of its kind.

    Args:
        kinds: kinds of experiment files that the caller can run.

    Raises: ConfigError with all errors of the configuration, or for an experiment of another kind.
    """
    composed = compose(experiment, overrides)
    require_kind(composed, kinds)
    return validate(composed)


def load_run(experiment: str | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Compose and validate a probe run. Raises: ConfigError, see `load`."""
    config: RunConfig = load(experiment, overrides, kinds=(PROBE,))
    return config


def require_kind(composed: Composed, kinds: Collection[str]) -> None:
    """Raise ConfigError, naming the right verb, for an experiment that the caller cannot run."""
    if composed.kind not in kinds:
        raise ConfigError(
            f"experiment '{composed.experiment}' is of kind '{composed.kind}'; expected: {', '.join(kinds)}.",
            fix=f"diffprobe {KINDS[composed.kind].verb} experiment={composed.experiment}",
        )


def validate(composed: Composed) -> Any:
    """Build the dataclass of a composed configuration and fill in its field `experiment`, if it has one.

    Raises: ConfigError with all errors.
    """
    cls = KINDS[composed.kind].load()
    tree = dict(composed.tree)
    if "experiment" in {f.name for f in fields(cls)}:
        if "experiment" in tree:
            raise ConfigError("'experiment' is the name of the experiment file; a file cannot set it.")
        tree["experiment"] = composed.experiment or ""
    return parse(cls, tree, composed.origin)


def kind_of(experiment: str) -> str:
    """Return the kind of an experiment file (`kinds.py`). Raises: ConfigError for an unknown experiment or kind."""
    path = _experiment_path(experiment)
    kind = read_kind(path) or PROBE
    if kind not in KINDS:
        raise unknown(f"kind of experiment in {search_path.display(path)}:", kind, KINDS, ConfigError)
    return kind


def split_experiment(experiment: str | None, overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate ``experiment=NAME`` from the settings. Raises: ConfigError if two experiments are named."""
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
    """Return Hydra's group and choice for an experiment file.

    A group consists of words; a choice may have any name, so files in other folders are addressed from the root.
    """
    group, _, name = experiment.rpartition("/")
    return (group, name) if _GROUP.fullmatch(group) else (search_path.EXPERIMENTS, experiment)


def _refuse_hydra(origin: dict[str, tuple[str, int]], settings: Sequence[str]) -> None:
    """Refuse settings of Hydra itself: it only merges here, so that they would have no effect. Raises: ConfigError."""
    given = [f"{setting} on {COMMAND_LINE[0]}" for setting in settings if _HYDRA.match(setting)]
    given += [f"{key} in {file}, line {line}" for key, (file, line) in origin.items() if key == "hydra"]
    if given:
        raise ConfigError(
            "settings of Hydra have no effect: diffprobe only merges configurations with it.",
            *given,
            fix="remove them; output=FOLDER is the folder of runs, and one command is one run",
        )


def _refuse_cluster(settings: Sequence[str]) -> None:
    """Refuse the settings of a cluster where nothing is submitted. Raises: ConfigError."""
    given = [setting for setting in settings if re.match(r"cluster[.=]", setting)]
    if given:
        raise ConfigError(
            f"{given[0]} describes where a job runs; it is not part of a run.",
            fix=f"diffprobe submit VERB ... {' '.join(given)}",
        )


def _sort_settings(settings: Sequence[str], groups: dict[str, list[str]]) -> tuple[dict[str, str], list[str]]:
    """Separate settings into group choices and key values. Raises: ConfigError listing all malformed settings."""
    chosen: dict[str, str] = {}
    values, errors = [], []
    for setting in settings:
        key, _, value = setting.partition("=")
        if not setting.isascii() and any("\ud800" <= char <= "\udfff" for char in setting):
            errors.append(f"'{setting}' is not UTF-8 text")
        elif not _SETTING.match(setting):
            errors.append(f"'{setting}' is not of the form key=value or group=choice")
        elif key in groups:
            if value not in groups[key]:
                close = nearest(value, groups[key])
                hint = f"; nearest: {', '.join(close)}" if close else ""
                errors.append(f"{setting}: unknown {key}{hint}; allowed: {', '.join(groups[key])}")
            chosen[key] = value
        else:
            values.append(setting)
    if errors:
        raise ConfigError("malformed settings.", *errors, fix="key=value, for example trainer.max_epochs=3")
    return chosen, values


def _merge(
    with_base: bool, experiment: str | None, chosen: dict[str, str], values: list[str], folders: list[Path]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Merge with Hydra. Returns: the tree, and (config name, package) of each file in merge order."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    paths = ",".join(_quoted(f"file://{folder}") for folder in folders[1:])
    overrides = [f"hydra.searchpath=[{paths}]"]
    if with_base:
        overrides.append(f"+{search_path.BASE}@_global_=run")  # Hydra looks for a primary config in one folder only
    if experiment is not None:
        group, name = _choice(experiment)
        overrides.append(f"+{group}@_global_={_quoted(name)}")
    overrides += [f"{group}={name}" for group, name in chosen.items()]
    overrides += [_added(value) for value in values]
    listed: list[Any] = []
    names = [f"{search_path.BASE}/run"] if with_base else []
    names += ["/".join(filter(None, _choice(experiment)))] if experiment is not None else []
    try:
        files = [f"{group.removeprefix('+')}/{name}" for group, name in chosen.items()]
        guard_files([*names, *files], folders, chosen)
        with initialize_config_dir(config_dir=str(folders[0]), version_base=VERSION_BASE):
            config = hydra_compose(config_name=None, overrides=overrides)
            loader = GlobalHydra.instance().config_loader()
            listed = loader.compute_defaults_list(None, overrides, RunMode.RUN).defaults
        check_interpolations(OmegaConf.to_container(config, resolve=False))
        tree = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except DiffprobeError:
        raise
    except Exception as error:  # of Hydra, OmegaConf or YAML; their readers also raise ValueError, TypeError and others
        if end_behind(error) is not None:  # a signal came, and left a library halfway
            raise
        raise compose_error(error, experiment, values, _files(listed), folders) from error
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}, _files(listed)


def _files(listed: Sequence[Any]) -> list[tuple[str, str]]:
    return [(d.config_path, d.package or "") for d in listed if d.config_path and not d.config_path.startswith("hydra")]


def _from_home(value: Any) -> Any:
    """Expand `~/...` in a tree; a shell does not expand it after `key=`."""
    if isinstance(value, dict):
        return {key: _from_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_home(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _added(setting: str) -> str:
    """Format `key=value` for Hydra, as an override that adds or replaces the key; `parse` rejects unknown keys.

    A value outside of Hydra's grammar (a path with an umlaut, a prompt with an apostrophe) is passed as text.

    Raises: UnreadableSetting for a list, block or quoted text without its end, and for several values.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, _, value = setting.partition("=")
    try:
        several = OverridesParser.create().parse_override(setting).is_sweep_override()
    except (HydraException, ValueError) as error:  # ValueError: a number of more digits than Python reads
        if value.lstrip().startswith(("[", "{", "'", '"')) or "${" in value:
            raise UnreadableSetting(
                f"malformed setting {setting}.",
                *reasons(error),
                "a value that begins with [, { or a quote must be a complete list, block of keys or quoted text",
                setting=setting,
                ways=[("as plain text", f"{key}={_quoted(value)}")],
            ) from error
        return f"++{key}={_quoted(value.strip())}"
    if several:
        raise UnreadableSetting(
            f"the setting {setting} has several values; a key has one.",
            setting=setting,
            ways=ways_to_give(key, value, _quoted(value)),
        )
    return f"++{setting}"


def _is_readable(setting: str) -> bool:
    try:
        _added(setting)
    except UnreadableSetting:
        return False
    return True


def _accepts(experiment: str | None, settings: Sequence[str]) -> bool:
    """Return whether a configuration takes the last of its settings."""
    if not _is_readable(settings[-1]):
        return False  # its own advice could be this setting again, without end
    try:
        composed = compose(experiment, settings)
    except DiffprobeError:
        return False
    return is_accepted(settings[-1], composed.kind, composed.tree, lambda: validate(composed))


def _typed(setting: str) -> str:
    """Quote a setting for a shell."""
    return shlex.quote(setting) if set('"$`\\!') & set(setting) else f'"{setting}"'


def setting_text(value: object) -> str:
    """Format a value for a setting: words as they are, other text in quotes.

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
    """Record that `key`, and all keys below it, came from the command line."""
    for known in [k for k in origin if k.startswith(f"{key}.")]:
        del origin[known]
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    while "." in key and key.rpartition(".")[0] not in origin:  # blocks that only this setting creates
        key, value = key.rpartition(".")[0], {key.rpartition(".")[2]: value}
    stack = [(key, value)]
    while stack:
        at, value = stack.pop()
        origin[at] = COMMAND_LINE
        if isinstance(value, dict):
            stack += [(f"{at}.{name}", item) for name, item in value.items()]
