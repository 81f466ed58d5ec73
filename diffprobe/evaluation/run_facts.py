"""Facts of runs for a page: backbone, images, cells, noise and seeds. No weights are loaded."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import DiffprobeError
from diffprobe.core.result import BACKBONE, SHARDS, RunResult
from diffprobe.evaluation.probe_runs import ProbeRun

if TYPE_CHECKING:
    from diffprobe.features.request import Request


def run_facts(run: RunConfig) -> tuple[tuple[str, str], ...]:
    """Return backbone, images, cells, noise and seeds of a run, as they are on disk.

    Raises: WeightsMissing, UnknownTap and other errors of opening shards and backbone.
    """
    from diffprobe.features.request import Request

    request = Request(run.backbone, run.data, run.features)
    plan, manifest = request.plan, request.manifest
    latent = " x ".join(map(str, plan.spec.latent_shape))
    weights = manifest.backbone["weights"].get("denoiser", "")
    fields = {
        "backbone": f"{run.backbone.path}: {plan.spec.family}, {plan.resolution} px, latents {latent}, "
        f"{run.backbone.dtype}",
        "weights": f"denoiser sha256 {weights[:16]}",
        "images": f"{request.shard_set.name}: {_samples(run, request)}",
        "shard set": f"digest {request.shard_set.digest[:16]}; {request.shard_set.licence}",
        "taps": ", ".join(tap.path for tap in plan.taps),
        "timesteps": f"{', '.join(map(str, plan.timesteps))} of {plan.spec.schedule.n_timesteps:,}; larger is noisier",
        "features": f"condition {plan.branches[0].condition}, {plan.pool} over places, "
        f"noise draws per image: {plan.draws}",
        "seeds": f"run {run.seed}, noise {run.features.seed}, random weights {run.backbone.random_seed}",
    }
    return tuple(fields.items())


def recorded_facts(run: ProbeRun) -> tuple[tuple[str, str], ...]:
    """Return what the record of a run alone tells, for shards or a backbone that are not at hand."""
    config, inputs = run.config, run.result.artifacts
    return (
        ("backbone", f"{config.backbone.path}, {config.backbone.dtype}; digest {inputs.get(BACKBONE, 'n/a')[:16]}"),
        ("shard set", f"{config.data.path}; digest {inputs.get(SHARDS, 'n/a')[:16]}"),
        ("taps", ", ".join(config.features.taps)),
        ("timesteps", f"{', '.join(map(str, config.features.timesteps))}; larger is noisier"),
        ("features", f"{config.features.pool} over places, noise draws per image: {config.features.draws}"),
        ("seeds", f"run {config.seed}, noise {config.features.seed}, random weights {config.backbone.random_seed}"),
    )


def facts_of(runs: Sequence[ProbeRun], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the facts of several runs; those in which they differ once for each, with its name.

    Args:
        runs: runs of different features or data, in order.
        names: a name for each; unused for a single one.
    """
    found = []
    for run in runs:
        try:
            found.append(dict(run_facts(run.config)))
        except (DiffprobeError, OSError):
            found.append(dict(recorded_facts(run)))
    facts: list[tuple[str, str]] = []
    for key in dict.fromkeys(key for one in found for key in one):
        values = [one.get(key) for one in found]
        if len(set(values)) == 1:
            facts.append((key, str(values[0])))
        else:
            pairs = zip(names, values, strict=True)
            facts += [(f"{key}, {name}", value) for name, value in pairs if value is not None]
    return tuple(facts)


def machine_facts(results: Sequence[RunResult]) -> tuple[tuple[str, str], ...]:
    """Return the machine of the first run, and the training time of all."""
    hardware, seconds = results[0].hardware, sum(result.wall_time_s for result in results)
    accelerators = ", ".join(map(str, hardware.get("accelerators") or ["none"]))
    machine, cores = hardware.get("machine", "unknown"), hardware.get("cores", "unknown")
    runs = "1 run" if len(results) == 1 else f"{len(results)} runs"
    return (
        ("machine", f"{machine}, {cores} cores, accelerators: {accelerators}"),
        ("training", f"{seconds:.0f} s for {runs}, without extraction"),
    )


def _samples(run: RunConfig, request: "Request") -> str:
    from diffprobe.features.request import shard_entries

    parts = []
    for split in request.splits:
        n_samples = request.view.n_samples(split)
        taken = sum(entry.n for entry in shard_entries(request.view, split, run.data.limit))
        parts.append(f"{taken:,} {split}" if taken == n_samples else f"{taken:,} of {n_samples:,} {split}")
    rule = "" if run.data.limit is None else f" (at most {run.data.limit:,} per split, the first in shard order)"
    return ", ".join(parts) + rule
