"""The page of the demo of `scenes`, from its outcome."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.result import BACKBONE, INPUT
from diffprobe.demo.scenes.measures import comparison_table, find_record, mean_width, notes, quality_table
from diffprobe.demo.scenes.run import PromptSamples, ScenesOutcome, StepView, TwinOutcome
from diffprobe.demo.types import REPORT
from diffprobe.report.pages.panels import Picture
from diffprobe.report.pages.rate_dots import RateDot
from diffprobe.report.pages.scenes import ModelRates, PromptRow, Samples, ScenesPage, WorldRow, render_scenes_page
from diffprobe.shards.scenes.captions import parse
from diffprobe.shards.scenes.contact_sheet import contact_sheet


def write_scenes_report(outcome: ScenesOutcome, view: StepView) -> Path:
    """Write `report.html` into the folder of the demo. Returns: its path."""
    path = outcome.folder / REPORT
    with view.step("report", REPORT) as step:
        html = render_scenes_page(scenes_page(outcome))
        with atomic_file(path) as temporary:
            temporary.write_text(html, encoding="utf-8")
        step.done(f"{len(html.encode()) / 1e6:.1f} MB, one file")
    return path


def scenes_page(outcome: ScenesOutcome) -> ScenesPage:
    """Build the content of the page."""
    config = outcome.config
    sheet = contact_sheet(outcome.spec)
    return ScenesPage(
        title=config.title,
        lead=" ".join(config.lead.split()),
        models=tuple(one.name for one in outcome.twins),
        world=tuple(
            WorldRow(heading=row.heading, pictures=tuple(_picture(cell.pixels, cell.label) for cell in row.cells))
            for row in sheet
        ),
        prompts=tuple(_prompt_row(outcome, prompt) for prompt in config.prompts),
        sampling=f"{config.images_per_prompt} samples per prompt and model, {config.sampling_steps} steps of DDIM, "
        f"{'no guidance' if config.guidance == 0 else f'a guidance scale of {1 + config.guidance:g}'}, "
        f"seed {config.seed}.",
        rates=tuple(_model_rates(outcome, one) for one in outcome.twins),
        n_per_role=config.n_per_role,
        comparison=comparison_table(outcome),
        qualities=quality_table(outcome),
        notes=notes(outcome),
        tiles=tuple(_tile(one, world) for one in outcome.twins for world in _worlds(outcome, one)),
        limits=(*_limits(outcome), *config.limits),
        facts=scenes_facts(outcome),
        next_steps=config.next_steps,
    )


def scenes_facts(outcome: ScenesOutcome) -> tuple[tuple[str, str], ...]:
    """Return models, world, reader, sampling, seed and machine."""
    config, first = outcome.config, outcome.twins[0].result
    hardware = first.hardware
    return (
        *((f"model {one.name}", f"trained on {one.twin.world}; digest {one.result.artifacts[BACKBONE][:16]}")
          for one in outcome.twins),
        ("world", f"digest {first.artifacts[f'{INPUT}world'][:16]}"),
        ("reader", f"{config.reader}; weights sha256 {first.artifacts[f'{INPUT}reader'][:16]}"),
        ("sampling", f"DDIM, {config.sampling_steps} steps, guidance {config.guidance:g}, seed {config.seed}"),
        ("results", ", ".join(one.result.run for one in outcome.twins)),
        ("machine", f"{hardware.get('machine', 'unknown')}, {hardware.get('cores', 'unknown')} cores"),
        ("measuring", f"{sum(one.result.wall_time_s for one in outcome.twins):.0f} s for both models; "
                      "images of an earlier call are not drawn again"),
    )  # fmt: skip


def _worlds(outcome: ScenesOutcome, one: TwinOutcome) -> list[str]:
    """Return the world of a model, then that of its sibling."""
    return [one.twin.world, *(twin.world for twin in outcome.config.twins if twin.world != one.twin.world)]


def _tile(one: TwinOutcome, world: str) -> tuple[str, str, str]:
    record = find_record(one.result, "spearman", world)
    of = "its own planted rates" if world == one.twin.world else "the planted rates of its sibling"
    return one.name, "n/a" if record is None else f"{record.value:.2f}", f"Spearman with {of}"


def _prompt_row(outcome: ScenesOutcome, prompt: str) -> PromptRow:
    stated = parse(outcome.spec, prompt)
    samples = []
    for one in outcome.twins:
        world, found = outcome.spec.world(one.twin.world), one.samples[prompt]
        planted = next(role.striped[world] for role in outcome.spec.roles if role.name == stated["role"])
        what = f"“{stated['texture']}” is stated" if "texture" in stated else f"planted {planted:.2f}"
        note = f"{int(found.striped.sum())} of {len(found.striped)} striped; {what}"
        samples.append(Samples(pictures=_pictures(one.name, prompt, found), note=note))
    return PromptRow(prompt=prompt, samples=tuple(samples))


def _pictures(model: str, prompt: str, found: PromptSamples) -> tuple[Picture, ...]:
    return tuple(
        _picture(pixels, f"{model}, “{prompt}”, number {number}: read as {'striped' if striped else 'plain'}")
        for number, (pixels, striped) in enumerate(zip(found.images, found.striped, strict=True), start=1)
    )


def _picture(pixels: NDArray[np.uint8], caption: str) -> Picture:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="WEBP", lossless=True)
    return Picture(data=buffer.getvalue(), caption=caption)


def _model_rates(outcome: ScenesOutcome, one: TwinOutcome) -> ModelRates:
    own, other = _worlds(outcome, one)
    dots = []
    for record in one.result.metrics:
        if record.name == "rate":
            low, high = record.detail["interval"]
            planted = record.detail["planted"]
            dots.append(
                RateDot(
                    group=record.target or "",
                    planted=planted[own],
                    other=planted[other],
                    measured=record.value,
                    interval=(low, high),
                )  # fmt: skip
            )
    return ModelRates(model=one.name, world=one.twin.world, dots=tuple(dots))


def _limits(outcome: ScenesOutcome) -> tuple[str, ...]:
    config = outcome.config
    return (
        f"{config.n_per_role} images per role and model leave intervals of {mean_width(outcome):.2f} on average, so a "
        "single role can be far from its rate by chance; the full measurement (diffprobe eval rates) has more images.",
        f"The reader was trained on renderings. Its errors on generated images are measured on "
        f"{config.validated_per_role} images per role, and taken to depend on the texture alone, not on the role.",
        "Labels by the nearest re-rendering are not labels by eye.",
    )
