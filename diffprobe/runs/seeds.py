"""`seed=[0,1,2]`: one run for each seed, what a seed varies, and the means over seeds."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from diffprobe.config.compose import Composed, values_of
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult
from diffprobe.report.aggregation import seed_words, varied


def each_seed(composed: Composed) -> list[Composed]:
    """Return a configuration for each seed where `seed` is a list; else the configuration itself.

    Raises: ConfigError for a list without seeds, with a duplicate or anything but whole numbers; for several processes,
        which cannot train one run after the other; and together with `probe.grid.seed`.
    """
    seeds = composed.tree.get("seed")
    if not isinstance(seeds, list):
        return [composed]
    given = f"seed={seeds}".replace(" ", "")[:80]
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        raise ConfigError(f"{given}: a list of seeds has at least one whole number, and each once.")
    trainer, probe = composed.tree.get("trainer") or {}, composed.tree.get("probe") or {}
    if len(seeds) > 1 and (trainer.get("devices", 1), trainer.get("num_nodes", 1)) != (1, 1):
        raise ConfigError(
            f"{given} with several processes (trainer.devices, trainer.num_nodes).",
            "the runs of a list train one after the other, in one process",
            fix=f"a command for each seed: seed={seeds[0]}",
        )
    if isinstance(probe, Mapping) and "seed" in (probe.get("grid") or {}):
        raise ConfigError(f"{given} together with probe.grid.seed.", fix="one of the two lists")
    return [replace(composed, tree={**composed.tree, "seed": seed}) for seed in seeds]


def require_one_value(settings: Iterable[str]) -> None:
    """Refuse seeds that are separated by commas, which `submit` alone takes. Raises: ConfigError with the list."""
    for setting in settings:
        if setting.partition("=")[0] == "seed" and len(values := values_of(setting)) > 1:
            raise ConfigError(
                f"the setting {setting} has several values; a key has one.",
                fix=f'as a list, a run for each: "seed=[{",".join(values)}]"',
            )


def as_sweep(setting: str) -> str:
    """Return a list of seeds as the values of a sweep, so that each is a job of its own; other settings as they are.

    >>> as_sweep("seed=[0,1, 2]"), as_sweep("seed=3"), as_sweep("features.timesteps=[25,200]")
    ('seed=0,1,2', 'seed=3', 'features.timesteps=[25,200]')
    """
    key, _, value = setting.partition("=")
    value = value.strip()
    if key != "seed" or not (value.startswith("[") and value.endswith("]") and value[1:-1].strip()):
        return setting
    return f"seed={','.join(seed.strip() for seed in value[1:-1].split(','))}"


def unfinished(folders: Sequence[Path]) -> list[bool]:
    """Return which runs of a list are to be trained: those without a result; all of them if all have one."""
    missing = [not (folder / RESULT_FILE).exists() for folder in folders]
    return missing if any(missing) else [True] * len(folders)


def recorded_seeds(seeds: Mapping[str, int], varies: Iterable[str], *, ordered: bool) -> dict[str, int]:
    """Return the seeds of a run by what each varies, for its result.

    Args:
        seeds: "run", and "order" where the samples have another seed.
        varies: what the seed of the run varies (`ProbeModule.seed_varies`).
        ordered: whether the order of the samples matters: an epoch of one batch has none.

    >>> recorded_seeds({"run": 3}, ("start", "order"), ordered=True)
    {'run': 3, 'start': 3, 'order': 3}
    """
    named = {"run": seeds["run"], **dict.fromkeys(varies, seeds["run"]), **seeds}
    return {name: seed for name, seed in named.items() if ordered or name != "order"}


def over_seeds(results: Sequence[RunResult], split: str = "test") -> list[MetricRecord]:
    """Return the mean of each metric over runs that differ in their seeds, with its standard deviation (ddof 1).

    A metric that is equal for all seeds has no deviation: nothing that it depends on varied.
    """
    places: dict[tuple[str | None, ...], list[tuple[RunResult, MetricRecord]]] = {}
    for run in results:
        for record in run.metrics:
            if record.split == split:
                places.setdefault((record.name, record.cell, record.target, record.probe), []).append((run, record))
    made = []
    for found in places.values():
        values = [record.value for _, record in found]
        spread = statistics.stdev(values) if len(set(values)) > 1 else None
        mean = statistics.fmean(values) if spread is not None else values[0]
        made.append(replace(found[0][1], value=mean, spread=spread, n_seeds=len(values), controls={}, detail={}))
    return made


def describe_seeds(results: Sequence[RunResult]) -> str:
    """Return what the seeds of some runs vary, as words for a terminal."""
    names = varied([(run, record) for run in results for record in run.metrics[:1]])
    return seed_words(names) or "nothing that is recorded"
