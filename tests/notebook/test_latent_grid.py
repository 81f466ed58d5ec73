"""The grid of top images: the images of the largest activations, in order, and what is refused."""

import numpy as np
import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.features.fetch_images import fetch_images

pytestmark = pytest.mark.slow


def pictures(figure):
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_the_images_are_those_of_the_largest_activations(sae, study):
    store = study.extract()
    table = store.load("test", ["mid_block@t20:empty:mean"])
    code = sae.probe().encode(table.features["mid_block@t20:empty:mean"])
    activation = torch.zeros(len(table), 16).scatter_add_(1, code.indices, code.values)
    latent = int((activation > 0).sum(0).argmax())
    order = activation[:, latent].argsort(descending=True)[:3].tolist()
    figure = sae.latent_grid(latent, n_top=3)
    keys = [table.keys[i] for i in order if activation[i, latent] > 0]
    images = fetch_images(study.shard_set, keys)
    assert [array.tobytes() for array in pictures(figure)] == [np.asarray(images[key]).tobytes() for key in keys]
    assert [axes.get_title() for axes in figure.axes] == [f"{activation[i, latent]:.3g}" for i in order][: len(keys)]
    texts = [text.get_text() for text in figure.texts]
    assert f"latent {latent}\nactive on {int((activation[:, latent] > 0).sum())}" in texts
    assert any("split test" in text for text in texts)


def test_latents_are_selected_on_train_if_none_are_named(sae):
    figure = sae.latent_grid(split="val")
    assert 1 <= sum(text.get_text().startswith("latent ") for text in figure.texts) <= 6
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_latent_that_is_never_active_says_so(sae, study):
    counts = torch.zeros(16)
    for split in ("test",):
        x, _ = study.extract().arrays("mid_block@t20", split=split)
        code = sae.probe().encode(x)
        counts += torch.bincount(code.indices[code.values > 0], minlength=16)
    silent = (counts == 0).nonzero().squeeze(1).tolist()
    if not silent:
        pytest.skip("every latent is active")
    figure = sae.latent_grid([silent[0]])
    assert "not active on any of these images" in [text.get_text() for text in figure.texts] and not figure.axes


def test_whole_maps_have_the_place_framed(study):
    settings = [
        "probe.cell=mid_block@t20", "probe.params.n_latents=16", "probe.params.k=4", "features.pool=none",
        "features.taps=[mid_block]",
    ]  # fmt: skip
    run = study.train("topk", settings)
    assert any((picture == (0xD6, 0x00, 0x6C)).all(-1).any() for picture in pictures(run.latent_grid(range(16))))


@pytest.mark.parametrize(
    ("arguments", "error", "fact"),
    [
        ({"latents": 16}, ConfigError, "16 .*0 to 15"),
        ({"latents": [0, -1]}, ConfigError, "-1"),
        ({"latents": []}, ConfigError, "empty"),
        ({"latents": 0, "n_top": 0}, ConfigError, "n_top=0"),
        ({"min_active": 0}, ConfigError, "min_active=0"),
        ({"latents": 0, "split": "tset"}, UnknownName, "test"),
        ({"latents": 0, "group_by": "animal"}, UnknownName, "animal"),
    ],
)
def test_what_cannot_be_drawn_is_named(sae, arguments, error, fact):
    with pytest.raises(error, match=fact):
        sae.latent_grid(**arguments)


def test_one_image_per_value_of_an_attribute(tiny_shards, tiny_sd, tmp_path):
    from diffprobe import Study

    settings = [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", "features.taps=[mid_block]", "features.timesteps=[20]",
        f"output={tmp_path}", f"features.store={tmp_path}", "data.num_workers=0", "trainer.max_epochs=1", "logger=none",
    ]  # fmt: skip
    run = Study(tiny_shards, settings, quiet=True).train("topk", ["probe.params.n_latents=4", "probe.params.k=4"])
    everything = run.latent_grid(range(4), split="train", n_top=20)
    grouped = run.latent_grid(range(4), split="train", n_top=20, group_by="colour")
    assert 0 < len(grouped.axes) <= 12 < len(everything.axes)
    with pytest.raises(EmptyClass, match="10 or more of 6 samples"):
        Study(tiny_shards, [*settings, "data.limit=6"], quiet=True).train(
            "topk", ["probe.params.n_latents=4", "probe.params.k=4"]
        ).latent_grid()


def test_images_that_were_moved_are_found_where_they_are_now(study, sae, tmp_path):
    import shutil

    from diffprobe.core.errors import ShardError
    from diffprobe.notebook.finished_run import open_run

    there = tmp_path / "moved"
    shutil.copytree(study.shard_set.root, there)
    counted = len(open_run(sae.folder, data_path=there).latent_grid(0).axes)
    assert counted == len(sae.latent_grid(0).axes)
    with pytest.raises(ShardError, match="data_path=SHARDS"):
        open_run(sae.folder, data_path=tmp_path / "nowhere").latent_grid(0)
