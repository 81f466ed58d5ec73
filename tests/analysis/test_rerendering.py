import numpy as np
import pytest

from diffprobe.analysis.rerendering import nearest_rerendering
from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.factors import counterfactual_scenes, sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import FACTORS, PLAIN, STRIPED
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()


def degraded(images: np.ndarray, seed: int = 0) -> np.ndarray:
    """Smooth as an autoencoder does, shift colours and add noise: 10 levels of noise, 6 of shift."""
    generator = np.random.default_rng(seed)
    x = images.astype(np.float64)
    blur = sum(np.roll(x, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)) / 9
    x = 0.5 * x + 0.5 * blur + generator.uniform(-6, 6, (len(x), 1, 1, 3)) + generator.normal(0, 10, x.shape)
    return x.clip(0, 255).round().astype(np.uint8)


def wrong_proposals(scenes: object, row: int, generator: np.random.Generator) -> dict[str, list[int]]:
    """Propose all roles in random order, and a random value of each other factor."""
    return {name: generator.permutation(len(SPEC.names(name))).tolist() for name in FACTORS}


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [64, 32])
def test_factors_of_degraded_drawings_are_found_from_wrong_proposals(resolution):
    scenes = sample(SPEC, 5, np.arange(8))
    images = degraded(render(SPEC, scenes, resolution=resolution).images)
    generator = np.random.default_rng(0)
    right = dict.fromkeys(FACTORS, 0)
    for row in range(len(scenes)):
        found = nearest_rerendering(SPEC, images[row], wrong_proposals(scenes, row, generator), n_sweeps=3)
        for name in FACTORS:
            right[name] += found.values[name] == scenes.factors[name][row]
    assert sum(right.values()) >= 0.95 * len(scenes) * len(FACTORS), right
    assert right["texture"] == right["role"] == len(scenes), right


@pytest.mark.slow
def test_contrast_is_the_share_of_stripes_that_were_mixed_in():
    scenes = sample(SPEC, 7, np.arange(4))
    plain, striped = (
        render(SPEC, counterfactual_scenes(scenes, "texture", code)).images.astype(float) for code in (PLAIN, STRIPED)
    )
    for share, is_half, texture in ((0.0, False, PLAIN), (0.4, True, PLAIN), (0.8, False, STRIPED)):
        images = (plain + share * (striped - plain)).round().astype(np.uint8)
        for row in range(len(scenes)):
            proposals = {name: [int(scenes.factors[name][row])] for name in FACTORS}
            found = nearest_rerendering(SPEC, images[row], proposals)
            assert found.contrast == pytest.approx(share, abs=0.07)
            assert found.is_half_committed is is_half
            assert found.values["texture"] == texture
            assert found.margins["texture"] == pytest.approx(abs(found.contrast - 0.5))


def test_margins_are_large_for_a_drawing_and_small_between_two():
    scenes = sample(SPEC, 9, np.arange(1))
    proposals = {name: [int(scenes.factors[name][0])] for name in FACTORS} | {"role": list(range(len(SPEC.roles)))}
    clean = nearest_rerendering(SPEC, render(SPEC, scenes).images[0], proposals)
    other = counterfactual_scenes(scenes, "build", (scenes.factors["build"] + 1) % 4)
    both = [render(SPEC, each).images[0].astype(float) for each in (scenes, other)]
    between = nearest_rerendering(SPEC, (0.5 * both[0] + 0.5 * both[1]).round().astype(np.uint8), proposals)
    assert between.margins["build"] < 0.2 * clean.margins["build"]
    assert clean.distance < 0.02 and between.distance > clean.distance


def test_wrong_input_is_refused():
    image = render(SPEC, sample(SPEC, 0, [0])).images[0]
    proposals = {name: [0] for name in FACTORS}
    with pytest.raises(ConfigError, match="48"):
        nearest_rerendering(SPEC, image[:48, :48], proposals)
    with pytest.raises(ConfigError, match="float64"):
        nearest_rerendering(SPEC, image / 255, proposals)
    with pytest.raises(ConfigError, match="role"):
        nearest_rerendering(SPEC, image, {**proposals, "role": []})
    with pytest.raises(ConfigError, match="n_sweeps=0"):
        nearest_rerendering(SPEC, image, proposals, n_sweeps=0)
