"""Certificates of dictionaries, on pixel features of rendered scenes."""

from pathlib import Path

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.evaluation.certificates import dictionary
from diffprobe.evaluation.certificates.method import Method
from diffprobe.probes.sae.topk import Config as TopKConfig
from diffprobe.probes.sae.topk import make

FEW = {"n_train": 120, "n_test": 60, "n_permutations": 19, "n_resamples": 20, "factors": ("texture", "side")}

LAB = """
import numpy as np
from diffprobe.evaluation.certificates.settings import WorldSettings
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.splits import split_indices

def peek(features):
    spec = WorldSettings().load_world()
    split, n = ("train", 120) if len(features) == 120 else ("test", 60)
    scenes = sample(spec, 1, split_indices(spec, 1, split, n, world="planted"), world="planted")
    return np.concatenate([np.eye(2)[scenes.factors[f]] for f in ("texture", "side")], axis=1)

def flat(features):
    return features[:, 0]
"""


def test_codes_that_are_the_factors_pass_and_random_ones_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dictionaries_of_ours.py").write_text(LAB)
    monkeypatch.chdir(tmp_path)
    config = dictionary.Config(backbone="pixels", cell="pixels@t0", **FEW)  # type: ignore[arg-type]
    found = dictionary.certify(Method(name="dictionaries_of_ours:peek"), config)
    assert found.verdict == "pass" and set(found.not_measured) == {"pointing game", "recurrence"}
    with pytest.raises(ConfigError, match="120"):
        dictionary.certify(Method(name="dictionaries_of_ours:flat"), config)


def test_an_untrained_autoencoder_fails(tmp_path: Path) -> None:
    folders = []
    for seed in (0, 1):
        sae = make(TopKConfig(k=4, n_latents=24), 768, seed=seed)
        sae.initialise(*(x.float() for x in _moments()))
        folders.append(sae.save_pretrained(tmp_path / str(seed), cell="pixels@t0:empty:mean"))
    assert dictionary.accepts(folders[0]) and not dictionary.accepts(tmp_path)
    config = dictionary.Config(backbone="pixels", runs=(str(folders[1]),), **FEW)  # type: ignore[arg-type]
    found = dictionary.certify(Method(name="a", path=folders[0]), config)
    assert found.verdict == "fail"
    (recurrence,) = [check for check in found.method.checks if check.name == "recurrence"]
    assert not recurrence.passed and recurrence.value < 0.3


def _moments() -> "tuple":  # type: ignore[type-arg]
    import torch

    return torch.full((768,), 0.5), torch.full((768,), 0.04)


@pytest.mark.parametrize(
    ("settings", "fact"),
    [({}, "backbone"), ({"backbone": "pixels", "factors": ()}, "factors"), ({"n_test": 3}, "n_test=3")],
)
def test_wrong_settings_are_refused(settings: dict[str, object], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        dictionary.Config(**settings)  # type: ignore[arg-type]


def test_an_unknown_factor_and_a_missing_cell_are_refused() -> None:
    with pytest.raises(UnknownName, match="hue"):
        dictionary.certify(Method(name="a:b"), dictionary.Config(backbone="pixels", factors=("hue",)))
    with pytest.raises(ConfigError, match="cell"):
        dictionary.certify(Method(name="a:b"), dictionary.Config(backbone="pixels"))
    assert np.isfinite(dictionary.Config(backbone="pixels").least_auroc)
