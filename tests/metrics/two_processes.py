"""Updates every metric with this process's share of some samples and computes it: run by test_two_processes.py.

python two_processes.py RANK WORLD RENDEZVOUS_FILE
"""

import json
import sys

import torch

from diffprobe.metrics.dead_fraction import DeadFraction
from diffprobe.metrics.dead_latents import DeadLatents
from diffprobe.metrics.decoder_coherence import decoder_coherence
from diffprobe.metrics.dense_fraction import DenseFraction
from diffprobe.metrics.explained_variance import ExplainedVariance
from diffprobe.metrics.fvu import Fvu
from diffprobe.metrics.grouped import Grouped
from diffprobe.metrics.l0 import L0
from diffprobe.metrics.latent_usage import LatentUsage
from diffprobe.metrics.mean_std_ratio import MeanStdRatio

N, D, LATENTS = 41, 5, 16
TIMESTEPS = [25, 200, 500, 900]


def plain(value):
    """Convert to values that JSON can hold."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def main(rank, world, rendezvous):
    if world > 1:
        torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=world)
    generator = torch.Generator().manual_seed(0)
    x = 50 + torch.randn(N, D, generator=generator)
    x_hat = x + 0.3 * torch.randn(N, D, generator=generator)
    values, indices = torch.randn(N, 2, generator=generator), torch.randint(0, LATENTS, (N, 2), generator=generator)
    t = torch.tensor([25, 200])[torch.arange(N) % 2]  # of two processes each sees one of these alone
    t[:3] = 500  # and t=900 none
    metrics = {
        "fvu": (Fvu(D), (x, x_hat)),
        "explained_variance": (ExplainedVariance(D), (x, x_hat)),
        "gamma": (MeanStdRatio(D), (x,)),
        "use": (LatentUsage(LATENTS), (values, indices)),
        "l0": (L0(LATENTS), (values, indices)),
        "dead_fraction": (DeadFraction(LATENTS), (values, indices)),
        "density": (DenseFraction(LATENTS), (values, indices)),
        "dead": (DeadLatents(LATENTS, 11), (values, indices)),
    }
    grouped = {name: Grouped(metric.clone(), TIMESTEPS) for name, (metric, _) in metrics.items() if name != "dead"}
    mine = torch.arange(rank, N, world)
    for rows in mine.split(7 if world == 1 else 4 + rank):  # uneven numbers of batches, the last ones short
        for name, (metric, data) in metrics.items():
            metric.update(*(part[rows] for part in data))
            if name in grouped:
                grouped[name].update_rows(t[rows], *(part[rows] for part in data))
    found = {name: plain(metric.compute()) for name, (metric, _) in metrics.items()}
    found |= {f"{name}_by_timestep": plain(metric.present()) for name, metric in grouped.items()}
    for name in ("dead_fraction", "density"):
        with metrics[name][0].sync_context():
            found[f"detail_of_{name}"] = metrics[name][0].detail()
    found["coherence"] = plain(decoder_coherence(x))
    print(json.dumps(found))
    if world > 1:  # a process that ends while gloo's threads still run may be aborted
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
