"""Prototypes: the assignment against a plain one and by hand, two processes as one, the loss, planted clusters."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from diffprobe.core.errors import ConfigError
from diffprobe.generative.sinkhorn_prototypes import Prototypes, PrototypeSettings, assignment_loss, entropy, sinkhorn
from diffprobe.metrics.cluster_agreement import cluster_agreement

ROOT = Path(__file__).parents[2]


def scores_of(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.rand(n, k, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def plain_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The algorithm of SwAV's appendix, in loops."""
    n, k = scores.shape
    q = [[math.exp(float(scores[i, j]) / epsilon) for j in range(k)] for i in range(n)]
    whole = sum(map(sum, q))
    q = [[value / whole for value in row] for row in q]
    for _ in range(iterations):
        columns = [sum(q[i][j] for i in range(n)) for j in range(k)]
        q = [[q[i][j] / columns[j] / k for j in range(k)] for i in range(n)]
        q = [[value / sum(row) / n for value in row] for row in q]
    return torch.tensor([[value * n for value in row] for row in q])


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 3), (0.5, 1), (0.2, 10)])
def test_the_assignment_is_the_plain_one(epsilon: float, iterations: int) -> None:
    scores = scores_of(12, 5)
    found = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
    torch.testing.assert_close(found, plain_sinkhorn(scores, epsilon, iterations), rtol=1e-5, atol=1e-7)


def test_a_case_by_hand() -> None:
    """Two samples prefer the first of two prototypes by log 3 and log 1: columns (4, 2), then rows."""
    scores = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    found = sinkhorn(scores, epsilon=1.0, iterations=1)
    # columns are divided by 4 and 2: (3/4, 1/2), (1/4, 1/2); rows by 5/4 and 3/4
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.4], [1 / 3, 2 / 3]]))


def test_rows_sum_to_one_and_columns_become_even() -> None:
    scores = scores_of(64, 10)
    spread = []
    for iterations in (1, 3, 100):
        found = sinkhorn(scores, iterations=iterations)
        torch.testing.assert_close(found.sum(1), torch.ones(64))
        spread.append(float((found.sum(0) - 6.4).abs().max()))
    assert spread[0] > spread[1] > spread[2] and spread[2] < 1e-3


def test_large_scores_stay_finite_and_no_samples_are_none() -> None:
    assert sinkhorn(scores_of(8, 3) * 200).isfinite().all()
    assert sinkhorn(torch.zeros(0, 3)).shape == (0, 3)


PROCESS = """
import sys, torch
from torch import distributed
from diffprobe.generative.sinkhorn_prototypes import sinkhorn
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
scores = torch.load(f"{folder}/scores.pt", weights_only=True)
torch.save(sinkhorn(scores[:5] if rank == 0 else scores[5:]), f"{folder}/{rank}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_assign_as_one(tmp_path: Path) -> None:
    """The processes have 5 and 11 samples."""
    scores = scores_of(16, 6)
    torch.save(scores, tmp_path / "scores.pt")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), str(tmp_path)], env=environ) for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    both = torch.cat([torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)])
    torch.testing.assert_close(both, sinkhorn(scores), rtol=1e-6, atol=1e-9)
    alone = torch.cat([sinkhorn(scores[:5]), sinkhorn(scores[5:])])
    assert not torch.allclose(both, alone, atol=1e-2)  # separate sums would give another assignment


def test_the_loss_is_a_cross_entropy_by_hand() -> None:
    assigned, scores = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.1, 0.0], [0.1, 0.0]])
    first, second = math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(1.0))
    torch.testing.assert_close(assignment_loss(assigned, scores), torch.tensor([first, (first + second) / 2]))


def test_entropy_is_that_of_even_shares_and_zero_of_one() -> None:
    assert entropy(torch.full((8,), 1 / 8)) == pytest.approx(math.log(8))
    assert entropy(torch.tensor([0.0, 1.0])) == 0


def made(**changes: object) -> Prototypes:
    settings = PrototypeSettings(**{"n": 4, "hidden": 8, "width": 6, "queue": 0, **changes})  # type: ignore[arg-type]
    return Prototypes(5, settings, seed=0)


def test_prototypes_have_unit_length_and_building_them_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    head = made()
    assert torch.equal(torch.random.get_rng_state(), before)
    head.prototypes.weight.data *= 3
    head.normalise()
    torch.testing.assert_close(head.prototypes.weight.norm(dim=1), torch.ones(4))
    assert head.prototypes.bias is None


@pytest.mark.parametrize("form", ["released", "described"])
def test_only_the_described_form_reaches_the_features(form: str) -> None:
    head = made(form=form)
    features = torch.randn(10, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    head.loss(features, torch.full((10,), 150)).backward()
    assert (features.grad is not None) == (form == "described")
    found = dict(head.named_parameters())
    for name in ("head.0.weight", "head.3.weight", "prototypes.weight"):
        gradient = found[name].grad
        assert gradient is not None and bool(gradient.abs().sum() > 0), name


def test_only_samples_in_the_window_count() -> None:
    timesteps = torch.tensor([99, 100, 199, 200, 150, 900])
    features = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    head = made()
    assert head.counted(timesteps).tolist() == [False, True, True, False, True, False]
    found = head.loss(features, timesteps)
    twin = made()
    projected = twin.project(features)[[1, 2, 4]]
    scores = projected @ normalize(twin.prototypes.weight, dim=1).T
    torch.testing.assert_close(found, assignment_loss(sinkhorn(scores), scores).mean())
    none = made().loss(features, torch.full((6,), 900))
    assert float(none.detach()) == 0 and none.requires_grad


def test_the_queue_keeps_the_newest_features_and_joins_the_assignment() -> None:
    head, window = made(queue=7), torch.full((4,), 150)
    batches = [torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    for features in batches:
        head.loss(features, window)
    assert int(head.n_stored) == 7
    newest = head.project(batches[2]).detach()
    torch.testing.assert_close(head.stored[:4], newest)
    torch.testing.assert_close(head.stored[4:], made(queue=7).project(batches[1]).detach()[:3])
    alone = made(queue=0)
    alone.load_state_dict({k: v for k, v in head.state_dict().items() if k != "stored"}, strict=False)
    first, second = (float(one.loss(batches[0], window).detach()) for one in (alone, head))
    assert first != pytest.approx(second)


def planted(n: int, seed: int) -> tuple[Tensor, list[str]]:
    """Three groups around points of their own in five dimensions."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 3, n)
    centres = np.array([[4, 0, 0, 0, 0], [0, 4, 0, 0, 0], [0, 0, 4, 0, 0]])
    values = centres[groups] + rng.normal(size=(n, 5)) * 0.5
    return torch.from_numpy(values).float(), [str(group) for group in groups]


@pytest.mark.parametrize("seed", range(4))
def test_planted_clusters_are_recovered(seed: int) -> None:
    """64 steps on 64 samples; a head of width 16 stays in a poorer partition from some seeds."""
    settings = PrototypeSettings(n=3, hidden=64, width=32, queue=256)
    head, untrained = (Prototypes(5, settings, seed=seed) for _ in range(2))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    features, _ = planted(4096, 0)
    for rows in torch.arange(4096).split(64):
        head.normalise()
        optimizer.zero_grad()
        head.loss(features[rows], torch.full((64,), 150)).backward()
        optimizer.step()
    fresh, groups = planted(500, 1)
    found, before = (cluster_agreement(one.assign(fresh).tolist(), groups)["ari"] for one in (head, untrained))
    assert found > 0.95 and before < 0.6
    assert entropy(head.usage) > 0.95 * math.log(3) and head.training


def test_measured_statistics_are_the_mean_over_batches_and_training_goes_on_as_before() -> None:
    prototypes = Prototypes(4, PrototypeSettings(n=3, hidden=8, width=4), seed=0)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 4, generator=generator) + shift for shift in (5, 7, 9)]
    norm = prototypes.head[1]
    assert isinstance(norm, torch.nn.BatchNorm1d)
    prototypes.measure_statistics(batches)
    hidden = [prototypes.head[0](batch) for batch in batches]
    torch.testing.assert_close(norm.running_mean, torch.stack([one.mean(0) for one in hidden]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([one.var(0) for one in hidden]).mean(0))
    assert prototypes.training and norm.momentum == 0.1 and norm.weight.grad is None


def test_the_weight_rises_and_stays() -> None:
    settings = PrototypeSettings(weight=2.0, warmup=0.5)
    assert [settings.weight_at(step, 100) for step in (0, 25, 50, 99)] == [0, 1, 2, 2]
    assert PrototypeSettings(warmup=0).weight_at(0, 100) == 1


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"n": 1}, "prototypes.n=1"), ({"queue": -1}, "prototypes.queue=-1"), ({"timesteps": (5, 5)}, "window"),
        ({"weight": 0.0}, "weight"), ({"warmup": 2.0}, "warmup"), ({"least_effective": 0.5}, "least_effective"),
        ({"form": "described", "random_network": True}, "no effect"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(changes: dict[str, object], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        PrototypeSettings(**changes)  # type: ignore[arg-type]
