"""Mask IoU and pointing game of planted latents; what is said where there are none."""

import dataclasses
import tracemalloc

import numpy as np
import torch

from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.evaluation.explore_parts import part_numbers
from diffprobe.evaluation.part_masks import PartMasks
from diffprobe.features.batch import concatenate
from tests.evaluation.planted_run import POOLED, SPATIAL, planted_run, planted_tables

SETTINGS = PermutationSettings(most=99)


def two_splits(cells=SPATIAL, n=60):
    """A planted run with other images in train and test; the planted place of image i is i % 6."""
    tables = {split: planted_tables(n, cells=cells, seed=seed) for seed, split in enumerate(("train", "test"))}
    run = planted_run(tables["test"], cells)
    features = dataclasses.replace(
        run.features, table=lambda split: concatenate(tables[split]), iter_tables=lambda split: iter(tables[split])
    )
    return dataclasses.replace(run, features=features), tables


def masks_of(tables, *, shuffled=False):
    """The mask `flat` is the planted place of images of style flat, `frame` any place but the planted one."""

    def read(split, keys, size):
        assert size == (2, 3)
        table = concatenate(tables[split])
        order = torch.randperm(len(table.keys), generator=torch.Generator().manual_seed(5)).tolist()
        rows = {key: order[i] if shuffled else i for i, key in enumerate(table.keys)}
        covered = {}
        for key in keys:
            places = np.arange(6) == rows[key] % 6
            covered[key] = np.stack([places & bool(table.attributes["style"][rows[key]] == 0), ~places])
        return PartMasks(names=("flat", "frame"), covered=covered, source="a test")

    return read


def columns_of(found):
    return {column.key: column for column in found.columns}


def test_a_latent_has_the_part_where_it_is_active():
    run, tables = two_splits()
    found = part_numbers(run, SETTINGS, read=masks_of(tables))
    columns, (text,) = columns_of(found), found.texts
    assert text.values[0] == "flat" and text.beside == "mask_iou" and text.values[5] == ""
    assert columns["mask_iou"].values[0] > 0.9 and columns["mask_iou_q"].values[0] < 0.01
    assert columns["mask_iou_gain"].values[0] > 0.5
    assert columns["pointing"].values[0] > 0.9 and columns["pointing_q"].values[0] < 0.01
    assert columns["mask_iou"].values[5] is None
    assert 0 < dict(columns["mask_iou"].controls)["masks of other images"] < 0.5
    assert "60 images of 'test'" in found.notes[0] and "a test" in found.notes[0]


def test_masks_of_other_images_find_nothing():
    run, tables = two_splits()
    found = columns_of(part_numbers(run, SETTINGS, read=masks_of(tables, shuffled=True)))
    assert all(q is None or q > 0.05 for key in ("mask_iou_q", "pointing_q") for q in found[key].values)


def test_a_sample_of_images_is_bounded_and_groups_count():
    run, tables = two_splits()
    found = part_numbers(run, SETTINGS, max_images=12, read=masks_of(tables))
    assert "12 images of 'test'" in found.notes[0] and "12 of 'train'" in found.notes[0]
    for parts in tables.values():
        for table in parts:
            table.attributes["drawing"] = torch.tensor([int(key[-3:]) // 30 for key in table.keys])
    grouped = dataclasses.replace(run, features=dataclasses.replace(run.features, group="drawing"))
    columns = columns_of(part_numbers(grouped, SETTINGS, read=masks_of(tables)))
    assert columns["mask_iou_q"].values[0] > 0.1  # two groups: they can be exchanged in one way


def test_without_maps_masks_or_images_there_is_a_reason():
    run, tables = two_splits(POOLED)
    found = part_numbers(run, read=masks_of(tables))
    assert not found.columns and "features are pooled" in found.notes[0] and "features.pool=none" in found.notes[0]
    run, tables = two_splits()
    assert "they were moved" in part_numbers(run).notes[0]
    none = PartMasks(names=("flat",), covered={}, source="")
    assert "no masks" in part_numbers(run, read=lambda split, keys, size: none).notes[0]
    same = dataclasses.replace(run, split="train")
    assert "'train' is the split" in part_numbers(same, read=masks_of(tables)).notes[0]
    assert not part_numbers(same, read=masks_of(tables)).texts


def test_memory_does_not_grow_with_images():
    """The same images again and again under other keys: a sample of 16 is measured."""
    run, tables = two_splits()

    def read(split, keys, size):
        places = {key: np.arange(6) == int(key[-2:]) % 6 for key in keys}
        return PartMasks(names=("place",), covered={key: place[None] for key, place in places.items()}, source="a test")

    def peak(n):
        def parts(split):
            for i in range(n):
                part = concatenate(tables[split])
                part.keys = [f"{i:06d}-{j:02d}" for j in range(len(part))]
                yield part

        features = dataclasses.replace(run.features, iter_tables=parts)
        tracemalloc.start()
        found = part_numbers(dataclasses.replace(run, features=features), SETTINGS, max_images=16, read=read)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.columns
        return used

    peak(1)  # imports and caches
    growth = (peak(40) - peak(10)) / (30 * 60)
    assert growth < 16  # bytes per image; its key alone has more than 50
