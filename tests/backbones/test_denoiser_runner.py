from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.denoiser_runner import explain_oom
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.core.errors import ConfigError, RunFailed

Load = Callable[..., DiffusionFeatures]
Reference = Callable[..., dict[str, Tensor]]
KEYS = ["a/0", "a/1", "b.2", "b.3", "c"]
PROMPTS = ["noto emoji", "red cat", "", "blue dog", "red cat"]
CELL = "mid_block@t100:empty:mean"


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def too_much(*_: object) -> None:
    """Ask torch's own allocator for more than any machine has."""
    torch.empty(2**55)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [4, 7])
def test_how_rows_are_batched_does_not_matter(rows: int, load: Load, images: Tensor) -> None:
    settings = {"taps": ["mid_block", "up_ft2"], "timesteps": [0, 50, 900], "draws": 3, "condition": "caption"}
    settings |= {"unconditional": True}
    whole = load(**settings)(images, keys=KEYS, captions=PROMPTS)
    for cell, value in load(**settings, max_rows_per_pass=rows)(images, keys=KEYS, captions=PROMPTS).items():
        close(value, whole[cell])


@pytest.mark.slow
def test_passes_are_bounded(load: Load, images: Tensor) -> None:
    features = load(timesteps=[0, 100], max_rows_per_pass=4)
    calls: list[int] = []
    features._backbone.denoiser.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    features(images, keys=KEYS)
    assert calls == [4, 4, 2]
    assert load()._run.rows == 256 and load(resolution=512)._run.rows == 1  # 256 x 256 places an image


def test_two_draws_are_the_mean_of_the_first_and_the_second(load: Load, reference: Reference, images: Tensor) -> None:
    (found,) = load(draws=2, seed=5, pool="max")(images, keys=KEYS).values()
    draws = [reference(images, KEYS, ["mid_block"], 100, draw=i, seed=5)["mid_block"].amax((2, 3)) for i in (0, 1)]
    close(found, (draws[0] + draws[1]) / 2)
    assert float((draws[0] - draws[1]).abs().max()) > 1e-3


def test_draws_that_are_kept_stand_side_by_side(load: Load, reference: Reference, images: Tensor) -> None:
    features = load(draws=2, keep_draws=True, pool="none", max_rows_per_pass=3)
    (found,) = features(images, keys=KEYS).values()
    draws = [reference(images, KEYS, ["mid_block"], 100, draw=i)["mid_block"] for i in (0, 1)]
    close(found, torch.stack(draws, 1))
    assert features.widths == {"mid_block@t100:empty:none": 32}


def test_layout_of_memory_does_not_matter(load: Load, images: Tensor) -> None:
    a, b = (load(taps=["mid_block", "up_blocks.*"], channels_last=flag)(images, keys=KEYS) for flag in (True, False))
    for cell in a:
        close(a[cell], b[cell])


def test_a_pass_without_rows_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match="max_rows_per_pass=0"):
        load(max_rows_per_pass=0)


class TestOutOfMemory:
    def test_a_failed_pass_advises_fewer_rows(self, load: Load, images: Tensor) -> None:
        features = load(timesteps=[0, 100])
        features._backbone.denoiser.get_submodule("mid_block").register_forward_pre_hook(too_much)
        with pytest.raises(RunFailed) as caught:
            features(images, keys=KEYS)
        message = str(caught.value)
        assert "out of memory in a pass of 10 rows (a batch of 5 images) on cpu" in message
        assert (
            "backbone.max_rows_per_pass=5" in message
            and "data.batch_size=2" in message
            and "can't allocate memory" in message
        )

    def test_one_image_in_one_row_can_only_be_made_smaller(self, load: Load, images: Tensor) -> None:
        features = load()
        features._backbone.denoiser.register_forward_pre_hook(too_much)
        with pytest.raises(RunFailed, match="pass of 1 rows(.|\n)*smaller features.resolution"):
            features(images[:1], keys=KEYS[:1])

    def test_failed_encoding_advises_a_smaller_batch(self, load: Load, images: Tensor) -> None:
        features = load()
        features._backbone.components()["vae"].encoder.register_forward_pre_hook(too_much)
        with pytest.raises(RunFailed, match="while 5 images were encoded(.|\n)*data.batch_size=2"):
            features(images, keys=KEYS)

    def test_the_error_of_an_accelerator_is_reported_too(self) -> None:
        with pytest.raises(RunFailed, match="torch: CUDA out of memory"), explain_oom("there", fix="less"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    def test_other_errors_pass_as_they_are(self) -> None:
        with pytest.raises(RuntimeError, match="^shape") as caught, explain_oom("there", fix="less"):
            raise RuntimeError("shape mismatch")
        assert not isinstance(caught.value, RunFailed)
