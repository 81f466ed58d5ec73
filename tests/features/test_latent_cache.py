"""The latent cache: bitwise the features of the images, encoded once, and never those of something else."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from diffprobe.core.errors import ConfigError, SchemaError, WeightsMissing
from diffprobe.features.extract import extract
from diffprobe.features.latent_cache import LatentCache, latent_manifest
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept(filled, tmp_path_factory):
    """The shared request, extracted again over a latent cache: its configs, the store, and the announced lines."""
    root = tmp_path_factory.mktemp("kept")
    features = replace(filled[2], store=str(root / "stores"), latent_cache=str(root / "latents"))
    lines = []
    store = extract(filled[0], filled[1], features, progress=False, announce=lines.append)
    return (filled[0], filled[1], features), store, lines


def again(kept, tmp_path, **changes):
    """Extract other features over the same cache into a store of its own; return the store and the announced lines."""
    backbone, data, features = kept[0]
    lines = []
    changed = replace(features, store=str(tmp_path / "again"), **changes)
    return extract(backbone, data, changed, progress=False, announce=lines.append), lines


def test_features_over_the_cache_are_bitwise_those_of_the_images(kept, filled, file_bytes):
    plain = FeatureStore.find(filled[2].store, Request(*filled).manifest)
    assert file_bytes(kept[1]) == file_bytes(plain.path)
    assert any(line.startswith("latents: 0 of 7 shards reused, 7 to encode") for line in kept[2])


def test_latents_are_what_the_backbone_encodes(kept):
    request = Request(*kept[0])
    cache = LatentCache(request)
    shard = cache.manifest.shards[0]
    from diffprobe.features.extract import shard_loader

    images = torch.cat([batch.images for batch in shard_loader(request, shard)])
    found = FeatureStore.open(cache.path, kind=None).load(shard.split).features["vae_latents"][: shard.n]
    assert found.dtype == torch.float32 and found.shape[1:] == request.plan.spec.latent_shape
    torch.testing.assert_close(found, request.extractor.encode(images), atol=1e-5, rtol=0)


def test_other_taps_timesteps_and_prompts_need_no_image_and_no_vae(kept, tmp_path, tiny_shards):
    """The tars' images are gone when the cache is read, so that decoding one would fail."""
    backbone, data, features = kept[0]
    other = replace(
        features,
        taps=("up_blocks.1",),
        timesteps=(7,),
        condition="template",
        prompt="a {colour} {group}",
        pool="max",
        draws=2,
    )
    expected = extract(backbone, data, replace(other, latent_cache=None, store=str(tmp_path / "plain")), progress=False)
    broken = tmp_path / "broken"
    shutil.copytree(tiny_shards, broken)
    for tar in broken.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))  # the index still has the old checksum
    lines = []
    store = extract(
        backbone,
        replace(data, path=str(broken)),
        replace(other, store=str(tmp_path / "cached")),
        progress=False,
        announce=lines.append,
    )
    assert any("7 of 7 shards reused, 0 to encode" in line for line in lines)
    for split in ("train", "val", "test"):
        found, plain = FeatureStore.open(store).load(split), FeatureStore.open(expected).load(split)
        assert (found.keys, found.captions) == (plain.keys, plain.captions)
        assert all(torch.equal(found.features[cell], plain.features[cell]) for cell in plain.features)


def test_without_images_no_vae_is_in_memory(kept):
    request = Request(*kept[0])
    request.load_extractor(images=False)
    assert not list(request.extractor._backbone.components()["vae"].parameters())
    with pytest.raises(WeightsMissing, match="VAE was not loaded"):
        request.extractor.encode(torch.zeros(1, 3, 32, 32))


def test_an_interrupted_cache_is_filled_up(kept, tmp_path, file_bytes):
    cache = FeatureStore.open(LatentCache(Request(*kept[0])).path, kind=None)
    before = file_bytes(cache.path)
    shutil.rmtree(cache.path / "train-0001.tar")
    _, lines = again(kept, tmp_path)
    assert any("6 of 7 shards reused, 1 to encode" in line for line in lines)
    assert file_bytes(cache.path) == before
    assert cache.verify() == []


@pytest.mark.parametrize("change", ["vae", "resolution", "dtype", "fields", "limit"])
def test_what_changes_a_latent_changes_the_folder(kept, configs, tmp_path, tiny_sd, change):
    backbone, data, features = kept[0]
    own = latent_manifest(Request(backbone, data, features)).folder
    if change == "vae":
        copy = tmp_path / "sd"
        shutil.copytree(tiny_sd, copy)
        config = copy / "vae" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "scaling_factor": 5.0}))
        backbone = replace(backbone, path=str(copy))
    elif change == "dtype":
        backbone = replace(backbone, dtype="bfloat16")
    elif change == "resolution":
        features = replace(features, resolution=16)
    else:
        value = {"fields": replace(data.fields, caption="text"), "limit": 3}[change]
        data = replace(data, **{change: value})
    assert latent_manifest(Request(backbone, data, features)).folder != own


def test_what_leaves_latents_as_they_are_leaves_the_folder(kept):
    backbone, data, features = kept[0]
    own = latent_manifest(Request(backbone, data, features)).folder
    other = replace(features, taps=("up_blocks.1",), timesteps=(3,), seed=4, draws=2, condition="caption", pool="max")
    assert latent_manifest(Request(backbone, data, other)).folder == own
    assert latent_manifest(Request(replace(backbone, random_weights=True), data, features)).folder == own
    assert latent_manifest(Request(backbone, replace(data, batch_size=9), features, ["val"])).folder == own


def test_changed_latents_are_not_used(kept, tmp_path):
    path = sorted(LatentCache(Request(*kept[0])).path.glob("val-*/vae_latents.safetensors"))[0]
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(SchemaError, match=r"modified .*\(checksum\)"):
            again(kept, tmp_path, seed=8)
    finally:
        path.write_bytes(whole)


def test_pixels_have_no_latents(tiny_shards, configs, tmp_path):
    parts = configs(
        backbone_path="pixels",
        features_taps=("pixels",),
        features_timesteps=(0,),
        features_latent_cache=str(tmp_path / "l"),
    )
    with pytest.raises(ConfigError, match="backbone 'pixels' has no VAE"):
        extract(*parts, progress=False)
    assert not (tmp_path / "l").exists()


def test_live_features_keep_none(configs):
    with pytest.raises(ConfigError, match="source=live"):
        configs(features_source="live", features_latent_cache="x")


def test_samples_left_out_stay_left_out(broken_shards, configs, tmp_path, file_bytes):
    root, bad = broken_shards
    parts = configs(data_path=str(root), data_on_error="skip")
    plain = extract(*parts, progress=False)
    cached = replace(parts[2], latent_cache=str(tmp_path / "latents"), store=str(tmp_path / "cached"))
    assert file_bytes(extract(parts[0], parts[1], cached, progress=False)) == file_bytes(plain)
    assert bad not in FeatureStore.open(plain).load("train").keys
