"""Certificates of readouts, from runs with kept predictions, and of callables on scenes that are drawn."""

from pathlib import Path

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, RunFailed, UnknownName
from diffprobe.evaluation.certificates import readout
from diffprobe.evaluation.certificates.method import Method
from tests.runs.test_rescore_ladder import CELLS, write

LAB = """
import numpy as np
from diffprobe.evaluation.certificates.settings import WorldSettings
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.splits import split_indices

def peek(train, labels, test):
    spec = WorldSettings().load_world()
    scenes = sample(spec, 1, split_indices(spec, 1, "test", len(test), world="planted"), world="planted")
    return scenes.factors["texture"]

def constant(train, labels, test):
    return np.full(len(test), labels[0])

def short(train, labels, test):
    return labels[:3]

def logits(train, labels, test):
    return np.zeros((len(test), 2))
"""
DRAWN = {"cell": "pixels@t0", "backbone": "pixels", "target": "texture", "n_train": 80, "n_test": 60,
         "n_permutations": 99, "n_resamples": 50}  # fmt: skip

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
    short = readout.Config(**{**FEW, "cell": CELLS[0].partition(":")[0]})  # type: ignore[arg-type]
    assert readout.certify(Method(name="a", path=run), short).method == found.method
    with pytest.raises(UnknownName, match="nowhere"):
        readout.certify(Method(name="a", path=run), readout.Config(**{**FEW, "cell": "nowhere@t1"}))  # type: ignore[arg-type]
    assert found.passing_baselines == () and found.baselines[0].name == "random_weights"


def test_the_baseline_is_the_strongest_rung_in_the_cell_of_the_method(run: Path, tmp_path: Path) -> None:
    second = readout.Config(**{**FEW, "cell": CELLS[1]})  # type: ignore[arg-type]
    found = readout.certify(Method(name="a", path=run), second)
    (baseline,) = found.baselines
    assert baseline.name == "random_weights" and baseline.checks[0].value == pytest.approx(4 / 6)
    folder = tmp_path / "one cell is strongest"
    write(folder / "latents", "vae_latents", cells=["latents@t0:empty:mean"])
    write(folder / "pixels", "raw_pixels")
    found = readout.certify(Method(name="a", path=write(folder / "itself")), second)
    (baseline,) = found.baselines
    gains = {check.target: check.value for check in baseline.checks if check.name == "gain"}
    assert baseline.name == "vae_latents" and gains == {"vae_latents": 0, "raw_pixels": pytest.approx(2 / 6)}


def test_wrong_methods_and_settings_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cell"):
        readout.Config()
    config = readout.Config(**FEW)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="backbone"):
        readout.certify(Method(name="a:b"), config)
    with pytest.raises(ConfigError, match="backbone, n_test would have no effect"):
        readout.certify(Method(name="a", path=run), readout.Config(**FEW, backbone="pixels", n_test=99))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_train=3"):
        readout.Config(**FEW, n_train=3)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="hue"):
        readout.certify(Method(name="a", path=run), readout.Config(**FEW, target="hue"))  # type: ignore[arg-type]
    with pytest.raises(RunFailed, match="rung"):
        readout.certify(Method(name="a", path=write(tmp_path / "alone" / "itself")), config)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "readouts_of_ours.py").write_text(LAB)
    monkeypatch.chdir(tmp_path)
    return "readouts_of_ours"


@pytest.mark.slow
def test_a_callable_that_knows_passes_and_a_constant_fails(lab: str, tiny_sd: Path) -> None:
    """With a pipeline as the backbone both rungs are fitted; the texture cannot be read from pixels of 16 x 16."""
    settings = {**DRAWN, "cell": "mid_block@t200", "backbone": str(tiny_sd), "resolution": 32}
    found = readout.certify(Method(name=f"{lab}:peek"), readout.Config(**settings))  # type: ignore[arg-type]
    assert found.verdict == "pass" and not found.not_measured
    assert {check.target for check in found.method.checks} == {None, "raw_pixels", "vae_latents"}
    assert found.method.checks[0].value == 1 and found.baselines[0].name in ("raw_pixels", "vae_latents")


def test_of_pixels_there_is_one_rung(lab: str) -> None:
    found = readout.certify(Method(name=f"{lab}:constant"), readout.Config(**DRAWN))  # type: ignore[arg-type]
    assert found.verdict == "fail" and set(found.not_measured) == {"gain over vae_latents"}
    assert found.method.checks[0].value == 0.5


@pytest.mark.parametrize(("name", "fact"), [("short", r"\(3,\)"), ("logits", r"\(60, 2\)")])
def test_predictions_of_another_form_are_refused(lab: str, name: str, fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        readout.certify(Method(name=f"{lab}:{name}"), readout.Config(**DRAWN))  # type: ignore[arg-type]


def test_settings_without_an_effect_on_a_callable_are_refused(lab: str) -> None:
    with pytest.raises(ConfigError, match="rungs"):
        readout.certify(Method(name=f"{lab}:peek"), readout.Config(**DRAWN, rungs=("a",)))  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="hue"):
        readout.certify(Method(name=f"{lab}:peek"), readout.Config(**{**DRAWN, "target": "hue"}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="more than one vector"):
        config = readout.Config(**{**DRAWN, "cell": "pixels@t0:empty:none"})  # type: ignore[arg-type]
        readout.certify(Method(name=f"{lab}:peek"), config)


def test_linear_cv_separates_what_is_separable() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(90) % 3
    x = (np.eye(5)[labels] * 4 + generator.normal(size=(90, 5))).astype(np.float32)
    found = readout.linear_cv(x[:60], x[60:], labels[:60], n_classes=3, balanced=True)
    assert (found == labels[60:]).mean() > 0.9
