"""Views of training images: stored equals live, whatever reads them; validation and test read the images."""

import shutil

import pytest
import torch

from diffprobe.config.views import ViewsConfig
from diffprobe.core.errors import ConfigError, StoreMismatch
from diffprobe.features.extract import extract
from diffprobe.features.live import LiveFeatures
from diffprobe.features.reader import FeatureStore, list_stores
from diffprobe.features.request import Request
from diffprobe.features.stored import StoredFeatures
from diffprobe.training.sae_rows import rows_of

CYCLE = ViewsConfig(n=2, flip=0.5, crop_area=(0.5, 1.0))
ALL = ViewsConfig(n=2, flip=0.5, crop_area=(0.5, 1.0), use="all")
CELL = "mid_block@t400:empty:mean"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("views")


@pytest.fixture
def viewed(configs, root):
    """Make configs with views whose stores are shared by the tests of this file."""

    def make(views=CYCLE, **changes):
        chosen = {"features_taps": ("mid_block",), "features_timesteps": (400,), "features_store": str(root)}
        return configs(**{**chosen, "features_views": views, "data_limit": 8, **changes})

    return make


@pytest.fixture
def stored(viewed):
    extract(*viewed(), progress=False)
    return lambda views=CYCLE, **changes: StoredFeatures(*viewed(views, **changes), seed=3)


@pytest.fixture
def live(viewed):
    first = LiveFeatures(*viewed(features_source="live")).request

    def make(views=CYCLE, **changes):
        source = LiveFeatures(*viewed(views, features_source="live", **changes), seed=3)
        source.request.share_extractor(first)  # the same for all views
        return source

    return make


def seen(source, epoch, **options):
    """Return key -> features of the training batches of an epoch, each sample once."""
    source.setup()
    found = {}
    for batch in source.loader("train", shuffle=True, epoch=epoch, **options):
        batch = source.on_after_batch_transfer(batch, 0) if isinstance(source, LiveFeatures) else batch
        for key, values in zip(batch.keys, batch.features[CELL], strict=True):
            assert key not in found
            found[key] = values
    return found


def assert_close(one, other, **options):
    assert one.keys() == other.keys()
    for key, values in one.items():
        torch.testing.assert_close(values, other[key], **{"atol": 1e-5, "rtol": 0, **options})


def differ(one, other):
    return all((values - other[key]).abs().max() > 1e-4 for key, values in one.items())


@pytest.mark.slow
def test_stored_views_are_those_of_live_features_and_differ_by_epoch(stored, live):
    epochs = [seen(stored(), epoch) for epoch in range(3)]
    for epoch, found in enumerate(epochs):
        assert_close(found, seen(live(), epoch))
    assert_close(epochs[0], epochs[2], atol=0)
    changed = sum(float((values - epochs[1][key]).abs().max()) > 1e-4 for key, values in epochs[0].items())
    assert changed > 0.9 * len(epochs[0])


def test_live_features_without_a_number_see_another_view_in_every_epoch(live):
    endless = live(ViewsConfig(flip=0.5, crop_area=(0.5, 1.0)))
    assert_close(seen(endless, 1), seen(live(), 1), atol=0)
    assert differ(seen(endless, 2), seen(live(), 2))


@pytest.mark.parametrize("changes", [{"data_batch_size": 3}, {"data_num_workers": 2}, {"data_shuffle_buffer": 0}])
def test_live_views_do_not_depend_on_how_images_are_loaded(live, changes):
    assert_close(seen(live(), 1), seen(live(**changes), 1))


def test_live_views_do_not_depend_on_the_processes(live):
    parts = [seen(live(), 1, rank=rank, world_size=2) for rank in range(2)]
    whole = seen(live(), 1)
    assert set(parts[0]) | set(parts[1]) == set(whole)
    for part in parts:
        assert_close(part, {key: whole[key] for key in part})


@pytest.mark.slow
def test_validation_test_and_passes_over_training_read_the_images(stored, live):
    plain = stored(ViewsConfig())
    for split in ("train", "val", "test"):
        table = plain.table(split)
        for other in (stored().table(split), live().table(split)):
            assert other.keys == table.keys
            torch.testing.assert_close(other.features[CELL], table.features[CELL], atol=1e-5, rtol=0)
        for source in (stored(), live()):
            source.setup()
            for batch in source.loader(split, shuffle=False):
                batch = source.on_after_batch_transfer(batch, 0) if isinstance(source, LiveFeatures) else batch
                expected = torch.stack([table.features[CELL][table.keys.index(key)] for key in batch.keys])
                torch.testing.assert_close(batch.features[CELL], expected, atol=1e-5, rtol=0)


def test_an_epoch_of_all_views_has_each_sample_once_per_view_with_its_label(stored):
    source, single = stored(ALL), [seen(stored(), view) for view in range(2)]
    table = source.table("train")
    batches = list(source.loader("train", shuffle=True, epoch=4))
    keys = [key for batch in batches for key in batch.keys]
    assert sorted(keys) == sorted(table.keys * 2) and source.views_per_epoch == 2
    labels = dict(zip(table.keys, table.label.tolist(), strict=True))
    numbers = {key: [] for key in labels}
    for batch in batches:
        for key, label, values in zip(batch.keys, batch.label.tolist(), batch.features[CELL], strict=True):
            assert label == labels[key]
            numbers[key].append(next(view for view in range(2) if torch.equal(single[view][key], values)))
    two = [sorted(found) for found in numbers.values()]
    assert all(
        found == [0, 1] or torch.equal(single[0][key], single[1][key]) for key, found in zip(numbers, two, strict=True)
    )


@pytest.mark.parametrize("views", [CYCLE, ALL], ids=["cycle", "all"])
@pytest.mark.parametrize("mode", ["memory", "mapped"])
def test_single_rows_are_those_of_whole_samples(stored, views, mode):
    samples, rows = stored(views, features_placement=mode), stored(views, features_shuffle="rows")
    for epoch in range(3):
        pairs = zip(*(source.loader("train", shuffle=True, epoch=epoch) for source in (samples, rows)), strict=True)
        for one, other in pairs:
            assert rows_of(one, [CELL]).x.equal(rows_of(other, [CELL]).x) and len(one) == len(other)
            assert one.keys == [other.keys[i] for i in rows_of(other, [CELL]).sample.tolist()]


def test_classes_are_balanced_over_the_samples_of_a_view(viewed, stored):
    stored()
    source = StoredFeatures(*viewed(), seed=3, balance="label")
    batches = list(source.loader("train", shuffle=True, epoch=1))
    counts = torch.cat([batch.label for batch in batches]).bincount()
    assert int(counts.max() - counts[counts > 0].min()) <= 1
    view = seen(stored(), 1)
    for batch in batches:
        for key, values in zip(batch.keys, batch.features[CELL], strict=True):
            assert torch.equal(values, view[key])


@pytest.mark.parametrize("kind", ["stored", "live"])
def test_an_interrupted_epoch_goes_on_with_the_same_view(kind, stored, live):
    def batches(source, state=None):
        source.setup()
        loader = source.loader("train", shuffle=True, epoch=1)
        if state:
            loader.load_state_dict(state)
        for batch in loader:
            yield source.on_after_batch_transfer(batch, 0) if kind == "live" else batch

    make = stored if kind == "stored" else live
    whole, rest = list(batches(make())), list(batches(make(), {"epoch": 1, "batches": 1}))
    assert [batch.keys for batch in rest] == [batch.keys for batch in whole[1:]]
    for one, other in zip(rest, whole[1:], strict=True):
        torch.testing.assert_close(one.features[CELL], other.features[CELL], atol=1e-6, rtol=0)


@pytest.mark.slow
def test_extraction_goes_on_after_an_interruption_and_in_parts(viewed, tmp_path, file_bytes):
    def files(folder):
        return {name: data for name, data in file_bytes(folder).items() if not name.endswith("manifest.json")}

    whole, parts, again = (str(tmp_path / name) for name in ("whole", "parts", "again"))
    extract(*viewed(features_store=whole), progress=False)
    for part in (1, 0):
        extract(*viewed(features_store=parts), process=(part, 2), progress=False)
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    shutil.copytree(whole, again)
    view = Request(*viewed()).of_views()[1].manifest.folder
    shard = next(path for path in (tmp_path / "again" / view).iterdir() if path.is_dir())
    shutil.rmtree(shard)
    lines: list[str] = []
    extract(*viewed(features_store=again), progress=False, announce=lines.append)
    assert files(tmp_path / "whole") == files(tmp_path / "again")
    assert any("to write" in line for line in lines)
    lines.clear()
    extract(*viewed(features_store=again), progress=False, announce=lines.append)
    assert len(lines) == 1 and "2 stores of views" in lines[0]


def test_without_views_a_manifest_is_what_it_was_and_with_them_its_store_is_shared(viewed):
    plain, views = Request(*viewed(ViewsConfig())), Request(*viewed())
    assert set(plain.manifest.data) == {"shard_set", "fields", "on_error"} and plain.of_views() == []
    assert plain.manifest.digest == views.manifest.digest
    first, second = views.of_views()
    assert first.manifest.splits == ("train",)
    assert first.manifest.data["view"] == {"rules": 1, "number": 0, "flip": 0.5, "crop_area": [0.5, 1.0]}
    assert len({one.manifest.digest for one in (views, first, second)}) == 3
    more = Request(*viewed(ViewsConfig(n=3, flip=0.5, crop_area=(0.5, 1.0), use="all"))).of_views()
    assert [one.manifest.digest for one in more[:2]] == [first.manifest.digest, second.manifest.digest]
    assert Request(*viewed(), splits=("val",)).of_views() == []


def test_a_store_without_the_views_is_refused_with_the_command_that_makes_them(stored):
    with pytest.raises(StoreMismatch) as caught:
        stored(ViewsConfig(n=2, flip=0.25)).setup()
    assert "data.view" in str(caught.value) and "features.views.flip=0.25" in str(caught.value)


@pytest.mark.slow
def test_views_of_cached_latents_are_those_of_the_images(stored, viewed, tmp_path):
    cached = viewed(features_store=str(tmp_path / "s"), features_latent_cache=str(tmp_path / "l"))
    for _ in range(2):
        extract(*cached, progress=False)
        for epoch in range(2):
            assert_close(seen(StoredFeatures(*cached, seed=3), epoch), seen(stored(), epoch), atol=0)
        shutil.rmtree(tmp_path / "s")
    assert len(list(list_stores(tmp_path / "l", kind=None))) == 3


@pytest.mark.slow
def test_noise_is_that_of_the_image_unless_it_is_drawn_anew(viewed, live, stored):
    same = live(ViewsConfig(flip=1.0))
    redrawn = live(ViewsConfig(flip=1.0, redraw_noise=True))
    alone = live(ViewsConfig(redraw_noise=True))
    assert differ(seen(same, 0), seen(redrawn, 0)) and differ(seen(redrawn, 0), seen(redrawn, 1))
    assert_close(seen(same, 0), seen(same, 1))  # the mirror image is always the same
    table = stored().table("train")
    plain = dict(zip(table.keys, table.features[CELL], strict=True))
    assert differ(seen(alone, 0), plain)
    parts = viewed(ViewsConfig(n=1, redraw_noise=True))
    extract(*parts, progress=False)
    assert_close(seen(StoredFeatures(*parts), 0), seen(alone, 0))


def test_the_views_of_raw_pixels_are_those_of_the_images(configs, tmp_path):
    parts = configs(
        backbone_path="pixels", features_taps=("pixels",), features_timesteps=(0,), features_resolution=16,
        features_pool="none", features_views=ViewsConfig(n=1, flip=1.0), features_store=str(tmp_path / "p"),
    )  # fmt: skip
    extract(*parts, progress=False)
    source = StoredFeatures(*parts)
    (cell,) = source.widths
    table = source.table("train")
    images = dict(zip(table.keys, table.features[cell], strict=True))
    for batch in source.loader("train", shuffle=True):
        for key, values in zip(batch.keys, batch.features[cell], strict=True):
            assert torch.equal(values.view(3, 16, 16).flip(-1), images[key].view(3, 16, 16))


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"backbone_part": "text_encoder", "features_taps": ("text",), "features_timesteps": (0,),
          "features_condition": "caption"}, ["part=text_encoder", "no image"]),
        ({"backbone_clean_input": True, "features_views": ViewsConfig(n=1, redraw_noise=True)}, ["redraw_noise=true"]),
        ({"features_views": ViewsConfig(n=1, padding=40)}, ["padding=40", "32 px"]),
    ],
)  # fmt: skip
def test_views_without_effect_on_what_is_read_are_refused(viewed, changes, facts):
    with pytest.raises(ConfigError) as caught:
        _ = Request(*viewed(**changes)).plan
    assert all(fact in str(caught.value) for fact in facts)


@pytest.mark.slow
def test_a_validation_split_that_is_cut_out_is_not_trained_on(viewed, tmp_path):
    parts = viewed(features_store=str(tmp_path / "s"), data_val_fraction=0.3, data_val_split="held")
    extract(*parts, progress=False)
    source = StoredFeatures(*parts, seed=3)
    train, held = set(source.table("train").keys), set(source.table("held").keys)
    assert set(seen(source, 1)) == train and not train & held
    assert FeatureStore.open(next((tmp_path / "s").iterdir())).manifest.splits[0] == "train"
