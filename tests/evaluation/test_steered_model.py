"""A pipeline that is opened once and steered along any direction: strength 0 is the untouched model."""

import pytest
import torch

from diffprobe.backbones.cell import Cell
from diffprobe.backbones.families import flux, sd3
from diffprobe.backbones.flow_sampler import flow_grid
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from diffprobe.evaluation.steered_model import SteeredModel, SteeredReader, plan_steered
from diffprobe.scoring.edits.direction import AddVector

CELL = Cell.parse("mid_block@t200:empty:mean")
PROMPTS, KEYS = ["a cat", "a dog", "a cat"], ["0", "0", "1"]


@pytest.fixture(scope="module")
def planned(tiny_sd):
    return plan_steered(str(tiny_sd), CELL, fix="another folder")


def opened(planned, **changes):
    settings = {"sampling_steps": 3, "guidance": 0.0, "seed": 0, "window": None, "edits_unconditional": False}
    return SteeredModel(planned, CELL, PROMPTS, KEYS, **{**settings, **changes})


def test_strength_zero_is_the_untouched_model_and_windows_limit_the_change(planned):
    (width,) = set(planned.plan.widths.values())
    vector = torch.nn.functional.normalize(torch.arange(width).double(), dim=0) * 5
    zero, one = opened(planned).latents(AddVector(vector), (0.0, 1.0))
    late_zero, late = opened(planned, window=(0, 400)).latents(AddVector(vector), (0.0, 1.0))
    assert zero.equal(late_zero) and not zero.equal(one)
    assert not late.equal(one) and not late.equal(zero)


def test_images_are_bytes_of_the_model_s_size(planned):
    model = opened(planned)
    (latents,) = model.latents(torch.zeros(4), (0.0,))
    images = model.images(latents)
    assert images.dtype == torch.uint8 and images.shape == (3, planned.plan.resolution, planned.plan.resolution, 3)
    assert images[:1].equal(model.images(latents[:1]))


def test_other_models_and_taps_are_refused(tiny_sd):
    with pytest.raises(WeightsMismatch, match="family pixels.* takes no prompts") as caught:
        plan_steered("pixels", CELL, fix="another folder")
    assert "another folder" in str(caught.value)
    with pytest.raises(UnknownTap):
        plan_steered(str(tiny_sd), Cell.parse("nowhere@t200:empty:mean"), fix="")


def test_flow_models_are_steered_at_the_levels_of_their_pipelines(tmp_path):
    cell = Cell.parse("transformer_blocks.0@t200:empty:mean")
    planned = plan_steered(str(sd3.tiny(tmp_path / "sd3")), cell, fix="")
    settings = {"seed": 0, "edits_unconditional": False, "sampling_steps": 3}
    model = SteeredModel(planned, cell, PROMPTS, KEYS, guidance=1.0, window=(0, 700), **settings)
    assert model._sampler.steps == flow_grid(planned.plan, 3) and model._sampler.steps[0] == 1000
    (width,) = set(planned.plan.widths.values())
    zero, one = model.latents(AddVector(torch.ones(width).double() * 5), (0.0, 1.0))
    assert zero.isfinite().all() and not zero.equal(one)
    side = planned.plan.resolution
    assert model.images(zero).shape == (3, side, side, 3)


def test_distilled_guidance_is_not_combined(tmp_path):
    cell = Cell.parse("transformer_blocks.0@t200:empty:mean")
    planned = plan_steered(str(flux.tiny(tmp_path / "flux")), cell, fix="")
    with pytest.raises(ConfigError, match=r"distilled(?s:.*)guidance=0"):
        SteeredModel(
            planned, cell, PROMPTS, KEYS, guidance=1.0, window=None, seed=0, sampling_steps=3, edits_unconditional=False
        )


@pytest.mark.slow
def test_a_reader_reads_its_own_images_in_the_cell(tiny_sd, tmp_path):
    settings = {"sampling_steps": 3, "guidance": 0.0, "seed": 0, "window": None, "edits_unconditional": False,
                "keep": tmp_path / "kept"}  # fmt: skip
    reader = SteeredReader(str(tiny_sd), CELL, PROMPTS, KEYS, **settings)
    vector = torch.nn.functional.normalize(torch.arange(reader.width).double(), dim=0) * 5
    found = reader.draw(AddVector(vector), (0.0, 1.0))
    features = {strength: reader.reread(latents) for strength, latents in found.items()}
    (kept,) = (tmp_path / "kept").iterdir()
    again = SteeredReader(str(tiny_sd), CELL, PROMPTS, KEYS, **settings)
    again._model = None  # what was drawn once is not drawn again
    assert all(again.draw(AddVector(vector), (0.0, 1.0))[strength].equal(found[strength]) for strength in found)
    other = SteeredReader(str(tiny_sd), CELL, PROMPTS, KEYS, **{**settings, "seed": 1})
    assert (
        not other.draw(AddVector(vector), (0.0, 1.0))[1.0].equal(found[1.0]) and len(list(kept.parent.iterdir())) == 2
    )
    assert list(found) == [0.0, 1.0] and features[0.0].shape == (3, reader.width)
    assert (reader.reread(found[1.0]) == features[1.0]).all() and (features[0.0] != features[1.0]).any()
    assert [image.size for image in reader.decode(found[0.0])] == [(32, 32)] * 3
    refused = {"mid_block@t200:empty:none": "more than one vector", "mid_block@t200:label:mean": "label"}
    for name, message in refused.items():
        with pytest.raises(ConfigError, match=message):
            SteeredReader(str(tiny_sd), Cell.parse(name), PROMPTS, KEYS, **settings)
