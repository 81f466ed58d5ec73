"""Which of several ways to write a setting a configuration accepts, so that a message advises no other.

Used by `compose.py` for a setting that is a list to the eye and several values to Hydra: seed=0,1,2.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from diffprobe.config.kinds import PROBE
from diffprobe.config.parse import parse
from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.core.registry import PROBE_KINDS, PROBE_TRAINING, probes

_PARAMS, _GRID = "probe.params.", "probe.grid."
_NAMES = ("probe.kind", "probe.name", "probe.cell")
"""Keys whose text names one thing, so that no text with commas can be right."""


class UnreadableSetting(ConfigError):
    """A setting that cannot be read as it is, with the ways to write it that come into question.

    Args:
        what: the problem.
        details: further lines.
        setting: the setting as given.
        ways: (when to use it, setting) of each way.
    """

    def __init__(self, what: str, *details: str, setting: str, ways: Sequence[tuple[str, str]]) -> None:
        super().__init__(what, *details)
        self.setting, self.ways = setting, tuple(ways)

    def advised(self, accepts: Callable[[str], bool], typed: Callable[[str], str]) -> ConfigError:
        """Return the error with those ways as its fix that the configuration accepts.

        Args:
            accepts: whether the configuration takes a setting.
            typed: quotes a setting for a shell.
        """
        ways = [f"{when}: {typed(setting)}" for when, setting in self.ways if accepts(setting)]
        return ConfigError(self.what, *self.details, fix="; ".join(ways) or None)


def ways_to_give(key: str, value: str, quoted: str) -> list[tuple[str, str]]:
    """List the ways to give several values that are separated by commas.

    Args:
        key: dotted key of the setting.
        value: the values.
        quoted: the values as one quoted text.

    >>> ways_to_give("seed", "0,1", "'0,1'")[-1]
    ('one value, in a run for each', 'seed=0')
    """
    ways = [("as a list", f"{key}=[{value}]")]
    if key not in _NAMES:
        ways.append(("as one text, quote the value", f"{key}={quoted}"))
    leaf = key.removeprefix(_PARAMS)
    if key in ("seed", "probe.cell") or leaf != key:
        ways.append(("as a grid in one run", f"{_GRID}{leaf.removeprefix('probe.')}=[{value}]"))
    return [*ways, ("one value, in a run for each", f"{key}={value.split(',')[0].strip()}")]


def is_accepted(setting: str, kind: str, tree: Mapping[str, Any], validate: Callable[[], object]) -> bool:
    """Return whether a configuration takes the value of a setting; its other errors do not count.

    Args:
        setting: key=value.
        kind: kind of the experiment file.
        tree: the composed configuration, with the setting.
        validate: validates it.
    """
    key = setting.partition("=")[0]
    if _complains(validate, key):
        return False
    probe = tree.get("probe")
    if key == "probe.name" and isinstance(probe, Mapping) and probe.get("kind") in PROBE_KINDS.names():
        return probe["name"] in probes(probe["kind"]).names()
    if kind != PROBE or not key.startswith((_PARAMS, _GRID)) or not isinstance(probe, Mapping):
        return True
    kind_of_probe, name = probe.get("kind"), probe.get("name")
    if kind_of_probe not in PROBE_KINDS.names() or name not in probes(kind_of_probe).names():
        return False
    settings: type[Any] = probes(kind_of_probe).load(name).Config
    block, leaf = key.split(".")[1:3]
    value = probe[block].get(leaf)
    if block == "params":
        return not _complains(partial(parse, settings, {leaf: value}, at="probe.params"), key)
    training = PROBE_TRAINING.load(kind_of_probe)
    if not training.TAKES_GRID or name in training.WITHOUT_GRID or not isinstance(value, (list, tuple)):
        return False
    if leaf in ("cell", "seed"):
        return all(isinstance(one, str if leaf == "cell" else int) for one in value)
    return not any(_complains(partial(parse, settings, {leaf: one}, at="probe.grid"), key) for one in value)


def _complains(validate: Callable[[], object], key: str) -> bool:
    try:
        validate()
    except DiffprobeError as error:
        return any(f"'{key}" in line for line in (error.what, *error.details))
    return False
