import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.probes.direction import AxisConfig, Direction, random_directions


def test_save_and_load(tmp_path):
    vector = torch.nn.functional.normalize(torch.arange(5.0), dim=0)
    made = Direction(
        vector=vector, scale=2.5, target="style", positive="noto", negative="twemoji", cell="c", estimator="ridge"
    )
    made.save(tmp_path)
    back = Direction.load(tmp_path)
    assert back.vector.equal(vector) and (back.scale, back.positive, back.estimator) == (2.5, "noto", "ridge")
    x = torch.randn(3, 5)
    torch.testing.assert_close(back.project(x + back.scale * back.vector) - back.project(x), torch.full((3,), 2.5))


def test_random_directions_are_uniform_and_seeded():
    columns = random_directions(400, 300, seed=0)
    assert columns.equal(random_directions(400, 300, seed=0)) and not columns.equal(random_directions(400, 300, seed=1))
    torch.testing.assert_close(columns.norm(dim=0), torch.ones(300, dtype=torch.float64))
    cosines = (columns[:, :150] * columns[:, 150:]).sum(0)
    assert float(cosines.std()) == pytest.approx(1 / 20, rel=0.25)  # 1 / sqrt(d_in)


def test_bad_ends():
    with pytest.raises(ConfigError, match="positive end"):
        AxisConfig(positive=())
    with pytest.raises(ConfigError, match="2 positive and 1 negative"):
        AxisConfig(positive=("a", "b"), negative=("c",))
