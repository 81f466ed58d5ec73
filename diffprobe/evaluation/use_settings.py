"""The configuration of `diffprobe eval use` and `eval generations`: from an experiment of their kinds, a probe
experiment, or a finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprobe.config.compose import compose, require_kind, split_experiment, validate
from diffprobe.config.kinds import PROBE
from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.registry import PROBE_KINDS
from diffprobe.core.result import RESULT_FILE, read_result
from diffprobe.evaluation.generations import GenerationEvaluation
from diffprobe.evaluation.use import PARTS, E, UseEvaluation, own_keys, shared_parts, use_of_run
from diffprobe.report.yaml_tree import parse_yaml

DEFAULT = "emoji/use"
"""The experiment of `eval use` if none is named."""


def load_use(words: Sequence[str]) -> UseEvaluation:
    """Compose and validate an evaluation of `eval use`; see `load_evaluation`."""
    return load_evaluation(words, UseEvaluation, kind="evaluate_use", default=DEFAULT)


def load_generations(words: Sequence[str]) -> GenerationEvaluation:
    """Compose and validate an evaluation of `eval generations`; see `load_evaluation`."""
    return load_evaluation(words, GenerationEvaluation, kind="evaluate_generations", default="emoji/generations")


def load_evaluation(words: Sequence[str], cls: type[E], *, kind: str, default: str) -> E:
    """Compose and validate an evaluation.

    Args:
        words: `experiment=NAME` of the evaluation's kind or of a probe, or the folder of a finished probe run; and
            settings. Those of a probe experiment (backbone, data, features, groups such as data=emoji) and those of the
            evaluation (limit, split, interventions, ...) may be mixed.
        cls: the configuration of the kind.
        kind: kind of the evaluation's own experiments.
        default: the experiment if none is named.
    Raises: ConfigError for several runs, a run beside an experiment, a folder without a finished probe run, or settings
        that do not exist.
    """
    runs = [word for word in words if is_run(word)]
    experiment, settings = split_experiment(None, [word for word in words if word not in runs])
    if len(runs) > 1 or (runs and experiment is not None):
        named = [*runs, *([f"experiment={experiment}"] if experiment else [])]
        raise ConfigError(
            f"more than one thing to measure: {', '.join(named)}.", fix="one run folder, or one experiment"
        )
    if runs:
        return _of_finished(runs[0], settings, cls)
    own = [setting for setting in settings if setting.partition("=")[0] in own_keys(cls)]
    composed = compose(experiment or default, [setting for setting in settings if setting not in own])
    require_kind(composed, (kind, PROBE))
    if composed.kind == PROBE:
        return use_of_run(validate(composed), dict(map(_value, own)), cls)
    config: E = validate(compose(experiment or default, settings))
    return config


def is_run(word: str) -> bool:
    """Return whether a word names a folder rather than a setting; names of folders may have a `=`."""
    return "=" not in word or (Path(word) / RESULT_FILE).is_file()


def _of_finished(folder: str, settings: Sequence[str], cls: type[E]) -> E:
    path = Path(folder) / RESULT_FILE
    if not path.is_file():
        raise ConfigError(
            f"'{folder}' is not the folder of a finished run: it has no {RESULT_FILE}.",
            fix="the folder that `diffprobe train` printed; or experiment=NAME",
        )
    result = read_result(path)
    if result.kind not in PROBE_KINDS.names():
        raise ConfigError(
            f"'{folder}' is a run of kind '{result.kind}'; its cells are not those of a probe.",
            f"allowed: {', '.join(PROBE_KINDS.names())}",
        )
    run = parse(RunConfig, {**result.config, "experiment": result.experiment}, at=f"{path}: config")
    parts = shared_parts(run)
    own: dict[str, Any] = {}
    names = own_keys(cls)
    for key, value in map(_value, settings):
        *parents, last = key.split(".")
        if key in names:
            own[key] = value
        elif parents and parents[0] in PARTS:
            block: Any = parts
            for name in parents:
                block = block.get(name) if isinstance(block, dict) else None
            if not isinstance(block, dict):
                raise ConfigError(f"'{key}' is not a setting: '{'.'.join(parents)}' has no keys.")
            block[last] = value
        else:
            known = [*names, *(f"{part}.KEY" for part in PARTS)]
            raise unknown("setting of a finished run", key, known, ConfigError)
    return parse(cls, {"experiment": run.experiment, "output": run.output, **parts, **own})


def _value(setting: str) -> tuple[str, Any]:
    """Split `key=value`; the value is YAML. Raises: ConfigError."""
    key, _, value = setting.partition("=")
    return key, parse_yaml(value, where=f"setting '{setting}': the value").tree
