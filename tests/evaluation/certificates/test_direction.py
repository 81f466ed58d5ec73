"""Certificates of directions, on pixel features of rendered scenes."""

from pathlib import Path

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, DiffprobeError, UnknownName
from diffprobe.evaluation.certificates import direction
from diffprobe.evaluation.certificates.method import Method
from diffprobe.evaluation.certificates.scene_features import SceneReader
from diffprobe.evaluation.certificates.settings import WorldSettings
from diffprobe.probes.direction.base import Direction
from diffprobe.shards.scenes.factors import sample

ENDS = {"factor": "colour", "positive": "red", "negative": "blue", "cell": "pixels@t0"}
FEW = {"n_pairs": 30, "n_train": 100, "n_random": 99, "n_resamples": 50, "other_factors": ("side", "place")}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction of scenes of another seed, saved as a run saves it."""
    spec = WorldSettings().load_world()
    scenes = sample(spec, 9, range(300))
    x = SceneReader(spec, "pixels", "pixels@t0", resolution=64, noise_seed=0).read(scenes)
    codes = scenes.factors["colour"]
    y = np.select([codes == spec.code("colour", "red"), codes == spec.code("colour", "blue")], [1, 0], -1)
    found = Direction.fit(x, y, target="colour", positive="red", negative="blue", cell="pixels@t0:empty:mean")
    return found.save(tmp_path_factory.mktemp("direction"))


def test_a_saved_direction_passes_and_its_baselines_fail(saved: Path) -> None:
    assert direction.accepts(saved) and not direction.accepts(saved.parent)
    config = direction.Config(backbone="pixels", **FEW)  # type: ignore[arg-type]
    found = direction.certify(Method(name=str(saved), path=saved), config)
    assert found.verdict == "pass", [(c.name, c.target, c.value) for c in found.method.checks if not c.passed]
    assert [baseline.name for baseline in found.baselines] == ["random direction", "direction of place", "pixel mean"]
    assert found.facts["factor"] == "colour: red against blue"
    assert "steering" in found.not_measured


def test_the_same_direction_fails_for_another_factor(saved: Path) -> None:
    config = direction.Config(backbone="pixels", factor="side", positive="left", negative="right", **FEW)  # type: ignore[arg-type]
    assert direction.certify(Method(name=str(saved), path=saved), config).verdict == "fail"


@pytest.mark.parametrize(
    ("settings", "error", "fact"),
    [
        ({}, ConfigError, "backbone"),
        ({"backbone": "pixels", "n_pairs": 2}, ConfigError, "n_pairs=2"),
        ({"backbone": "pixels", "least_auroc": 90.0}, ConfigError, "least_auroc=90"),
        ({"backbone": "pixels", "generator": "a"}, ConfigError, "generator=a"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], error: type[Exception], fact: str) -> None:
    with pytest.raises(error, match=fact):
        direction.Config(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "error", "fact"),
    [
        ({"factor": "hue"}, UnknownName, "hue"),
        ({"positive": "pink"}, UnknownName, "pink"),
        ({"positive": "blue"}, ConfigError, "blue"),
        ({"other_factors": ("hue",)}, UnknownName, "hue"),
        ({"cell": "pixels@t0:empty:none"}, DiffprobeError, "pixels"),
    ],
)
def test_a_factor_or_cell_that_is_not_there_is_refused(
    saved: Path, settings: dict[str, object], error: type[Exception], fact: str
) -> None:
    config = direction.Config(**{"backbone": "pixels", **FEW, **settings})  # type: ignore[arg-type]
    with pytest.raises(error, match=fact):
        direction.certify(Method(name=str(saved), path=saved), config)


def test_a_callable_without_ends_is_refused() -> None:
    with pytest.raises(ConfigError, match="factor, positive, negative, cell"):
        direction.certify(Method(name="a:b"), direction.Config(backbone="pixels"))
