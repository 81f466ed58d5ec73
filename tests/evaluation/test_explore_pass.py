"""The pass over images: planted latents, two parts against one, and memory at two sizes."""

import tracemalloc
import weakref

import numpy as np
import pytest
import torch

from diffprobe.core.errors import StoreIncomplete
from diffprobe.evaluation.explore_codes import stream_codes
from diffprobe.evaluation.explore_pass import LatentPass, locate, shown_labels
from tests.evaluation.planted_run import (
    CLASSES,
    POOLED,
    SPATIAL,
    STYLES,
    TIMESTEPS,
    pass_over,
    planted_run,
    planted_tables,
)

LABELS = {"class": CLASSES, "style": STYLES}


def test_the_top_images_of_a_planted_latent_are_of_its_style():
    tables = planted_tables(60)
    found = pass_over(planted_run(tables), n_top=5, max_values=10)
    style = torch.cat([table.attributes["style"] for table in tables])
    x = torch.cat([table.features[POOLED[0]] for table in tables])
    for latent in range(3):
        assert [image.image for image in found.top[latent]] == x[:, latent].argsort(descending=True)[:5].tolist()
        assert (style[[image.image for image in found.top[latent]]] == latent).all()
        assert found.top_labels("style", 5)[latent].tolist() == [latent] * 5
    assert found.top[5] == [] and found.sums.n_active[5] == 0


def parts_of(tables, cells, parts):
    run = planted_run(tables, cells)
    found = []
    for part in parts:
        one = LatentPass(run.sae.n_latents, LABELS, [20, 40][: len(cells)], 4)
        for codes in stream_codes(run.sae, part, cells):
            one.update(codes)
        found.append(one)
    for other in found[1:]:
        found[0].merge(other)
    return found[0], locate(found[0], stream_codes(run.sae, tables, cells))


@pytest.mark.parametrize("cells", [POOLED, TIMESTEPS, SPATIAL])
def test_two_processes_find_what_one_finds(cells):
    tables = planted_tables(70, cells=cells, n_shards=4)
    one, top = parts_of(tables, cells, [tables])
    two, top_of_two = parts_of(tables, cells, [tables[2:], tables[:2]])
    assert top == top_of_two
    for name in ("n_active", "total", "maximum", "n_rows", "row_active", "row_total"):
        np.testing.assert_array_equal(getattr(one.sums, name), getattr(two.sums, name))


def test_maps_are_of_the_top_images_with_255_for_the_largest():
    tables = planted_tables(40, cells=SPATIAL)
    found = pass_over(planted_run(tables, SPATIAL), n_top=3, max_values=10)
    for latent in range(3):
        for place, image in enumerate(found.top[latent]):
            values = np.frombuffer(image.map.values, dtype=np.uint8)
            of_shard = image.image  # the planted place is that of the image in its whole split
            assert (image.map.height, image.map.width) == (2, 3) and values.argmax() == of_shard % 6
            assert values.max() == 255 if place == 0 else 200 < values.max() <= 255


def test_labels_with_too_many_values_are_left_out():
    run = planted_run(planted_tables(10))
    assert shown_labels(run, 2) == ({"class": CLASSES}, {"style": 3})


def test_a_split_without_images_is_named():
    with pytest.raises(StoreIncomplete, match="'test'"):
        pass_over(planted_run([]), n_top=3, max_values=10)


@pytest.mark.slow
def test_memory_does_not_grow_with_images():
    def peak(n):
        shard = planted_tables(64, cells=SPATIAL, n_shards=1)[0]
        made = []

        def parts():
            for i in range(n // 64):  # made when it is read, as a mapped shard is
                part = shard.select(torch.arange(64))
                part.keys = [f"{i:06d}-{j}" for j in range(64)]
                made.append(weakref.ref(part))
                assert sum(table() is not None for table in made) <= 2
                yield part
                made[:] = [table for table in made if table() is not None]

        run = planted_run([], SPATIAL)
        object.__setattr__(run.features, "iter_tables", lambda split: parts())
        tracemalloc.start()
        found = pass_over(run, n_top=4, max_values=10)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.sums.n_images == n
        return used

    peak(64)  # imports and caches
    growth = (peak(6400) - peak(640)) / (6400 - 640)
    assert growth < 16  # bytes per image; its key alone has more than 50
