"""Errors of Hydra, OmegaConf and YAML as `ConfigError`, with the file, the line and a fix. Used by `compose.py`."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

from diffprobe.config import search_path
from diffprobe.config.source_lines import origins, unreadable
from diffprobe.core.errors import ConfigError, unknown


def compose_error(
    error: Exception,
    experiment: str | None,
    settings: Sequence[str],
    merged: list[tuple[str, str]],
    folders: list[Path],
) -> ConfigError:
    """Return the error for a configuration that cannot be merged.

    Args:
        error: the exception of Hydra, OmegaConf or YAML.
        experiment: name of the experiment file, if there is one.
        settings: settings of the command line.
        merged: (config name, package) of each file that Hydra has read.
        folders: the search path.
    """
    from hydra.errors import MissingConfigException

    if isinstance(error, (yaml.YAMLError, UnicodeDecodeError)):
        return unreadable(error, search_path.folders())
    where = f"experiment '{experiment}'" if experiment else "the configuration"
    place = _place(error, settings, merged, folders)
    fix = "rename or move that file, or start in another folder" if search_path.INSTEAD in "".join(place) else None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        found = unknown(group or "preset", choice, error.options or [], ConfigError)
        return ConfigError(f"{where} selects an {found.what}", *place, *found.details, fix=fix)
    lines = reasons(error)
    return ConfigError(f"{where} cannot be composed: {lines[0]}", *place, *lines[1:], fix=fix)


def _place(error: Exception, settings: Sequence[str], merged: list[tuple[str, str]], folders: list[Path]) -> list[str]:
    """Return the file (and line) that an error of Hydra is about, if it names a file or a key."""
    named = re.match(r"In '(.+?)':", str(error))
    path = search_path.find(named[1], folders) if named else None
    if path:
        return [f"read in {search_path.display(path)}"]
    key = str(getattr(error, "full_key", None))
    written = origins(merged, folders).get(key)
    if written is None or key in [setting.partition("=")[0] for setting in settings]:
        return []
    return [f"read in {written[0]}, line {written[1]}"]


def reasons(error: BaseException) -> list[str]:
    """Return the lines of Hydra's message (or of its cause) that apply to the commands of diffprobe."""
    text = re.sub(r"\+\+?(?=[\w/.@-]+=)", "", str(error))  # added to each setting by compose.py
    foreign = ("--multirun", "To append", "hydra.cc", "object_type=")
    lines = [line for line in text.splitlines() if line.strip() and not any(word in line for word in foreign)]
    if not lines and error.__cause__ is not None:
        return reasons(error.__cause__)
    return lines or [type(error).__name__]
