"""Steering of a planted generator: a tiny U-Net whose images show an attribute that one axis of its output moves."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffprobe.backbones.cell import Cell
from diffprobe.backbones.vae import VaeDecoder
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch, WeightsMissing
from diffprobe.evaluation.certificates import direction
from diffprobe.evaluation.certificates.method import Method
from diffprobe.evaluation.certificates.settings import WorldSettings
from diffprobe.evaluation.certificates.steering import SteeredGenerator, SteeringSettings, prompts_of_roles
from diffprobe.probes.direction.base import Direction
from diffprobe.shards.scenes.captions import parse
from diffprobe.shards.scenes.spec import FACTORS
from tests.evaluation.stub_reader import SPEC, StubReader

CELL = Cell("conv_out", 500)
FEW = {"strengths": (-10.0, -5.0, 0.0, 5.0, 10.0), "n_images": 16, "sampling_steps": 2, "seed": 5}
"""Of this seed no random direction of the four axes is near the planted one: cosines are at most 0.62."""
MEANS = torch.tensor([1.8, -1.3, 1.2])
"""Of the first channels of the latents that the tiny network generates."""


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image has one colour: the means of the first channels of its latents, relative to `MEANS`."""

    def decode(latents: torch.Tensor) -> torch.Tensor:
        shown = (0.5 + 0.1 * (latents[:, :3].mean((2, 3)) - MEANS)).clamp(0, 1)
        return shown[:, :, None, None].expand(-1, -1, 32, 32)

    monkeypatch.setattr(VaeDecoder, "from_folder", lambda folder: decode)
    monkeypatch.setattr("diffprobe.generative.scene_reader.load_reader", lambda *_: StubReader())


def save(folder: Path, vector: list[float], *, cell: Cell = CELL) -> Path:
    found = Direction(
        vector=torch.tensor(vector), scale=1.0, midpoint=0.0, target="texture", positive="striped", negative="plain",
        cell=cell.name, estimator="mean_difference",
    )  # fmt: skip
    return found.save(folder)


def certified(folder: Path, model: Path, **settings: object) -> "tuple[dict, dict]":  # type: ignore[type-arg]
    config = direction.Config(
        **{
            "backbone": str(model), "generator": str(model), "reader": "reader", "resolution": 32, "n_pairs": 30,
            "n_train": 40, "n_random": 19, "n_resamples": 50, "other_factors": ("side",), **FEW, **settings,
        }  # type: ignore[arg-type]
    )  # fmt: skip
    found = direction.certify(Method(name="a", path=folder), config)
    assert not found.not_measured and "generator" in found.facts
    of = {
        subject.name: {(check.name, check.target): check for check in subject.checks if "steering" in check.name}
        for subject in (found.method, *found.baselines)
    }
    return of["method"], of["random direction"]


@pytest.mark.slow
def test_the_planted_direction_passes_and_a_random_one_fails(tiny_sd: Path, tmp_path: Path) -> None:
    """Noise that is predicted lower gives larger latents, so the direction of red is the first axis, downwards."""
    own, random = certified(save(tmp_path / "d", [-1.0, 0.0, 0.0, 0.0]), tiny_sd)
    assert own["steering_effect", "texture"].value >= 0.5
    assert all(check.passed for check in own.values()), [key for key, check in own.items() if not check.passed]
    assert own["steering_collateral", "role"].value == 0 and len(own) == 2 + len(FACTORS) - 1
    assert not all(check.passed for check in random.values())
    assert random["steering_effect", "texture"].value < own["steering_effect", "texture"].value


def test_the_direction_of_another_attribute_moves_that_one(tiny_sd: Path) -> None:
    settings = SteeringSettings(generator=str(tiny_sd), reader="r", n_images=16, sampling_steps=2)
    generator = SteeredGenerator(SPEC, settings, CELL, seed=0)
    found = generator.read(np.array([0.0, -0.08, 0.0, 0.0]), (-1.0, 0.0, 1.0))
    assert abs(found.effect("texture", 1).mean()) < 0.2
    assert found.effect("colour", 1).mean() > 0.5 and found.changed("colour").mean() > 0.2


@pytest.mark.slow
def test_prompts_state_the_role_alone_and_noise_is_shared(tiny_sd: Path) -> None:
    assert [parse(SPEC, text) for text in prompts_of_roles(SPEC)] == [{"role": role.name} for role in SPEC.roles]
    settings = SteeringSettings(generator=str(tiny_sd), reader="r", n_images=30, sampling_steps=2)
    generator = SteeredGenerator(SPEC, settings, CELL, seed=0)
    assert generator.prompts[0] == generator.prompts[24] == "a cook" and generator.prompts[29] == "a mayor"
    vector = np.array([-0.08, 0.0, 0.0, 0.0])
    once, again = (generator.read(vector, (-1.0, 0.0, 1.0)) for _ in range(2))
    assert all(np.array_equal(once.codes[name], again.codes[name]) for name in FACTORS)
    assert np.array_equal(generator.read(np.zeros(4), (-1.0, 0.0, 1.0)).changed("texture"), np.zeros(30))
    with pytest.raises(ConfigError, match="3 numbers"):
        generator.read(np.ones(3), (-1.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"reader": "r"}, "without generator, reader"),
        ({"strengths": (-1.0, 0.0, 1.0), "n_images": 9}, "without generator, strengths, n_images"),
        ({"generator": "g"}, "no reader"),
        ({"generator": "g", "reader": "r", "strengths": (1.0, 2.0)}, "strengths"),
        ({"generator": "g", "reader": "r", "window": (5, 2)}, "window"),
        ({"generator": "g", "reader": "r", "n_images": 2}, "n_images=2"),
        ({"generator": "g", "reader": "r", "n_random_steered": 3}, "n_random_steered=3"),
        ({"generator": "g", "reader": "r", "most_collateral": 50.0}, "most_collateral=50"),
        ({"generator": "g", "reader": "r", "least_dose": 2.0}, "least_dose=2"),
        ({"generator": "g", "reader": "r", "guidance": -1.0}, "guidance=-1"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        direction.Config(backbone="pixels", **settings)  # type: ignore[arg-type]


def test_what_cannot_be_steered_is_refused(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(model: object, cell: Cell) -> SteeredGenerator:
        return SteeredGenerator(SPEC, SteeringSettings(generator=str(model), reader="r"), cell, seed=0)

    with pytest.raises(WeightsMismatch, match="pixels"):
        opened("pixels", CELL)
    with pytest.raises(UnknownTap, match="pixels"):
        opened(tiny_sd, Cell("pixels", 0))
    with pytest.raises(ConfigError, match="pool=max"):
        opened(tiny_sd, Cell("mid_block", 500, pool="max"))
    monkeypatch.setattr(StubReader, "resolution", 64)
    with pytest.raises(WeightsMismatch, match="64"):
        opened(tiny_sd, CELL)
    monkeypatch.undo()
    with pytest.raises(WeightsMissing, match="train_reader"):
        opened(tiny_sd, CELL)
    assert WorldSettings().seed == 1
