"""Pages of latents and images on planted latents, and thumbnails from shards."""

import io

import pytest
from PIL import Image

from diffprobe.evaluation.explore_codes import stream_codes
from diffprobe.evaluation.explore_columns import Similar
from diffprobe.evaluation.explore_pages import Thumbnails, image_pages, latent_pages
from diffprobe.evaluation.page_features import PageFeatures
from diffprobe.report.explorer.records import Name
from diffprobe.shards.annotation import Fields
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import read_shard
from tests.evaluation.planted_run import POOLED, SPATIAL, TIMESTEPS, pass_over, planted_run, planted_tables


def pages(tables, cells=POOLED, names=None, n_bars=20, n_latents=16):
    run = planted_run(tables, cells)
    found = pass_over(run, n_top=4, max_values=10)
    latents = list(latent_pages(found, Similar.of(run, 3), names or {}, n_bars=n_bars))
    thumbnails = Thumbnails(run.features, [], 96)
    return latents, list(image_pages(found, stream_codes(run.sae, tables, cells), thumbnails, n_latents=n_latents))


def test_a_planted_latent_has_its_style_as_the_first_bar():
    tables = planted_tables(60)
    latents, images = pages(tables)
    sizes = [sum(int((table.attributes["style"] == style).sum()) for table in tables) for style in range(3)]
    for latent, style in enumerate(("flat", "oil", "ink")):
        groups = {bars.group: bars.bars for bars in latents[latent].groups}
        assert set(groups) == {"class", "style"}
        first, *others = groups["style"]
        assert first.value == style and first.n_active == first.n_images == sizes[latent]
        assert first.mean_activation > 5 and all(bar.mean_activation < 1 for bar in others)
        assert {dict(images[top.image].attributes)["style"] for top in latents[latent].top} == {style}
        assert sum(latents[latent].histogram) == sum(bar.n_active for bar in groups["style"])
        assert latents[latent].histogram_end >= latents[latent].top[0].activation
    dead = latents[5]
    assert (dead.top, dead.histogram, dead.histogram_end) == ((), [], 0.0)
    assert len(pages(tables, n_bars=1)[0][0].groups[0].bars) == 1


def test_each_timestep_has_a_point_of_the_curve():
    latents, _ = pages(planted_tables(30, cells=TIMESTEPS), TIMESTEPS)
    assert [point.timestep for point in latents[0].curve] == [20, 40]
    first, second = latents[0].curve
    assert second.mean_activation > first.mean_activation + 0.5 and 0 < first.frequency <= 1
    assert all(point.mean_activation == 0 and point.frequency == 0 for point in latents[5].curve)


def test_names_are_those_that_are_given():
    name = Name(text="flat", score=2.0, auroc=0.9, q=0.01, shown=True)
    latents, _ = pages(planted_tables(12), names={1: [name]})
    assert latents[1].names == (name,) and latents[0].names == ()


@pytest.mark.parametrize("cells", [POOLED, SPATIAL])
def test_the_page_of_an_image_lists_what_fires_the_largest_first(cells):
    tables = planted_tables(24, cells=cells)
    _, images = pages(tables, cells)
    for i, image in enumerate(images):
        style = ("flat", "oil", "ink").index(dict(image.attributes)["style"])
        assert image.latents[0].latent == style
        strengths = [active.activation for active in image.latents]
        assert strengths == sorted(strengths, reverse=True) and min(strengths) > 0
        assert image.label in ("", "cat", "dog") and image.thumbnail is None
        assert image.caption == "" or f"<b>{i}</b>" in image.caption
        if cells == SPATIAL:
            assert max(image.latents[0].map.values) > 200
    assert [len(image.latents) for image in pages(tables, cells, n_latents=1)[1]] == [1] * 24


def features_of(root):
    return PageFeatures(
        widths={}, classes=(), attributes={}, table=lambda split: None, iter_tables=lambda split: iter(()),
        images=(ShardSet.load(root), Fields()),
    )  # fmt: skip


def test_thumbnails_come_from_the_shards_in_any_order(tiny_shards):
    keys = [raw.key for raw in read_shard(tiny_shards / "train-0000.tar", name="train-0000.tar")]
    thumbnails = Thumbnails(features_of(tiny_shards), ["train-0000.tar"], 16)
    found = [thumbnails.load(key, "train-0000.tar") for key in [*keys[:3], keys[1], keys[0], *keys[3:]]]
    assert thumbnails.missing == ""
    assert all(data is not None and max(Image.open(io.BytesIO(data)).size) <= 16 for data in found)
    assert found[3] == found[1] and found[4] == found[0] and found[0] != found[1]
    assert thumbnails.load("nobody", "train-0000.tar") is None


def test_without_the_shards_there_is_a_reason(tiny_shards):
    thumbnails = Thumbnails(features_of(tiny_shards), ["test-0000.tar", "gone-0000.tar"], 16)
    assert "gone-0000.tar" in thumbnails.missing and thumbnails.load("any", "test-0000.tar") is None
