"""`diffprobe explore`: the latents of an autoencoder as a folder of pages, on the images of a held-out split.

Four passes over the store of the run: sums and top images of all latents; their maps; the pages of images; with a
second run of another cell, the activations that are compared. Memory grows with latents, not with images.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.explore_columns import ACTIVITY, Similar, columns_of
from diffprobe.evaluation.explore_matches import match_runs
from diffprobe.evaluation.explore_pages import Thumbnails, latent_pages
from diffprobe.evaluation.explore_pass import PassResult
from diffprobe.evaluation.explore_processes import passes
from diffprobe.evaluation.explore_runs import ExploredRun, open_explored
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.evaluation.latent_codes import CLASS
from diffprobe.report.explorer.records import (
    Column,
    ExplorerFacts,
    ImagePage,
    LatentMatch,
    LatentPage,
    Name,
    TextColumn,
)
from diffprobe.report.run_names import run_names

FOLDER = "explorer"
"""Folder of the explorer below that of its run."""


class Writer(Protocol):
    """What turns records into files: `diffprobe.report.explorer.writer.ExplorerWriter`."""

    def run(
        self,
        facts: ExplorerFacts,
        columns: Sequence[Column],
        pages: Iterable[LatentPage],
        images: Iterable[ImagePage],
        texts: Sequence[TextColumn] = (),
    ) -> None:
        """Write one run; the first call is run 0."""

    def compare(self, matches: Sequence[LatentMatch]) -> None:
        """Write the matches of run 0 and run 1."""

    def close(self) -> Path:
        """Write the page. Returns: its path."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Numbers and names of latents that are measured elsewhere."""

    columns: Sequence[Column] = ()
    texts: Sequence[TextColumn] = ()
    names: Mapping[int, Sequence[Name]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    """Sentences on how they were measured."""


Measure = Callable[[ExploredRun], Findings]
"""Measures numbers and names of the latents of a run."""


def explore(
    runs: Sequence[str], config: ExploreConfig, writer: Writer, *, measures: Sequence[Measure] = (),
    of_first: Sequence[Measure] = (),
) -> Path:  # fmt: skip
    """Write the explorer of one run, or of two with their matched latents.

    Args:
        runs: folders of one or two runs.
        config: settings; `seeds` are those of the first run.
        writer: writes the files.
        measures: further numbers and names, of each run.
        of_first: further ones, of the first run alone.

    Returns: path of the page.

    Raises: ConfigError for another number of runs and for settings without effect; the errors of `open_explored`,
        `Passes.find` and `match_runs`, before anything is written but for errors of reading images.
    """
    if not 1 <= len(runs) <= 2:
        raise ConfigError(f"explore shows one run or compares two; {len(runs)} were given.")
    if len(runs) == 1 and config.n_match_images != ExploreConfig.n_match_images:
        raise ConfigError("n_match_images has no effect with one run.", fix="remove it, or name a second run")
    opened = [open_explored(run, config, seeds=() if i else config.seeds) for i, run in enumerate(runs)]
    results = [one.trained.result for one in opened]
    names = [results[0].run] if len(opened) == 1 else run_names(results)
    if len(opened) == 1:
        _write_run(opened[0], names[0], config, writer, [*measures, *of_first], [])
        return writer.close()
    matches, sentence = match_runs(opened[0], opened[1], config.n_match_images)
    for run, name, further in zip(opened, names, (of_first, ()), strict=True):
        _write_run(run, name, config, writer, [*measures, *further], [sentence])
    writer.compare(matches)
    return writer.close()


def _write_run(
    run: ExploredRun,
    name: str,
    config: ExploreConfig,
    writer: Writer,
    measures: Sequence[Measure],
    notes: Sequence[str],
) -> None:
    with passes(run, config) as reading:
        found = reading.find()
        similar = Similar.of(run, config.n_neighbours)
        findings = collect_findings(run, found, similar, config, measures)
        shards = dict.fromkeys(shard for table in run.tables() for shard in table.shards[:1])
        thumbnails = Thumbnails(run.features, shards, config.thumbnail_side, run.trained.config.data.caps)
        trained = run.trained
        facts = ExplorerFacts(
            run=name,
            experiment=trained.result.experiment,
            model=Path(trained.config.backbone.path).name,
            data=f"{Path(trained.config.data.path).name}, split {run.split}",
            cells=run.cells,
            n_latents=run.sae.n_latents,
            k=run.sae.k,
            n_images=found.sums.n_images,
            notes=(*_notes(run, found, thumbnails, config), *notes, *findings.notes),
        )
        pages = latent_pages(found, similar, findings.names, n_bars=config.n_bars)
        writer.run(facts, findings.columns, pages, reading.images(found, thumbnails), findings.texts)


def collect_findings(
    run: ExploredRun, found: PassResult, similar: Similar, config: ExploreConfig, measures: Sequence[Measure]
) -> Findings:
    """Return the columns of the pass and those of all measures, with the names.

    A measured column replaces that of the pass with the same key. Held-out purity and entropy replace those of the
    pass, which choose the value on the images that they measure.

    Raises: ConfigError for two measured columns of one key.
    """
    columns: list[Column] = []
    texts: list[TextColumn] = []
    names: dict[int, list[Name]] = {}
    notes: list[str] = []
    for measure in measures:
        more = measure(run)
        columns += more.columns
        texts += more.texts
        notes += more.notes
        for latent, candidates in more.names.items():
            names.setdefault(latent, []).extend(candidates)
    keys = [*(column.key for column in columns), *(text.key for text in texts)]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ConfigError(f"two columns of the explorer have the key '{twice[0]}'.")
    of_pass = [column for column in columns_of(run, found, similar, config.n_top) if column.key not in keys]
    held_out = [key for key in ("purity", "entropy") if key in keys]
    of_pass = [column for column in of_pass if not any(column.key.startswith(f"{key}_") for key in held_out)]
    activity = [column for column in of_pass if column.key in ACTIVITY]
    others = [column for column in of_pass if column.key not in ACTIVITY]
    columns.sort(key=lambda column: "_of_" in column.key)  # those of single targets after those of the best one
    return Findings(columns=[*activity, *columns, *others], texts=texts, names=names, notes=notes)


def _notes(run: ExploredRun, found: PassResult, thumbnails: Thumbnails, config: ExploreConfig) -> list[str]:
    """Return sentences on how the numbers were made, and on what is missing."""
    sums = found.sums
    notes = [f"All numbers are of the {sums.n_images:,} images of split '{run.split}'."]
    if sums.n_rows.sum() > sums.n_images:
        rows = int(sums.n_rows.sum()) // sums.n_images
        notes.append(f"An image has {rows:,} rows (timesteps, draws, places); its activation is the largest of theirs.")
    inactive = int((sums.n_active == 0).sum())
    if inactive:
        notes.append(f"{inactive:,} of {sums.n_latents:,} latents are never active on this split; they have no images.")
    without = sums.n_images - sums.n_captions
    if without == sums.n_images:
        notes.append("No image has a caption.")
    elif without:
        notes.append(f"{without:,} of {sums.n_images:,} images have no caption.")
    if CLASS not in found.labels and CLASS not in found.left_out:
        notes.append("The data set has no classes.")
    for name, n_values in found.left_out.items():
        notes.append(f"'{name}' is not shown: it has {n_values:,} values, more than max_values={config.max_values}.")
    if any(len(values) > config.n_bars for values in found.labels.values()):
        notes.append(f"Bars are of the {config.n_bars} values with the largest share of active images.")
    if not run.seeds:
        notes.append("Recurrence is not shown: no run with another seed was given (seeds=[RUN,...]).")
    if thumbnails.missing:
        notes.append(f"Pictures are missing, since the images are not at hand: {thumbnails.missing}")
    return notes
