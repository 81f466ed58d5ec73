"""Certificates of dictionaries, on pixel features of rendered scenes."""

from pathlib import Path

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.evaluation.certificates import dictionary
from diffprobe.evaluation.certificates.method import Method
from diffprobe.probes.sae.convert import to_saelens
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

PLACES = """
import numpy as np
from diffprobe.analysis.certification.pointing import covered_places
from diffprobe.evaluation.certificates.settings import WorldSettings
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.splits import split_indices

rows = []

def planted(shift):
    spec = WorldSettings().load_world()
    for split, n in (("train", 120), ("test", 60)):
        scenes = sample(spec, 1, split_indices(spec, 1, split, n, world="planted"), world="planted")
        parts = []
        for factor, mask, n_values in (("texture", "body", 2), ("object", "object", 4)):
            covered = covered_places(render(spec, scenes, resolution=32).mask(mask), (16, 16), 0)
            covered = np.roll(covered, shift, axis=0).reshape(n, 256, 1)
            parts.append(np.eye(n_values)[scenes.factors[factor]][:, None] * covered)
        yield np.concatenate(parts, axis=2).reshape(n * 256, 6)

def at_the_mask(features, shift=0):
    if not rows:
        rows.append(np.concatenate(list(planted(shift))))
    found, rows[0] = rows[0][: len(features)], rows[0][len(features) :]
    if not len(rows[0]):
        rows.clear()
    return found

def at_other_masks(features):
    return at_the_mask(features, 1)
"""


def test_codes_that_are_the_factors_pass_and_random_ones_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dictionaries_of_ours.py").write_text(LAB)
    monkeypatch.chdir(tmp_path)
    config = dictionary.Config(backbone="pixels", cell="pixels@t0", **FEW)  # type: ignore[arg-type]
    found = dictionary.certify(Method(name="dictionaries_of_ours:peek"), config)
    assert found.verdict == "pass" and set(found.not_measured) == {"pointing game", "recurrence"}
    with pytest.raises(ConfigError, match="120"):
        dictionary.certify(Method(name="dictionaries_of_ours:flat"), config)


@pytest.mark.slow
def test_in_a_cell_with_places_latents_have_to_point_at_their_part(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "places_of_ours.py").write_text(PLACES)
    monkeypatch.chdir(tmp_path)
    given = {**FEW, "factors": ("texture", "object"), "pointing": ("texture", "object"), "resolution": 32}
    config = dictionary.Config(backbone=str(tiny_sd), cell="conv_in@t500:empty:none", **given)  # type: ignore[arg-type]
    found = dictionary.certify(Method(name="places_of_ours:at_the_mask"), config)
    assert found.verdict == "pass" and set(found.not_measured) == {"recurrence"}
    assert {check.target: check.value for check in found.method.checks if check.name == "pointing"} == {
        "texture": 1.0, "object": 1.0,
    }  # fmt: skip
    assert any(check.name == "pointing" and not check.passed for check in found.baselines[0].checks)
    other = dictionary.certify(Method(name="places_of_ours:at_other_masks"), config)
    assert other.verdict == "fail"
    assert not any(check.passed for check in other.method.checks if check.name == "pointing")


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
    with pytest.raises(UnknownName, match="place"):
        dictionary.Config(backbone="pixels", pointing=("place",))
    pooled = dictionary.Config(backbone="pixels", cell="pixels@t0", tolerance=1, pointing=("hat",))
    with pytest.raises(ConfigError, match="pointing, tolerance would have no effect"):
        dictionary.certify(Method(name="json:loads"), pooled)
    with pytest.raises(ConfigError, match="tolerance=-1"):
        dictionary.Config(backbone="pixels", tolerance=-1)
    with pytest.raises(ConfigError, match="cell"):
        dictionary.certify(Method(name="a:b"), dictionary.Config(backbone="pixels"))
    assert np.isfinite(dictionary.Config(backbone="pixels").least_auroc)


def test_attributes_of_a_shard_set_are_factors(tiny_sd: Path, tiny_shards: Path, tmp_path: Path) -> None:
    sae = make(TopKConfig(k=4, n_latents=24), 16, seed=0)
    folder = to_saelens(sae, tmp_path / "a")  # another library's format, which has no cell
    given = {"n_train": 48, "n_test": 20, "n_permutations": 19, "n_resamples": 20, "resolution": 32}
    config = dictionary.Config(
        backbone=str(tiny_sd), data=str(tiny_shards), factors=("style", "group"), cell="conv_in@t500:empty:none",
        **given,  # type: ignore[arg-type]
    )  # fmt: skip
    found = dictionary.certify(Method(name="a", path=folder), config)
    assert found.verdict == "fail" and set(found.not_measured) == {"pointing game", "recurrence"}
    assert {check.target for check in found.method.checks} == {"style", "group"}
    assert found.facts["data"].startswith("tiny") and "16 train, 4 test" in found.facts["samples"]


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"data": "emoji", "factors": ("style",), "world": "permuted"}, "world would have no effect"),
        ({"data": "emoji", "factors": ("style",), "tolerance": 1}, "tolerance would have no effect"),
        ({"data": "emoji"}, "named"),
        ({"most_values": 5}, "most_values would have no effect"),
    ],
)
def test_keys_without_effect_are_refused(settings: dict[str, object], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        dictionary.Config(backbone="pixels", **settings)  # type: ignore[arg-type]
