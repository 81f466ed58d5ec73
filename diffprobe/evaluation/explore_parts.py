"""Mask IoU and pointing game of the explorer's latents, where features have maps and images have masks."""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.part_scores import MIN_IMAGES, PartScores, part_scores
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.analysis.latents.place_codes import MAX_MAPS, PlaceCodes, PlaceCollector
from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import DiffprobeError
from diffprobe.core.groups import Groups
from diffprobe.evaluation.explore import Findings
from diffprobe.evaluation.explore_codes import ImageCodes, stream_codes
from diffprobe.evaluation.explore_runs import ExploredRun
from diffprobe.evaluation.part_masks import PartMasks, read_masks
from diffprobe.evaluation.probe_runs import reason
from diffprobe.report.explorer.records import Column, TextColumn

Bools = NDArray[np.bool_]
ReadMasks = Callable[[str, tuple[str, ...], tuple[int, int]], PartMasks]
"""Takes a split, keys and the size of the maps; returns the masks of these images."""
_MISSING = "Mask IoU and pointing game are missing: "


def part_numbers(
    run: ExploredRun, settings: PermutationSettings | None = None, *, max_images: int = MAX_MAPS,
    read: ReadMasks | None = None,
) -> Findings:  # fmt: skip
    """Return the best part of each latent with its numbers, chosen on the training split and measured on the shown one.

    Args:
        run: the run.
        settings: permutations; None for the defaults of `part_scores`.
        max_images: images of each split that are compared with their masks, drawn by a hash of their keys.
        read: reads masks; None for those of the shards.

    Returns: nothing but a note with the reason, where features are pooled, the images are not at hand or have no masks.
    """
    train_split = run.trained.config.data.train_split
    why = _why_not(run, train_split, read)
    if why:
        return Findings(notes=[_MISSING + why])
    groups: dict[str, int] = {}
    size: tuple[int, int] | None = None
    codes = []
    for split in (train_split, run.split):
        tables = run.tables() if split == run.split else run.features.iter_tables(split)
        part, size = _places(run, stream_codes(run.sae, tables, run.cells), groups, max_images)
        codes.append(part)
        if size is None:
            return Findings(notes=[f"{_MISSING}the map of {', '.join(run.cells)} has one place."])
    assert size is not None
    read = read or _reader(run)
    try:
        masks = [
            read(split, one.keys, size) for split, one in zip((train_split, run.split), codes, strict=True)
        ]  # fmt: skip
    except (DiffprobeError, OSError) as error:
        return Findings(notes=[_MISSING + reason(error)])
    if min(len(found.covered) for found in masks) < MIN_IMAGES:
        return Findings(
            notes=[f"{_MISSING}the images have no masks: no mask.png, no transparency, no plain background."]
        )
    names = tuple(name for name in masks[0].names if name in masks[1].names)
    (train, of_train), (test, of_test) = (_masked(one, found, names) for one, found in zip(codes, masks, strict=True))
    of_groups = Groups.of_values(np.array([groups[key] for key in test.keys], dtype=np.int64))
    scores = part_scores(train, of_train, test, of_test, of_groups, settings)
    note = (
        f"Mask IoU and pointing game are of {len(test.keys):,} images of '{run.split}'; part and threshold are chosen "
        f"on {len(train.keys):,} of '{train_split}'. Parts: {', '.join(names)}, from {masks[1].source}."
    )
    without = sum(len(one.keys) - len(found.covered) for one, found in zip(codes, masks, strict=True))
    if without:
        note += f" {without:,} images have no mask and are left out."
    return Findings(columns=_columns(scores), texts=[_text(scores, names, train_split)], notes=[note])


def _why_not(run: ExploredRun, train_split: str, read: ReadMasks | None) -> str:
    if Cell.parse(run.cells[0]).pool != "none":
        return f"the features are pooled ({', '.join(run.cells)}), so latents have no maps (features.pool=none has)."
    if run.split == train_split:
        return f"'{run.split}' is the split that parts are chosen on."
    if run.features.images is None and read is None:
        return f"the images are not at hand: {run.features.missing}"
    return ""


def _reader(run: ExploredRun) -> ReadMasks:
    assert run.features.images is not None
    shard_set, fields = run.features.images
    return lambda split, keys, size: read_masks(
        shard_set, split, keys, size, fields=fields, caps=run.trained.config.data.caps
    )


def _places(
    run: ExploredRun, stream: Iterable[ImageCodes], groups: dict[str, int], max_images: int
) -> tuple[PlaceCodes, tuple[int, int] | None]:
    """Return the codes of a sample of images and the size of their maps; the group of each goes into `groups`."""
    collector, size, seen = None, None, list[str]()
    for codes in stream:
        size = codes.rows.map_size
        if size is None:
            break
        n, width = len(codes.chosen), codes.row_code.values.shape[1]
        if collector is None:
            collector = PlaceCollector(run.sae.n_latents, size[0] * size[1], max_images)
        values, indices = (part.reshape(n, -1, width) for part in codes.row_code)
        collector.update(values, indices, codes.keys)
        of_group = [-1] * n if run.features.group is None else codes.labels(run.features.group).tolist()
        groups.update(zip(codes.keys, of_group, strict=True))
        seen += codes.keys
        if len(seen) > 4 * max_images:  # forget the groups of images that are not in the sample
            kept = collector.keys()
            for key in [key for key in seen if key not in kept]:
                groups.pop(key, None)
            seen = list(kept)
    if collector is None:
        return PlaceCollector(run.sae.n_latents, 1, max_images).result(), size
    return collector.result(), size


def _masked(codes: PlaceCodes, masks: PartMasks, names: tuple[str, ...]) -> tuple[PlaceCodes, Bools]:
    """Return the codes of the images with masks, and these, (parts, images, places)."""
    kept = codes.take(np.array([key in masks.covered for key in codes.keys], dtype=bool))
    chosen = [masks.names.index(name) for name in names]
    return kept, np.stack([masks.covered[key][chosen] for key in kept.keys], axis=1)


def _text(scores: PartScores, names: tuple[str, ...], train_split: str) -> TextColumn:
    return TextColumn(
        key="part", title="best part", beside="mask_iou",
        values=["" if i < 0 else names[i] for i in scores.part.tolist()],
        help=f"The part whose mask agrees most with where the latent is active, chosen on '{train_split}' by how far "
        "the IoU exceeds that with masks of other images. A large q means that it is about this part by chance.",
    )  # fmt: skip


def _columns(scores: PartScores) -> list[Column]:
    held_out = "on held-out images, for the part and the threshold that were chosen on train."
    permuted = "Benjamini-Hochberg over all latents, against masks of other groups of images."
    found = [
        ("mask_iou", "mask IoU", scores.iou, f"Intersection over union of the places above a threshold with those of "
         f"the part, {held_out} Control: the same with masks of other images, mean over latents."),
        ("mask_iou_gain", "mask IoU gain", scores.iou - scores.chance_iou, "Mask IoU less the IoU of the same "
         "activations with masks of other images. A large part has a large IoU by chance."),
        ("mask_iou_q", "q of mask IoU", scores.iou_q, permuted),
        ("pointing", "pointing", scores.pointing, "Pointing game: share of the held-out images with a place above the "
         "threshold where the largest activation is on the part. Control: masks of other images, mean over latents."),
        ("pointing_q", "q of pointing", scores.pointing_q, permuted),
    ]  # fmt: skip
    chance = {"mask_iou": scores.chance_iou, "pointing": scores.chance_pointing}
    return [
        Column(
            key=key, title=title, help=text,
            kind="p" if key.endswith("_q") else "share" if key == "pointing" else "number",
            values=[None if np.isnan(value) else float(value) for value in values],
            controls=(
                (("masks of other images", float(np.nanmean(chance[key]))),)
                if key in chance and not np.isnan(chance[key]).all() else ()
            ),
        )
        for key, title, values, text in found
    ]  # fmt: skip
