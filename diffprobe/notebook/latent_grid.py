"""A figure of the images on which the latents of an autoencoder are most active, a row for each latent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diffprobe.analysis.latent_selection import LatentCounts, select_latents
from diffprobe.analysis.top_samples import TopSample, TopSamples
from diffprobe.core.errors import ConfigError, ShardError, unknown
from diffprobe.core.terminal import one_line
from diffprobe.evaluation.latent_panels import with_places
from diffprobe.evaluation.load_sae_run import TrainedRun
from diffprobe.evaluation.page_features import open_features
from diffprobe.evaluation.pictures import framed
from diffprobe.evaluation.probe_runs import ProbeRun
from diffprobe.evaluation.sample_codes import sample_codes
from diffprobe.features.fetch_images import fetch_images
from diffprobe.probes.sae.topk import KSAE
from diffprobe.report.figure import figure_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from diffprobe.evaluation.pictures import Shown
    from diffprobe.features.batch import FeatureTable

N_SELECTED = 6
"""Latents that are selected where none are named."""
_SIDE = 1.0
"""Inches of an image."""


def draw_latents(
    run: ProbeRun,
    latents: Sequence[int] | int | None,
    *,
    n_top: int,
    split: str | None,
    group_by: str | None,
    min_active: int,
) -> "Figure":
    """Draw the top images of latents. See `FinishedRun.latent_grid`."""
    if n_top < 1:
        raise ConfigError(f"n_top={n_top} is out of range: at least 1.")
    if min_active < 1:
        raise ConfigError(f"min_active={min_active} is out of range: at least 1.")
    source = open_features(run)
    if source.images is None:
        raise ShardError(
            "the images of this run are not at hand.", source.missing, fix="open_run(FOLDER, data_path=SHARDS)"
        )
    shard_set, fields = source.images
    (folder,) = TrainedRun(folder=run.folder, result=run.result, config=run.config).saes().values()
    sae, cells = KSAE.from_pretrained(folder).eval(), list(source.widths)
    if group_by is not None and group_by not in source.attributes:
        raise unknown("attribute of these images", group_by, source.attributes)
    shown_split = run.config.data.test_split if split is None else split
    if shown_split not in shard_set.splits():
        raise unknown("split of these images", shown_split, shard_set.splits())
    chosen = _checked([latents] if isinstance(latents, int) else latents, sae.n_latents)
    if chosen is None:
        counts = LatentCounts(sae.n_latents, max(len(source.classes), 1))
        for code, rows, part in sample_codes(sae, source.table(run.config.data.train_split), cells):
            counts.update(code.values, code.indices, part.label[rows])
        chosen = list(select_latents(counts, n=N_SELECTED, min_active=min_active).latents)
    table = source.table(shown_split)
    active = np.zeros(sae.n_latents, dtype=np.int64)
    top = TopSamples(sae.n_latents, len(table) if group_by else n_top)
    for code, rows, _ in sample_codes(sae, table, cells):
        top.update(code.values, code.indices, [table.keys[row] for row in rows.tolist()])
        np.add.at(active, code.indices[code.values > 0].numpy(), 1)
    found = top.result()
    samples = {latent: _one_per_group(found[latent], table, group_by)[:n_top] for latent in chosen}
    shown = {latent: with_places(sae, table, cells, latent, samples[latent]) for latent in chosen}
    images = fetch_images(
        shard_set,
        dict.fromkeys(one.key for latent in chosen for one in shown[latent]),
        shards=dict(zip(table.keys, table.shards, strict=True)),
        fields=fields,
    )
    title = f"{', '.join(cells)}, split {shown_split} ({len(table):,} images)"
    labels = {latent: f"latent {latent}\nactive on {int(active[latent]):,}" for latent in chosen}
    return _draw(one_line(title), labels, shown, images)


def _checked(latents: Sequence[int] | None, n_latents: int) -> list[int] | None:
    if latents is None:
        return None
    chosen = list(latents)
    if not chosen:
        raise ConfigError("latents is empty; name at least one, or leave it out.")
    wrong = [latent for latent in chosen if not 0 <= latent < n_latents]
    if wrong:
        raise ConfigError(f"latents {', '.join(map(str, wrong))} are out of range: 0 to {n_latents - 1}.")
    return list(dict.fromkeys(chosen))


def _one_per_group(samples: Sequence[TopSample], table: "FeatureTable", group_by: str | None) -> list[TopSample]:
    """Keep the most active sample of each value of an attribute; samples without a value are all kept."""
    if group_by is None:
        return list(samples)
    values = dict(zip(table.keys, table.attributes[group_by].tolist(), strict=True))
    seen: set[int] = set()
    kept = []
    for sample in samples:
        value = values[sample.key]
        if value < 0 or value not in seen:
            kept.append(sample)
            seen.add(value)
    return kept


def _draw(
    title: str,
    labels: dict[int, str],
    shown: "dict[int, tuple[Shown, ...]]",
    images: "dict[str, Image.Image]",
) -> "Figure":
    """Draw a row for each latent: its number, and its images with their activation. No sample: the row says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    n_rows, n_columns = len(labels), max(4, *(len(row) for row in shown.values()))  # 4: as wide as the title
    left, above, width, height = 1.4, 0.45, _SIDE * n_columns, 1.25 * _SIDE * n_rows
    total = (left + width, above + height)
    figure = figure_class()(figsize=total)
    FigureCanvasAgg(figure)
    figure.text(0.1 / total[0], 1 - 0.2 / total[1], title, va="center", fontsize=10, parse_math=False)
    for i, (latent, label) in enumerate(labels.items()):
        bottom = (height - 1.25 * _SIDE * (i + 1)) / total[1]
        middle = bottom + 0.625 * _SIDE / total[1]
        figure.text(0.1 / total[0], middle, label, va="center", fontsize=9, parse_math=False)
        if not shown[latent]:
            figure.text(left / total[0], middle, "not active on any of these images", va="center", fontsize=9)
        for j, one in enumerate(shown[latent]):
            box = ((left + j * _SIDE + 0.03) / total[0], bottom + 0.03 / total[1])
            axes = figure.add_axes((*box, 0.94 * _SIDE / total[0], 0.94 * _SIDE / total[1]))
            image = images[one.key].convert("RGB")
            axes.imshow(image if one.place is None else framed(image.copy(), one.place))
            axes.set_axis_off()
            axes.set_title(f"{one.value:.3g}", fontsize=8, pad=2)
    return figure
