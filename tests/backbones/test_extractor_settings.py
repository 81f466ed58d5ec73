"""The extractor's settings beyond taps and timesteps: conditions, noise, poolings."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import dit
from diffprobe.backbones.pool import token_places
from diffprobe.core.errors import ConfigError

Load = Callable[..., DiffusionFeatures]
Reference = Callable[..., dict[str, Tensor]]
KEYS = ["a/0", "a/1", "b.2", "b.3", "c"]
PROMPTS = ["noto emoji", "red cat", "", "blue dog", "red cat"]


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


class TestConditions:
    """The branches of a plan, each compared with the pipeline under the same prompt."""

    def test_a_template_is_filled_from_the_samples_columns(
        self, load: Load, reference: Reference, images: Tensor
    ) -> None:
        features = load(condition="template", prompt="a photo of a {class_name}")
        names = ["cat", "dog", "tree", "cat", "sun"]
        (found,) = features(images, keys=KEYS, columns={"class_name": names}).values()
        prompts = [f"a photo of a {name}" for name in names]
        close(found, reference(images, KEYS, ["mid_block"], 100, prompts=prompts)["mid_block"].mean((2, 3)))

    def test_a_template_without_its_column_is_refused(self, load: Load, images: Tensor) -> None:
        with pytest.raises(ConfigError, match="class_nam'(.|\n)*nearest: class_name"):
            load(condition="template", prompt="a {class_nam}")(images, keys=KEYS, columns={"class_name": ["x"] * 5})

    @pytest.mark.parametrize(("negative", "name", "prompt"), [(None, "empty", ""), ("dark", "negative", "dark")])
    def test_the_unconditional_branch_is_read_too(
        self, negative: str | None, name: str, prompt: str, load: Load, reference: Reference, images: Tensor
    ) -> None:
        features = load(condition="caption", unconditional=True, negative_prompt=negative, timesteps=[100, 500])
        found = features(images, keys=KEYS, captions=PROMPTS)
        assert list(found) == [f"mid_block@t{t}:{branch}:mean" for t in (100, 500) for branch in ("caption", name)]
        for t in (100, 500):
            for branch, prompts in (("caption", PROMPTS), (name, [prompt] * 5)):
                expected = reference(images, KEYS, ["mid_block"], t, prompts=prompts)["mid_block"].mean((2, 3))
                close(found[f"mid_block@t{t}:{branch}:mean"], expected)

    def test_the_text_encoder_is_freed_when_all_prompts_are_encoded(self, load: Load, images: Tensor) -> None:
        features = load(condition="prompt", prompt="red cat", unconditional=True)
        first = features(images, keys=KEYS)
        assert "text_encoder" not in features._backbone.components()
        assert all(torch.equal(value, first[cell]) for cell, value in features(images, keys=KEYS).items())

    def test_a_class_reaches_the_network(self, tmp_path: Path, images: Tensor) -> None:
        path = str(dit.tiny(tmp_path / "dit"))
        settings = {"taps": ["transformer_blocks.0"], "timesteps": [100], "device": "cpu"}
        features = DiffusionFeatures.from_pretrained(path, condition="label", unconditional=True, **settings)
        found = features(images, keys=KEYS, labels=[0, 1, 2, 3, 1])
        label, empty = found.values()
        assert float((label - empty).abs().amax(1).min()) > 1e-5
        same = features(images, keys=KEYS, labels=[1, 1, 1, 1, 1])["transformer_blocks.0@t100:label:mean"]
        close(same[[1, 4]], label[[1, 4]])
        assert float((same - label)[[0, 2, 3]].abs().amax(1).min()) > 1e-5
        with pytest.raises(ConfigError, match="2 of 5 samples have no label(.|\n)*a/1, c"):
            features(images, keys=KEYS, labels=[0, -1, 2, 3, -1])


class TestWhatIsRead:
    def test_a_timestep_may_be_given_by_its_noise(self, load: Load, images: Tensor) -> None:
        schedule = load().plan.schedule
        features = load(timesteps=[700], snr=[schedule.snr(261) * 1.0001])
        assert features.plan.timesteps == (261, 700)
        (expected,) = load(timesteps=[261])(images, keys=KEYS).values()
        close(features(images, keys=KEYS)["mid_block@t261:empty:mean"], expected)

    def test_clean_input_is_noised_by_nothing(self, load: Load, images: Tensor) -> None:
        clean = load(timesteps=[0, 500], clean_input=True)
        found = clean(images, keys=KEYS)
        for cell, value in clean(images, keys=list("vwxyz")).items():  # other keys would bring other noise
            assert torch.equal(value, found[cell])
        at_0, at_500 = found.values()
        assert float((at_0 - at_500).abs().max()) > 1e-4  # the timestep still conditions the network
        (noised,) = load(timesteps=[500])(images, keys=KEYS).values()
        assert float((at_500 - noised).abs().max()) > 1e-3
        assert clean.fingerprint["schedule"] != load().fingerprint["schedule"]

    def test_parts_and_places_of_a_map(self, load: Load, reference: Reference, images: Tensor) -> None:
        expected = reference(images, KEYS, ["up_blocks.2"], 100)["up_blocks.2"]
        (parts,) = load(taps=["up_ft2"], pool="grid2")(images, keys=KEYS).values()
        close(parts, torch.nn.functional.avg_pool2d(expected, 8).flatten(1))
        (tokens,) = load(taps=["up_ft2"], pool="tokens6", seed=0)(images, keys=KEYS).values()
        for i, key in enumerate(KEYS):
            close(tokens[i], expected[i].flatten(1)[:, token_places(0, key, 256, 6)].T)
