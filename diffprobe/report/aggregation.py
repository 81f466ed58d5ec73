"""Averaging over seeds: which results are the same measurement, that is, differ in their seeds alone."""

from collections.abc import Iterable
from typing import Any

from diffprobe.config.controls import LADDER
from diffprobe.core.digest import canonical_json
from diffprobe.core.errors import RunFailed
from diffprobe.core.result import BACKBONE, SHARDS, MetricRecord, RunResult
from diffprobe.report.query import config_value
from diffprobe.report.table_spec import Value

Found = list[tuple[RunResult, MetricRecord]]

_SECTIONS = ("backbone", "data", "features", "probe", "trainer", "labels", "granularity")
_NOT_CONTENT = {
    # seeds
    "backbone.random_seed", "features.seed", "probe.grid.seed",
    # device, paths and logging
    "backbone.device", "features.source", "features.store", "features.placement", "trainer.accelerator",
    "trainer.checkpoint_every_steps", "trainer.devices", "trainer.enable_progress_bar", "trainer.log_every_steps",
    "trainer.num_nodes", "trainer.resume", "data.num_workers",
    "features.latent_cache",  # latents are cached in float32: bit-identical features
    "backbone.offload",  # where blocks are between passes: bit-identical features
    "probe.metrics",  # which metrics were recorded beside each other
    # speed: another order of the same sums, so numbers differ by rounding
    "backbone.channels_last", "backbone.compile", "backbone.cpu_kernels", "backbone.max_rows_per_pass",
    "backbone.max_modules", "probe.batched", "trainer.strategy",
}  # fmt: skip
"""Settings that do not change what is measured. Precision (`backbone.dtype`, `trainer.precision`) is not among them:
results are compared across precisions."""
_OF_OTHER_WEIGHTS = LADDER
"""Controls measured on other weights than the run that they are compared with, or on one part of them."""


SEED_WORDS = {
    "start": "initial weights", "order": "order of the samples", "shuffled_labels": "shuffled labels",
    "shuffled_captions": "shuffled captions", "random_direction": "random directions", "noise": "noise of the features",
    "random_weights": "weights of the random denoiser",
}  # fmt: skip
"""Name of a seed in results -> what it varies, in words."""
_OF_RUN = ("start", "shuffled_labels", "shuffled_captions", "random_direction")
"""Names of what the seed of the run varies; each has the value of that seed."""


def control_of(run: RunResult) -> str | None:
    """Return the control that a run measures, None for an ordinary run."""
    name = run.config.get("control", "none")
    return None if name in ("none", None) else str(name)


def one_per_seed(found: Found, where: dict[str, Value]) -> Found:
    """Return one result per seed.

    Args:
        found: the results of one entry.
        where: the entry, for messages.
    Raises: RunFailed if results differ in more than seeds, or disagree for the same seeds.
    """
    for run, record in found[1:]:
        differing = _differences(found[0], (run, record))
        if differing:
            raise RunFailed(
                f"{where}: results with different settings match one entry.",
                *(f"{key}: {a!r} and {b!r}" for key, a, b in differing),
                f"runs: {found[0][0].run}, {run.run}",
                fix="narrow the filter of the table, or --where FIELD=VALUE, for example --where run=NAME",
            )
    by_seed: dict[str, tuple[RunResult, MetricRecord]] = {}
    for run, record in found:
        seed = canonical_json([_own_seeds(run), run.config.get("seed")])
        known = by_seed.setdefault(seed, (run, record))
        if known[1].value != record.value:
            raise RunFailed(
                f"{where}: two results with the same settings and seeds disagree.",
                f"{known[0].run} ({known[0].started}): {known[1].value}",
                f"{run.run} ({run.started}): {record.value}",
                fix="move one of the runs out of the folder",
            )
    if len(by_seed) > 1 and any(record.n_seeds > 1 for _, record in by_seed.values()):
        raise RunFailed(f"{where}: a mean over seeds and single results match one entry.")
    return list(by_seed.values())


def varied(found: Found) -> tuple[str, ...]:
    """Return what the seeds of some results vary: keys of `SEED_WORDS`; () for results that do not record it."""
    runs = [run for run, _ in found]
    names = [name for name in SEED_WORDS if len({run.seeds.get(name) for run in runs}) > 1]
    known = [name for name in names if all(name in run.seeds for run in runs)]
    return tuple(name for name in known if name != "random_weights" or any(map(_is_random, runs)))


def seed_words(names: Iterable[str]) -> str:
    """Return what seeds vary, as words.

    >>> seed_words(["start", "order"])
    'initial weights, order of the samples'
    """
    return ", ".join(SEED_WORDS[name] for name in names)


def _own_seeds(run: RunResult) -> dict[str, int]:
    """Return the seeds that tell runs apart; the order has one of its own only in a grid of seeds."""
    of_run = run.seeds.get("run")
    return {
        name: seed
        for name, seed in run.seeds.items()
        if name not in _OF_RUN and not (name == "order" and seed == of_run)
    }


def _differences(
    one: tuple[RunResult, MetricRecord], other: tuple[RunResult, MetricRecord]
) -> list[tuple[str, Any, Any]]:
    """Return the differences between two results of one entry, seeds excluded."""
    pairs = [(name, getattr(one[1], name), getattr(other[1], name)) for name in ("cell", "target", "probe", "split")]
    pairs += [("kind", one[0].kind, other[0].kind)]
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    settings = [(f"config.{key}", ours, theirs) for key, ours, theirs in differing_settings(one[0], other[0])]
    return differing + settings + differing_inputs(one[0], other[0])


def differing_settings(one: RunResult, other: RunResult) -> list[tuple[str, Any, Any]]:
    """Return the settings in which two runs differ, seeds excluded: dotted key of the config, and both values."""
    a, b = (dict(_content(run.config)) for run in (one, other))
    return [(key, a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def differing_inputs(one: RunResult, other: RunResult) -> list[tuple[str, str | None, str | None]]:
    """Return the inputs (data set, weights) in which two runs differ: name, and both digests (None if not recorded).

    Weights are compared only where both runs should use the same ones: not with a control on another backbone, and not
    between random weights of two seeds.
    """
    names = [SHARDS] if _weights_may_differ(one, other) else [SHARDS, BACKBONE]
    digests = [(name, one.artifacts.get(name), other.artifacts.get(name)) for name in names]
    return [digest for digest in digests if digest[1] != digest[2]]


def _weights_may_differ(one: RunResult, other: RunResult) -> bool:
    names = (control_of(one), control_of(other))
    if names[0] != names[1]:
        return any(name in _OF_OTHER_WEIGHTS for name in names)
    seeds = [config_value(run.config, "backbone.random_seed") for run in (one, other)]
    return _is_random(one) and _is_random(other) and seeds[0] != seeds[1]


def _is_random(run: RunResult) -> bool:
    return control_of(run) == "random_weights" or config_value(run.config, "backbone.random_weights") is True


def _content(config: dict[str, Any], at: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in config.items():
        full = f"{at}.{key}" if at else key
        if (not at and key not in _SECTIONS) or full in _NOT_CONTENT:
            continue
        flat += _content(value, full) if isinstance(value, dict) and value else [(full, value)]
    return flat
