import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffprobe.probes.classifier.batch_norm import JointBatchNorm

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(("shape", "kind"), [((6, 5), nn.BatchNorm1d), ((4, 5, 3, 2), nn.BatchNorm2d)])
@pytest.mark.parametrize("affine", [True, False])
def test_in_one_process_it_is_torchs(shape, kind, affine):
    ours, torchs = JointBatchNorm(5, affine=affine), kind(5, affine=affine)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = 2 + torch.randn(shape, generator=generator)
        torch.testing.assert_close(ours(x), torchs(x))
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours, name), getattr(torchs, name))
    x = torch.randn(shape, generator=generator)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x))


def test_one_sample_without_places_is_normalised_by_the_running_statistics():
    norm = JointBatchNorm(3, affine=False)
    x = torch.tensor([[1.0, -2.0, 3.0]])
    torch.testing.assert_close(norm(x), x, rtol=1e-4, atol=1e-4)  # torch refuses it


TWO = """
import os, sys, torch, torch.distributed as dist
from diffprobe.probes.classifier.batch_norm import JointBatchNorm
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
x = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
goal = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(1)).double()
part = slice(0, 3) if rank == 0 else slice(3, 7)
norm = JointBatchNorm(3).double()
own = x[part].clone().requires_grad_()
out = norm(own)
((out.float() - goal[part].float()) ** 2).sum().backward()
torch.save([out.detach(), own.grad, norm.running_mean, norm.running_var], sys.argv[3] + str(rank))
dist.barrier()
dist.destroy_process_group()  # threads that still run would abort the interpreter at its end
"""


@pytest.mark.ddp
@pytest.mark.slow
def test_two_processes_with_unequal_shares_are_one(tmp_path):
    command = [sys.executable, "-c", TWO]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet"), str(tmp_path / "out")], env=environment)
        for rank in (0, 1)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    parts = [torch.load(tmp_path / f"out{rank}", weights_only=True) for rank in (0, 1)]
    x = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    goal = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    norm = nn.BatchNorm2d(3)
    out = norm(x)
    (out - goal).square().sum().backward()
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([part[0] for part in parts]).float(), out.detach(), **tolerance)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]).float(), x.grad, **tolerance)
    for part in parts:
        torch.testing.assert_close(part[2].float(), norm.running_mean, **tolerance)
        torch.testing.assert_close(part[3].float(), norm.running_var, **tolerance)
