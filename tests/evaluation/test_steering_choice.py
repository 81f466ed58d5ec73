"""The choice between candidates: ranked on training samples, decided by success at equal collateral."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.matched_collateral import SteeringCurve
from diffprobe.core.errors import EmptyClass
from diffprobe.evaluation.factor_edits import DIRECTION, LATENT, NEURON, TrainingRows
from diffprobe.evaluation.steering_choice import CHOSEN, Candidate, Choice, candidates
from diffprobe.probes.sae.topk import Config, make


@pytest.fixture(scope="module")
def made():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 4, 6, generator=generator)
    positive = torch.arange(60) % 2 == 0
    rows[positive, 1, 2] += 8
    rows[positive, 2, 4] -= 3
    sae = make(Config(k=3, n_latents=24), 6, seed=0)
    flat = rows.flatten(0, 1)
    sae.initialise(flat.mean(0), flat.var(0, correction=0), flat)
    with torch.no_grad():
        sae.W_enc[5] = sae.W_dec[5] = torch.eye(6)[2]
    return sae.eval(), TrainingRows.of(sae, rows), positive


def test_candidates_are_ranked_on_training_samples(made):
    sae, training, positive = made
    found = candidates(sae, training, positive, ~positive, cell=1, n=3, n_bank=100, seed=0)
    assert set(found) == set(CHOSEN) and {one.cell for some in found.values() for one in some} == {1}
    assert [len(found[method]) for method in (LATENT, DIRECTION, NEURON)] == [3, 1, 3]
    assert found[LATENT][0].unit == 5 and [one.edit.latents for one in found[LATENT]] == [
        (one.unit,) for one in found[LATENT]
    ]
    assert [one.unit for one in found[NEURON][:2]] == [2, 4]
    assert found[NEURON][0].edit.units[0] > 0 > found[NEURON][1].edit.units[0]  # channel 4 is lowered
    assert len({one.edit.identity for some in found.values() for one in some}) == 7
    with pytest.raises(EmptyClass, match="0 training samples"):
        candidates(sae, training, positive & ~positive, positive, cell=0, n=1, n_bank=10, seed=0)


def curve(success: float, collateral: float) -> SteeringCurve:
    return SteeringCurve(
        strengths=(0.0, 1.0), success=np.array([[0.0] * 4, [success] * 4]),
        collateral=np.array([[0.0] * 4, [collateral] * 4]),
    )  # fmt: skip


def test_the_best_at_equal_collateral_is_taken_and_the_first_of_equal_ones(made):
    sae, training, positive = made
    offered = candidates(sae, training, positive, ~positive, cell=0, n=3, n_bank=100, seed=0)
    choice = Choice()
    choice.offer(offered)
    assert choice.open(LATENT) and not choice.open(DIRECTION)
    choice.curves[LATENT].extend([curve(1.0, 0.5), curve(0.5, 0.1), curve(0.5, 0.1)])
    assert choice.best(LATENT, 0.1) is offered[LATENT][1]  # the first has 0.2 of success there
    assert choice.best(LATENT, 0.5) is offered[LATENT][0]
    assert choice.best(DIRECTION, 0.1) is offered[DIRECTION][0] and choice.fact(DIRECTION, 1, 24) == ""
    assert choice.fact(LATENT, 1, 24) == "; of 3 by 24 images of seed 1"


def test_candidates_of_further_cells_are_added():
    choice, edit = Choice(), object()
    for cell in range(2):
        choice.offer({method: (Candidate(cell=cell, edit=edit),) for method in CHOSEN})  # type: ignore[arg-type]
    assert all(choice.open(method) for method in CHOSEN)
    choice.curves[DIRECTION].extend([curve(0.2, 0.0), curve(0.4, 0.0)])
    assert choice.best(DIRECTION, 0.0).cell == 1
