import numpy as np
import pytest

from diffprobe.core.errors import NonFinite, SchemaError
from diffprobe.evaluation.rate_images import generated_images, open_prompts, rendered_images, scenes_by_role
from diffprobe.shards.scenes.captions import parse
from diffprobe.shards.scenes.splits import splits_of
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()
SETTINGS = {"seed": 0, "n": 2, "guidance": 0.0, "sampling_steps": 2, "resolution": 32}


class StubPipeline:
    """Draws an image from the noise of each generator, and keeps what it was called with."""

    def __init__(self, broken=False):
        from diffusers import DDIMScheduler

        self.scheduler, self.calls, self.broken = DDIMScheduler(), [], broken

    def __call__(self, prompts, *, generator, height, width, **settings):
        import torch

        self.calls.append((prompts, settings))
        images = np.stack([torch.rand(height, width, 3, generator=one).numpy() for one in generator])
        if self.broken:
            images[0, 0, 0, 0] = np.nan
        return type("Output", (), {"images": images})()


def test_prompts_state_the_role_and_leave_texture_and_colour_open():
    by_role = scenes_by_role(SPEC, 0, 40)
    stated = []
    for role, scenes in by_role.items():
        assert set(splits_of(SPEC, scenes)) == {"test"} and len(scenes) == 40
        for prompt in open_prompts(SPEC, scenes):
            found = parse(SPEC, prompt)
            assert found["role"] == role and not {"texture", "colour"} & set(found)
            stated += list(found)
    assert stated.count("size") / (40 * 24) == pytest.approx(0.25, abs=0.06)
    assert stated.count("side") / (40 * 24) == pytest.approx(0.6, abs=0.06)


def test_rendered_images_have_the_rates_of_the_world():
    found = rendered_images(SPEC, 0, 60, world="permuted", resolution=32)
    shares = [one.truth.factors["texture"].mean() for one in found]
    planted = [role.striped[1] for role in SPEC.roles]
    assert np.corrcoef(shares, planted)[0, 1] > 0.95
    assert found[3].keys[1] == f"{SPEC.roles[3].name}-0001" and found[0].images.shape == (60, 32, 32, 3)


def test_generated_images_are_kept_and_shared_noise_is_that_of_role_and_number(tmp_path):
    pipeline = StubPipeline()
    first = generated_images(SPEC, pipeline, tmp_path / "a", **SETTINGS)
    assert len(pipeline.calls) == len(SPEC.roles)
    assert all(call["guidance_scale"] == 1.0 and call["num_inference_steps"] == 2 for _, call in pipeline.calls)
    (next((tmp_path / "a").glob("*.safetensors"))).unlink()
    again = StubPipeline()
    second = generated_images(SPEC, again, tmp_path / "a", **SETTINGS)
    assert len(again.calls) == 1  # the missing role alone
    for one, other in zip(first, second, strict=True):
        assert one.role == other.role and np.array_equal(one.images, other.images)
    assert not np.array_equal(first[0].images[0], first[0].images[1])
    assert pipeline.scheduler.config.timestep_spacing == "trailing" and not pipeline.scheduler.config.clip_sample


def test_damaged_and_other_files_are_refused(tmp_path):
    generated_images(SPEC, StubPipeline(), tmp_path / "a", **SETTINGS)
    with pytest.raises(SchemaError, match=r"safetensors"):
        generated_images(SPEC, StubPipeline(), tmp_path / "a", **{**SETTINGS, "n": 3})
    path = next((tmp_path / "a").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SchemaError, match=path.name):
        generated_images(SPEC, StubPipeline(), tmp_path / "a", **SETTINGS)
    with pytest.raises(NonFinite, match="cook"):
        generated_images(SPEC, StubPipeline(broken=True), tmp_path / "b", **SETTINGS)
