"""The report page of a demo, and its facts: model, images, features and seeds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import EmptyClass
from diffprobe.demo.types import Demo, Outcome
from diffprobe.report.pages.page import Page
from diffprobe.report.pages.panels import DirectionPanel

if TYPE_CHECKING:
    from diffprobe.features.request import Request


def make_page(outcome: Outcome, directions: tuple[DirectionPanel, ...], left_out: Sequence[str] = ()) -> Page:
    """Build the content of the page. What the data are too few for is left out, and its limits say so.

    Args:
        directions: the directions to show.
        left_out: sentences on what is not shown.
    Raises: see `demo/panels.py`.
    """
    from diffprobe.demo.panels import latent_panels

    config, latents = outcome.demo.config, None
    try:
        latents = latent_panels(outcome)
    except EmptyClass as error:
        left_out = [*left_out, f"No latents are shown: {error.what}"]
    return Page(
        title=config.title,
        lead=" ".join(config.lead.split()),
        facts=(*demo_facts(outcome.demo), *_machine(outcome)),
        results=outcome.results,
        tables=outcome.demo.specs[:1],
        latents=latents.panels if latents else (),
        latent_rule=latents.rule if latents else "",
        latent_cell=latents.cell if latents else "",
        n_classes=latents.n_classes if latents else 0,
        directions=directions,
        limits=(*config.limits, *left_out),
        next_steps=config.next_steps,
    )


def demo_facts(demo: Demo) -> tuple[tuple[str, str], ...]:
    """Return backbone, images, cells, noise and seeds of the demo's first run. No weights are loaded.

    Raises: WeightsMissing, UnknownTap and other errors of opening the backbone.
    """
    from diffprobe.features.request import Request

    run = demo.runs[0]
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


def _samples(run: RunConfig, request: "Request") -> str:
    from diffprobe.features.request import shard_entries

    parts = []
    for split in dict.fromkeys((run.data.train_split, run.data.val_split, run.data.test_split)):
        n_samples = request.view.n_samples(split)
        taken = sum(entry.n for entry in shard_entries(request.view, split, run.data.limit))
        parts.append(f"{taken:,} {split}" if taken == n_samples else f"{taken:,} of {n_samples:,} {split}")
    rule = "" if run.data.limit is None else f" (at most {run.data.limit:,} per split, the first in shard order)"
    return ", ".join(parts) + rule


def _machine(outcome: Outcome) -> tuple[tuple[str, str], ...]:
    hardware, seconds = outcome.results[0].hardware, sum(result.wall_time_s for result in outcome.results)
    accelerators = ", ".join(map(str, hardware.get("accelerators") or ["none"]))
    machine, cores = hardware.get("machine", "unknown"), hardware.get("cores", "unknown")
    return (
        ("stores", ", ".join(path.name for path in outcome.store_paths)),
        ("machine", f"{machine}, {cores} cores, accelerators: {accelerators}"),
        ("training", f"{seconds:.0f} s for {len(outcome.results)} runs, without extraction"),
    )
