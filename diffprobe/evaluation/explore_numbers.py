"""Numbers and names of the explorer's latents that are chosen on the training split and measured on the shown one.

The measures are those of `evaluation/latent_numbers.py`, beside raw neurons, principal components and a random
dictionary of the same size and density.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from diffprobe.analysis.latents.baselines import LinearCodes
from diffprobe.analysis.latents.sparse_codes import MAX_IMAGES
from diffprobe.core.errors import EmptyClass
from diffprobe.evaluation.explore import Findings
from diffprobe.evaluation.explore_runs import ExploredRun
from diffprobe.evaluation.latent_codes import CLASS, autoencoder_codes, baseline_codes, baselines_of
from diffprobe.evaluation.latent_numbers import LatentNumbers, NumberSettings, SplitCodes, latent_names, latent_numbers
from diffprobe.features.batch import FeatureTable
from diffprobe.report.explorer.records import TextColumn

MAX_VALUES = 64
"""Attributes with more values are not tested: few images have each of them."""


def held_out_numbers(
    run: ExploredRun, settings: NumberSettings | None = None, *, max_images: int = MAX_IMAGES
) -> Findings:  # fmt: skip
    """Return columns and names of the latents of a run.

    Args:
        run: the run; its training split makes the choices.
        settings: how; None for the defaults.
        max_images: images of each split that are measured, drawn by a hash of their keys. Memory is that of their
            codes, whatever the size of the splits.

    Returns: nothing but a note where the shown split is the one that was trained on, or where nothing can be measured.
    """
    train_split = run.trained.config.data.train_split
    if run.split == train_split:
        return Findings(
            notes=[f"Held-out numbers and names are missing: '{run.split}' is the split that they are chosen on."]
        )
    group = run.features.group

    def tables(split: str) -> Iterator[FeatureTable]:
        return run.features.iter_tables(split)

    values = {CLASS: tuple(run.features.classes), **{name: tuple(of) for name, of in run.features.attributes.items()}}
    wanted = [name for name, of in values.items() if name != group and 2 <= len(of) <= MAX_VALUES]

    def kept(codes: SplitCodes) -> SplitCodes:
        return replace(codes, targets={name: codes.targets[name] for name in wanted if name in codes.targets})

    def baseline(codes: LinearCodes, split: str) -> SplitCodes:
        return kept(baseline_codes(codes, tables(split), run.cells, group=group, max_images=max_images))

    train, test = (
        kept(autoencoder_codes(run.sae, tables(split), run.cells, group=group, max_images=max_images))
        for split in (train_split, run.split)
    )
    of_baselines = baselines_of(
        tables(train_split), run.cells, n_latents=run.sae.n_latents, k=run.sae.k, seed=run.trained.config.seed
    )
    baselines = {
        name: (baseline(codes, train_split), baseline(codes, run.split)) for name, codes in of_baselines.items()
    }
    notes = [_about(run, group, wanted, values)]
    found = latent_numbers(train, test, values, settings, baselines=baselines)
    try:
        names = dict(enumerate(latent_names(train, test, settings)))
    except EmptyClass as error:
        names = {}
        notes.append(f"Latents have no names: {error.what}")
    about = TextColumn(
        key="about", title="is about", beside="auroc",
        values=_measured(found),
        help=f"The class or attribute value that the activation of the latent tells best, chosen on '{train_split}'. "
        "AUROC and q are measured on held-out images: a large q means that it is about this value by chance. Empty "
        "for a latent that is active on none of the held-out images.",
    )  # fmt: skip
    return Findings(columns=found.columns, texts=[about], names=names, notes=[*notes, *found.notes])


def _measured(found: LatentNumbers) -> list[str]:
    """Return the best value of each latent; "" where it has no AUROC, so that no choice is shown untested."""
    auroc = next((column.values for column in found.columns if column.key == "auroc"), None)
    values = [value.replace("=", " = ", 1) for value in found.best_values]
    return values if auroc is None else ["" if a is None else value for a, value in zip(auroc, values, strict=True)]


def _about(run: ExploredRun, group: str | None, wanted: Sequence[str], values: Mapping[str, Sequence[str]]) -> str:
    """Return a sentence on where the choices were made, and what was not tested."""
    left = [name for name, of in values.items() if len(of) > MAX_VALUES and name != group]
    text = (
        f"AUROC, purity, probe gain and names are chosen on '{run.trained.config.data.train_split}' and measured on "
        f"'{run.split}', {'with single images as groups' if group is None else f'with the values of {group} as groups'}"
        f"; tested: {', '.join(wanted) or 'nothing, without labels'}."
    )
    return text + (f" Not tested, with more than {MAX_VALUES} values: {', '.join(left)}." if left else "")
