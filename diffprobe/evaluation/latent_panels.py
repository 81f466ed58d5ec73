"""The latents of an autoencoder on a page: their top samples, with the place of the activation, and their statistics.

Latents are selected on the training split; all displayed samples and numbers are of the test split. The selection rules
are in `analysis/`.
"""

from collections.abc import Sequence

import torch

from diffprobe.analysis.latent_selection import LatentCounts, select_latents, summarize_latent
from diffprobe.analysis.top_samples import TopSample, TopSamples
from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import unknown
from diffprobe.evaluation.load_sae_run import TrainedRun
from diffprobe.evaluation.page_features import PageFeatures, open_features
from diffprobe.evaluation.panel_settings import PanelConfig
from diffprobe.evaluation.pictures import PictureLoader, Place, Shown
from diffprobe.evaluation.probe_runs import ProbeRun
from diffprobe.evaluation.sample_codes import bound, rows_of, sample_codes
from diffprobe.features.batch import FeatureTable
from diffprobe.features.row_layout import by_place
from diffprobe.probes.sae.topk import KSAE
from diffprobe.report.pages.panels import LatentPanel, LatentSection, Picture


def latent_section(
    run: ProbeRun, settings: PanelConfig, *, name: str = "", features: PageFeatures | None = None
) -> LatentSection:
    """Select latents of an autoencoder on the training split and describe them on the test split.

    Args:
        run: a finished sae run of one autoencoder.
        settings: how many latents and samples.
        name: how the page calls the autoencoder.
        features: its features, if they are open already.
    Raises: EmptyClass if no latent is active often enough; UnknownName for an unknown group; what opening features and
        weights raises. Without images, the panels have no pictures, and the rule of the section gives the reason.
    """
    source = open_features(run) if features is None else features
    (folder,) = TrainedRun(folder=run.folder, result=run.result, config=run.config).saes().values()
    sae, classes = KSAE.from_pretrained(folder), source.classes
    cells = list(source.widths)
    n_classes = max(len(classes), 1)  # counts of unlabelled images need one class that stays empty

    seen = LatentCounts(sae.n_latents, n_classes)
    for code, rows, table in sample_codes(sae, source.table(run.config.data.train_split), cells):
        seen.update(code.values, code.indices, table.label[rows])
    choice = select_latents(seen, n=settings.n_latents, min_active=settings.min_active)

    held_out, group_by = source.table(run.config.data.test_split), settings.group(source.group)
    if group_by is not None and group_by not in held_out.attributes:
        raise unknown("group", group_by, held_out.attributes)
    groups = None if group_by is None else held_out.attributes[group_by]
    counts = LatentCounts(sae.n_latents, n_classes, groups_of=() if groups is None else choice.latents)
    top = TopSamples(sae.n_latents, settings.n_top)
    for code, rows, table in sample_codes(sae, held_out, cells):
        counts.update(code.values, code.indices, table.label[rows], None if groups is None else groups[rows])
        top.update(code.values, code.indices, [table.keys[row] for row in rows.tolist()])
    samples = top.result()
    shown = {latent: with_places(sae, held_out, cells, latent, samples[latent]) for latent in choice.latents}
    loader = PictureLoader(source, held_out, settings.picture_side)
    pictures = loader.load([one for latent in choice.latents for one in shown[latent]])
    panels = [_latent(counts, latent, shown[latent], pictures, classes, run.config.seed) for latent in choice.latents]
    rule = (
        f"{choice.rule} Chosen on {seen.n_samples:,} training samples ({choice.n_eligible:,} of {choice.n_latents:,} "
        f"latents qualify); images and numbers are those of the {counts.n_samples:,} test samples."
        + _rule_of_places(held_out, cells)
    )
    if group_by is not None:
        rule += f" Chance: as many groups ('{group_by}') drawn at random, with as many active samples in each."
    if loader.missing:
        rule += f" No pictures are shown, since the images are not at hand: {loader.missing}"
    return LatentSection(
        panels=tuple(panels), rule=rule, cell=", ".join(cells), n_classes=len(classes), name=name
    )  # fmt: skip


def _rule_of_places(table: FeatureTable, cells: Sequence[str]) -> str:
    """Return what the activation of a sample is where it has several rows; empty where it has one."""
    n_rows = sum(by_place(table.features[cell][:1], cell).shape[1:-1].numel() for cell in cells)
    if n_rows == 1:
        return ""
    kinds = "positions and draws" if len(cells) == 1 else "timesteps, positions and draws"
    text = f" A sample has {n_rows:,} rows ({kinds}); its activation is the largest of theirs."
    if any(map_size(table, cell) is not None for cell in cells):
        text += " A frame marks the position of the largest one, on the square of the image that the backbone reads."
    return text


def map_size(table: FeatureTable, cell: str) -> tuple[int, int] | None:
    """Return height and width of a cell that keeps the whole feature map; None for any other."""
    if Cell.parse(cell).pool != "none":
        return None
    height, width = by_place(table.features[cell][:1], cell).shape[-3:-1]
    return (height, width) if height * width > 1 else None


@torch.no_grad()
def with_places(
    sae: KSAE, table: FeatureTable, cells: Sequence[str], latent: int, samples: Sequence[TopSample]
) -> tuple[Shown, ...]:
    """Return the top samples of a latent with the position of its largest activation, where cells are whole maps."""
    views = [by_place(table.features[cell], cell) for cell in cells]
    sizes = [map_size(table, cell) for cell in cells]
    if not samples or all(size is None for size in sizes):
        return tuple(Shown(sample.key, sample.activation) for sample in samples)
    places: list[Place | None] = []
    for view, size in zip(views, sizes, strict=True):
        n_rows = view.shape[1:-1].numel()
        if size is None:
            places += [None] * n_rows
        else:
            places += [Place(*divmod(row % (size[0] * size[1]), size[1]), *size) for row in range(n_rows)]
    numbers = {key: number for number, key in enumerate(table.keys)}
    shown = []
    for sample in samples:
        code = bound(sae, views, cells, 1).encode(rows_of(views, torch.tensor([numbers[sample.key]]))[0])
        row = int(torch.where(code.indices == latent, code.values, -1.0).amax(1).argmax())
        shown.append(Shown(sample.key, sample.activation, places[row]))
    return tuple(shown)


def _latent(
    counts: LatentCounts,
    latent: int,
    samples: Sequence[Shown],
    pictures: dict[Shown, Picture],
    classes: Sequence[str],
    seed: int,
) -> LatentPanel:
    shown = tuple(pictures[sample] for sample in samples) if pictures else ()
    n = int(counts.n_active[latent])
    if counts.label_active[latent].sum() == 0:  # selected on the training split, not active on any labelled test sample
        return LatentPanel(
            latent=latent, pictures=shown, n_active=n, density=n / counts.n_samples,
            mean_activation=float(counts.total[latent]) / max(n, 1), max_activation=float(counts.maximum[latent]),
            label_entropy=None,
        )  # fmt: skip
    found = summarize_latent(counts, latent, seed=seed)
    return LatentPanel(
        latent=latent, pictures=shown, n_active=found.n_active, density=found.density,
        mean_activation=found.mean_activation, max_activation=found.max_activation,
        label_entropy=found.label_entropy, chance_entropy=found.chance_entropy,
        chance_entropy_sd=found.chance_entropy_sd, top_label=classes[found.top_label],
        top_label_share=found.top_label_share, n_groups=found.n_groups,
    )  # fmt: skip
