"""Experiments from Python: load a configuration by name, validate it, extract its features, train it.

The command line calls the same functions; the kind of a configuration decides what is trained.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Union

from diffprobe.config.compose import compose, require_kind, validate
from diffprobe.config.controls import ALL_RUNGS
from diffprobe.config.kinds import PROBE, kinds_of
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.runs.ladder import each_rung, is_ladder
from diffprobe.runs.rungs import those_that_apply
from diffprobe.runs.seeds import each_seed, require_one_value

if TYPE_CHECKING:
    from diffprobe.features.reader import FeatureStore
    from diffprobe.generative.run_settings import GenerativeTraining

TrainingConfig = Union[RunConfig, "GenerativeTraining"]
"""The configuration of a run that `train` accepts: of a probe, or of a part of a diffusion model."""


def load_experiment(name: str | None = None, settings: Sequence[str] = ()) -> TrainingConfig:
    """Load and validate the configuration of an experiment that can be trained. Nothing else is loaded or written.

    Args:
        name: experiment file below `experiments/` without suffix, for example "emoji/classifier"; None for a run that
            settings alone describe.
        settings: as on the command line: "group=choice" or "key=value", for example "data.limit=500".
    Raises: ConfigError with every error of the configuration, with file and line, and for several seeds; UnknownName.
    """
    found = load_experiments(name, settings, announce=lambda line: None)
    controls = list(dict.fromkeys(run.control for run in found if isinstance(run, RunConfig)))
    if len(controls) > 1:
        raise ConfigError(
            f"control={ALL_RUNGS} is {len(found)} runs: control={', '.join(controls)}.",
            fix=f"a single one: control={controls[0]}; in Python, runs.experiment.load_experiments has all",
        )
    if len(found) > 1:
        raise ConfigError(
            f"the experiment has {len(found)} seeds, a run for each.",
            fix=f"a single one: seed={found[0].seed}; in Python, runs.experiment.load_experiments has all",
        )
    return found[0]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def load_experiments(
    name: str | None = None, settings: Sequence[str] = (), *, announce: Callable[[str], None] = _to_stderr
) -> list[TrainingConfig]:
    """Load and validate the runs of an experiment: one for each seed of a list (`seed=[0,1,2]`), else one.

    With `control=ladder`, these of each rung that applies (`runs/ladder.py`), the run itself last.

    Args:
        name, settings: see `load_experiment`.
        announce: takes a line for each rung that does not apply, with the reason.
    Raises: as `load_experiment`; ConfigError for a list that is not one of seeds (`runs/seeds.py`).
    """
    require_one_value(settings)
    composed = compose(name, settings)
    require_kind(composed, kinds_of("train"))
    found: list[TrainingConfig] = [validate(one) for rung in each_rung(composed) for one in each_seed(rung)]
    if is_ladder(composed):
        return [*those_that_apply([run for run in found if isinstance(run, RunConfig)], announce)]
    return found


def each_rung_setting(settings: Sequence[str], announce: Callable[[str], None] = _to_stderr) -> list[list[str]]:
    """Return the settings of each rung that applies where `control=ladder` is one of them; else the settings.

    Args:
        settings, announce: see `load_experiments`.
    Raises: as `load_experiments`.
    """
    ladder = f"control={ALL_RUNGS}"
    if ladder not in settings:
        return [list(settings)]
    composed = compose(None, settings)
    require_kind(composed, (PROBE,))
    runs = [validate(each_seed(rung)[0]) for rung in each_rung(composed, apart=True)]
    others = [setting for setting in settings if setting != ladder]
    return [[*others, f"control={run.control}"] for run in those_that_apply(runs, announce)]


def plan_training(config: TrainingConfig, *, fetch: bool = True) -> Path:
    """Validate a run without loading features or images, and return its folder.

    Args:
        fetch: look for the weights of a model of the hub that a part is trained of; see `plan_generative`.
    Raises: see `train`.
    """
    if isinstance(config, RunConfig):
        from diffprobe.runs.plan import plan

        return plan(config).run_dir
    from diffprobe.runs.train_generative import plan_generative

    return plan_generative(config, fetch=fetch)


def extract(config: RunConfig, *, quiet: bool = False) -> "FeatureStore":
    """Write the feature store that a run reads, or what of it is missing, and return it.

    Args:
        config: the run; see `load_experiment`.
        quiet: print no progress.
    Raises: ConfigError for a configuration that reads no store; see `runs.extract.extract_run`.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(f"a configuration of type {type(config).__name__} reads images, not features.")
    from diffprobe.features.reader import FeatureStore
    from diffprobe.runs.extract import extract_run

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    return FeatureStore.open(extract_run(config, progress=not quiet, announce=say))


def train(config: TrainingConfig) -> Path:
    """Train what a configuration describes and write `result.json` in the run's folder.

    Returns: the path of `result.json`; `diffprobe.core.result.read_result` reads it.
    Raises: ConfigError, UnknownName; StoreMissing without features; WeightsMissing; NonFinite.
    """
    if isinstance(config, RunConfig):
        from diffprobe.runs.train import train as train_probe

        return train_probe(config)
    from diffprobe.runs.train_generative import train_generative

    return train_generative(config)
