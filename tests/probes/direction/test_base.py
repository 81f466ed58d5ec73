import pytest
import torch

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.probes.direction import Direction, DirectionConfig, random_directions


def test_save_and_load(tmp_path):
    vector = torch.nn.functional.normalize(torch.arange(5.0), dim=0)
    made = Direction(
        vector=vector,
        scale=2.5,
        midpoint=1.5,
        target="style",
        positive="noto",
        negative="twemoji",
        cell="c",
        estimator="ridge",
    )
    made.save(tmp_path)
    back = Direction.load(tmp_path)
    assert (
        back.vector.equal(vector)
        and (back.scale, back.positive, back.estimator) == (2.5, "noto", "ridge")
        and back.midpoint == 1.5
    )
    x = torch.randn(3, 5)
    torch.testing.assert_close(back.project(x + back.scale * back.vector) - back.project(x), torch.full((3,), 2.5))


def test_random_directions_are_uniform_and_seeded():
    columns = random_directions(400, 300, seed=0)
    assert columns.equal(random_directions(400, 300, seed=0)) and not columns.equal(random_directions(400, 300, seed=1))
    torch.testing.assert_close(columns.norm(dim=0), torch.ones(300, dtype=torch.float64))
    cosines = (columns[:, :150] * columns[:, 150:]).sum(0)
    assert float(cosines.std()) == pytest.approx(1 / 20, rel=0.25)  # 1 / sqrt(d_in)


NAMES = ("noto", "twemoji", "other")


def test_axes_name_their_sides():
    config = DirectionConfig(positive=("noto", "dark|medium"), negative=("*", "none"))
    first, second = config.axes(["c"], {"style": NAMES, "tone": ("none", "medium", "dark")})
    assert (first.positive_ids, first.negative_ids, first.negative) == ((0,), (1, 2), "other than noto")
    assert second.side(torch.tensor([-1, 0, 1, 2])).tolist() == [-1, 0, 1, 1]
    one = DirectionConfig(positive="noto", negative="twemoji").axes(["a", "b"], {"style": NAMES})
    assert [axis.cell for axis in one] == ["a", "b"] and one[0].side(torch.tensor([2, 1, 0])).tolist() == [-1, 0, 1]


def test_bad_ends():
    with pytest.raises(ConfigError, match=r"2 targets .* with 1 positive"):
        DirectionConfig(positive="noto").axes(["c"], {"style": NAMES, "tone": ("dark", "light")})
    with pytest.raises(UnknownName, match="value of target 'style' 'nato'"):
        DirectionConfig(positive="nato").axes(["c"], {"style": NAMES})
    with pytest.raises(ConfigError, match="two different sides"):
        DirectionConfig(positive="noto", negative="noto|twemoji").axes(["c"], {"style": NAMES})
    with pytest.raises(ConfigError, match="spread"):
        DirectionConfig(positive="noto", n_random=1)


@pytest.mark.parametrize("draws", [{"n_shuffles": 1}, {"n_random": 0}])
def test_a_control_needs_several_draws(draws):
    (name,) = draws
    with pytest.raises(
        ConfigError, match=rf"{name}={draws[name]}.*at least 2(.|\n)*19 allow 0.05(.|\n)*n_shuffles=100"
    ):
        DirectionConfig(positive="noto", **draws)
