"""Certificates of readouts, from runs with kept predictions."""

from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError, RunFailed, UnknownName
from diffprobe.evaluation.certificates import readout
from diffprobe.evaluation.certificates.method import Method
from tests.runs.test_rescore_ladder import CELLS, write

FEW = {"cell": CELLS[0], "metric": "accuracy", "n_permutations": 19, "n_resamples": 50}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without errors, beside its rungs with 3, 2 and 1 errors in 6."""
    folder = tmp_path / "toy"
    write(folder / "pixels", "raw_pixels", cells=["pixels@t0:empty:mean"])
    write(folder / "random", "random_weights")
    return write(folder / "itself")  # type: ignore[no-any-return]


def test_the_gains_are_those_over_each_rung(run: Path) -> None:
    assert readout.accepts(run) and not readout.accepts(run.parent)
    config = readout.Config(**FEW)  # type: ignore[arg-type]
    found = readout.certify(Method(name="a", path=run), config)
    gains = {check.target: check.value for check in found.method.checks if check.name == "gain"}
    assert gains == {"raw_pixels": pytest.approx(3 / 6), "random_weights": pytest.approx(1 / 6)}
    assert found.verdict == "fail", "1/6 is below least_gain"
    assert found.passing_baselines == () and found.baselines[0].name == "random_weights"


def test_wrong_methods_and_settings_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cell"):
        readout.Config()
    config = readout.Config(**FEW)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="a:b"):
        readout.certify(Method(name="a:b"), config)
    with pytest.raises(UnknownName, match="hue"):
        readout.certify(Method(name="a", path=run), readout.Config(**FEW, target="hue"))  # type: ignore[arg-type]
    with pytest.raises(RunFailed, match="rung"):
        readout.certify(Method(name="a", path=write(tmp_path / "alone" / "itself")), config)
