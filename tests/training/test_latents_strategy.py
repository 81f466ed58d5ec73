"""The place of a process among those that share latents, the norm over all of them, and runs that have no latents."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from diffprobe.config.compose import load_run
from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.processes import Processes
from diffprobe.probes.sae.latent_shards import LatentShards
from diffprobe.runs.plan import plan
from diffprobe.training.latents_strategy import LatentsStrategy, clip_norm, require_same_place, shards_of

_spec = importlib.util.spec_from_file_location("shard_threads", Path(__file__).parents[1] / "shard_threads.py")
threads = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(threads)


@pytest.mark.parametrize(
    ("found", "rank"),
    [
        (Processes(), 0),
        (Processes(launcher="lightning", rank=1, count=2, local_rank=1, node=1), 5),
        (Processes(launcher="srun", rank=6, count=8, local_rank=2, node=1), 6),
        (Processes(launcher="torchrun", rank=3, count=8, local_rank=3), 3),
    ],
)
def test_the_place_is_known_before_the_trainer_is(found, rank):
    shards = shards_of(TrainerConfig(devices=4, num_nodes=2, strategy="latents"), found)
    assert (shards.rank, shards.size) == (rank, 8)


def test_a_trainer_of_other_processes_is_refused():
    with pytest.raises(ConfigError, match=r"part 1 of 2(.|\n)*number 1 of 4"):
        require_same_place(LatentShards(1, 2), SimpleNamespace(global_rank=1, world_size=4))


@pytest.mark.parametrize("largest", [0.5, 100.0])
def test_the_gradient_is_clipped_as_torch_does_and_shared_weights_count_once(largest):
    generator = torch.Generator().manual_seed(0)
    rows, shared = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (3,)))
    whole = [torch.nn.Parameter(torch.zeros_like(part)) for part in (rows, shared)]
    for weight, gradient in zip(whole, (rows, shared), strict=True):
        weight.grad = gradient.clone()
    norm = torch.nn.utils.clip_grad_norm_(whole, largest)

    def clip(shards):
        span = shards.span(5)
        own = [(rows[span.start : span.stop].clone(), True), (shared.clone(), False)]
        return clip_norm(own, largest, shards), *(gradient for gradient, _ in own)

    found = threads.in_threads(2, clip)
    assert [float(part[0]) for part in found] == pytest.approx([float(norm)] * 2, rel=1e-12)
    torch.testing.assert_close(torch.cat([part[1] for part in found]), whole[0].grad, rtol=1e-12, atol=0)
    for part in found:
        torch.testing.assert_close(part[2], whole[1].grad, rtol=1e-12, atol=0)


def test_a_module_without_latents_is_refused():
    strategy = LatentsStrategy()
    strategy._lightning_module = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"trainer.strategy=latents(.|\n)*fix: trainer.strategy=ddp"):
        strategy.setup(SimpleNamespace())


def test_every_process_gets_all_samples():
    assert LatentsStrategy().distributed_sampler_kwargs == {"num_replicas": 1, "rank": 0}


@pytest.mark.parametrize(
    ("experiment", "settings", "complaint"),
    [
        ("emoji/classifier", [], r"kind 'classifier' has no latents(.|\n)*trainer.strategy=ddp"),
        ("emoji/direction", [], "kind 'direction' has no latents"),
        ("emoji/sae", ["probe=batch_topk"], r"'batch_topk'(.|\n)*probe=topk, probe=revelio"),
        ("emoji/sae", ["probe=revelio-released"], "'revelio_released'"),
        ("emoji/sae_grid", [], "with probe.grid"),
        ("emoji/sae", ["trainer.precision=16-mixed"], r"16-mixed with strategy=latents(.|\n)*bf16-mixed"),
    ],
)
def test_what_cannot_share_latents_is_refused_before_anything_is_read(experiment, settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        plan(load_run(experiment, [*settings, "trainer.strategy=latents", "trainer.devices=2"]))
    assert plan(load_run("emoji/sae", ["trainer.strategy=latents"])).params.k == 16
