"""Detect and replace: only rows in the wrong state change, and they become rows of the bank."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.scoring.edits.detect_and_replace import AboveThreshold, DetectAndReplace, LatentActive
from diffprobe.scoring.edits.latent import activations
from tests.scoring.edits.test_latent import rows_of, sae_of, used

VECTOR = torch.tensor([1.0, 0.0, 0.0])
BANK = torch.tensor([[2.0, 0.0, 0.0], [3.0, 10.0, 0.0], [-1.0, 0.0, 1.0], [-2.0, 10.0, 1.0], [-3.0, 20.0, 1.0]])
X = torch.tensor([[5.0, 9.0, 0.5], [-7.0, 3.0, 0.5], [0.5, 1.0, 0.5]])
DETECTOR = AboveThreshold(vector=VECTOR, threshold=0.0)


def nearest(row, candidates):
    """Return the nearest candidate, as a plain loop."""
    sd = BANK.std(0, correction=0)
    return min(candidates, key=lambda one: float((((one - row) / sd) ** 2).sum()))


@pytest.mark.parametrize("wanted", [True, False])
def test_rows_in_the_wrong_state_become_their_nearest_row_in_the_wanted_one(wanted):
    found = DetectAndReplace(detector=DETECTOR, bank=BANK)(X, 1.0 if wanted else -1.0)
    for row, new in zip(X, found, strict=True):
        right = (row[0] > 0) == wanted
        candidates = [one for one in BANK if (one[0] > 0) == wanted]
        assert torch.equal(new, row if right else nearest(row, candidates))


def test_the_strength_is_the_share_of_the_way_and_the_mean_is_the_other_source():
    edit = DetectAndReplace(detector=DETECTOR, bank=BANK, source="mean")
    assert torch.equal(edit(X, 0.0), X)
    found = edit(X, -0.25)
    assert torch.equal(found[1], X[1])
    torch.testing.assert_close(found[[0, 2]], 0.75 * X[[0, 2]] + 0.25 * BANK[2:].mean(0))


def test_the_detector_of_a_latent_finds_the_rows_on_which_it_is_active():
    sae, rows = sae_of(), rows_of(60, seed=7)
    (latent,) = used(sae, 1)
    active = activations(sae, rows, [latent])[:, 0]
    assert torch.equal(LatentActive(dictionary=sae, latent=latent)(rows), active > 0)
    middle = float(active[active > 0].median())
    assert torch.equal(LatentActive(dictionary=sae, latent=latent, threshold=middle)(rows), active > middle)
    edit = DetectAndReplace(detector=LatentActive(dictionary=sae, latent=latent), bank=rows_of(100, seed=8))
    found = edit(rows, -1.0)
    assert torch.equal((found != rows).any(1), active > 0)
    assert not edit.detector(found).any()  # what was put in does not show the concept


def test_the_quantile_is_of_training_rows():
    rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
    for share in (0.1, 0.5):
        assert float(AboveThreshold.at_quantile(VECTOR, rows, share)(rows).float().mean()) == pytest.approx(
            share, abs=1e-6
        )
    assert AboveThreshold.at_quantile(VECTOR, BANK, 0.01)(BANK).sum() == 1


def test_bad_input():
    with pytest.raises(EmptyClass, match="the concept on 0 of 3 rows"):
        DetectAndReplace(detector=DETECTOR, bank=BANK[2:])
    with pytest.raises(EmptyClass, match="the concept on 2 of 2 rows"):
        DetectAndReplace(detector=DETECTOR, bank=BANK[:2])
    with pytest.raises(UnknownName, match="source"):
        DetectAndReplace(detector=DETECTOR, bank=BANK, source="median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\(5, 2\) do not fit the detector"):
        DetectAndReplace(detector=DETECTOR, bank=BANK[:, :2])
    with pytest.raises(ConfigError, match="share=1"):
        AboveThreshold.at_quantile(VECTOR, BANK, 1.0)
    with pytest.raises(EmptyClass, match="training rows"):
        AboveThreshold.at_quantile(VECTOR, BANK[:0], 0.5)
    with pytest.raises(ConfigError, match="threshold=-1"):
        LatentActive(dictionary=sae_of(), latent=0, threshold=-1.0)
    with pytest.raises(ConfigError, match="out of range"):
        LatentActive(dictionary=sae_of(), latent=40)


def test_its_identity_depends_on_all_that_fixes_it():
    base = {"detector": DETECTOR, "bank": BANK}
    other = AboveThreshold(vector=VECTOR, threshold=1.0)
    changes = ({}, {"source": "mean"}, {"bank": BANK + 1}, {"detector": other})
    found = {DetectAndReplace(**{**base, **change}).identity for change in changes}
    assert len(found) == 4
