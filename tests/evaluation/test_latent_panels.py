"""Latents of autoencoders: the largest activation of a sample's rows, its place, and pages without pictures."""

import shutil
from dataclasses import replace

import pytest
import torch

from diffprobe.core.errors import EmptyClass, UnknownName
from diffprobe.evaluation.latent_panels import latent_section
from diffprobe.evaluation.page_features import open_features
from diffprobe.evaluation.panel_settings import PanelConfig
from diffprobe.features.row_layout import by_place
from diffprobe.probes.sae.topk import KSAE
from tests.evaluation.page_runs import SAE, opened

FEW = PanelConfig(n_latents=3, min_active=2, n_top=4)


@pytest.mark.slow
def test_a_spatial_autoencoder_has_its_places_marked(spatial_sae):
    (run,) = opened(spatial_sae)
    section = latent_section(run, FEW, name="spatial")
    sae, table = KSAE.from_pretrained(spatial_sae / "probes" / "sae"), open_features(run).table("test")
    places = by_place(table.features[section.cell], section.cell)
    _, height, width, d_in = places.shape
    assert f"{height * width} rows (positions and draws)" in section.rule and "A frame marks" in section.rule
    with torch.no_grad():
        code = sae.encode(places.reshape(-1, d_in))
    dense = torch.zeros(len(places) * height * width, sae.n_latents).scatter_add_(1, code.indices, code.values)
    maps = dense.view(len(places), height, width, -1)
    shown = [(panel.latent, picture) for panel in section.panels for picture in panel.pictures]
    assert shown
    for latent, picture in shown:
        row, column = divmod(int(maps[table.keys.index(picture.key), :, :, latent].argmax()), width)
        assert picture.place == f"row {row + 1}, column {column + 1} of {height} x {width}"


@pytest.mark.slow
def test_an_autoencoder_of_all_timesteps_reads_all_of_them(train_tiny):
    run = train_tiny(*SAE, "probe.params.k=4", "features.timesteps=[20,40]", "probe.cell=mid_block@t*")
    section = latent_section(opened(run)[0], FEW)
    assert section.cell == "mid_block@t20:empty:mean, mid_block@t40:empty:mean"
    assert "2 rows (timesteps, positions and draws)" in section.rule and "A frame" not in section.rule
    assert not any(picture.place for panel in section.panels for picture in panel.pictures)


def test_without_images_the_numbers_are_shown_and_the_reason_given(small_sae, tiny_shards, tmp_path):
    moved = tmp_path / "shards"
    shutil.copytree(tiny_shards, moved)
    (run,) = opened(small_sae)
    here = replace(run, config=replace(run.config, data=replace(run.config.data, path=str(moved))))
    with_pictures = latent_section(here, FEW)
    for tar in moved.glob("*.tar"):
        tar.unlink()
    without = latent_section(here, FEW)
    assert "No pictures are shown" in without.rule and "No pictures" not in with_pictures.rule
    assert not any(panel.pictures for panel in without.panels) and any(panel.pictures for panel in with_pictures.panels)
    assert [panel.n_active for panel in without.panels] == [panel.n_active for panel in with_pictures.panels]


def test_chance_goes_by_group_and_says_so(small_sae):
    (run,) = opened(small_sae)
    by_style = latent_section(run, replace(FEW, group_by="style"))
    assert "as many groups ('style')" in by_style.rule
    assert all(panel.n_groups in (1, 2) for panel in by_style.panels if panel.label_entropy is not None)
    alone = latent_section(run, replace(FEW, group_by="sample"))
    assert "as many groups" not in alone.rule and all(panel.n_groups is None for panel in alone.panels)
    with pytest.raises(UnknownName, match="author"):
        latent_section(run, replace(FEW, group_by="author"))


def test_a_bar_too_high_for_every_latent_is_named(small_sae):
    with pytest.raises(EmptyClass, match="1000 or more of 16"):
        latent_section(opened(small_sae)[0], PanelConfig(min_active=1000))
