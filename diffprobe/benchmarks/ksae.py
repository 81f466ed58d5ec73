"""`diffprobe bench ksae`: a training step of the k-sparse autoencoder, beside other libraries and the floor.

All start from the same weights and see the same batches; each runs in a process of its own, so that its peak memory is
its own. The dense step is the plain autograd program of the same model: dense codes, dense decoder, Adam. The floor is
the encoder's matrix product, which no step can leave out. After equal steps the fvu of the dense step must be equal,
and that of the other libraries near: it is shown. What each of them runs is said in bench_ksae_peers.py.
"""

import functools
import json
import multiprocessing
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diffprobe.benchmarks.ksae_peers import PEERS, Trainee, Unusable, prepare, version
from diffprobe.benchmarks.machine import machine, seconds
from diffprobe.core.errors import ConfigError
from diffprobe.core.memory import keep_freed_memory
from diffprobe.probes.sae import topk
from diffprobe.probes.sae.kernels import encoder_matmul

SHAPES = ((2048, 1280, 5120, 32), (2048, 1280, 20480, 32), (4096, 768, 6144, 32))
"""Batch, width of the features, latents, k."""
CONTENDERS = ("floor", "ours", "dense")
PRECISIONS = ("float32", "bfloat16")
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender at one shape and precision."""

    contender: str
    precision: str
    seconds: float
    fvu: float | None
    """After all steps, on a fresh batch; None for the floor."""
    peak_mib: float
    """Largest resident memory of its process up to the end of the last step."""
    loaded_mib: float
    """Of that, what was resident when its libraries were loaded, before the first tensor."""


@dataclass(frozen=True, kw_only=True)
class KsaeRow:
    """All contenders at one shape."""

    batch: int
    d_in: int
    n_latents: int
    k: int
    measured: tuple[Measured, ...]

    @property
    def name(self) -> str:
        """Batch, width, latents, k, as a table shows them."""
        return f"{self.batch}, {self.d_in}, {self.n_latents}, {self.k}"

    def of(self, contender: str, precision: str) -> Measured:
        """Return one contender's figures."""
        return next(m for m in self.measured if (m.contender, m.precision) == (contender, precision))

    def peers(self, precision: str) -> tuple[Measured, ...]:
        """Return the other libraries' figures, the fastest first; none where none is installed."""
        found = (m for m in self.measured if m.contender in PEERS and m.precision == precision)
        return tuple(sorted(found, key=lambda m: m.seconds))


@dataclass(frozen=True, kw_only=True)
class KsaeReport:
    """What was found, and on what."""

    machine: str
    steps: int
    rounds: int
    rows: tuple[KsaeRow, ...]
    versions: dict[str, str]
    """Of the other libraries that were measured."""
    absent: dict[str, str]
    """The others, and why."""

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(asdict(self), indent=2)


def bench_ksae(
    shapes: tuple[tuple[int, int, int, int], ...] = SHAPES,
    *,
    steps: int = 8,
    rounds: int = 2,
    peers: tuple[str, ...] = tuple(PEERS),
    say: Callable[[str], None] = lambda line: None,
) -> KsaeReport:
    """Measure all contenders at all shapes on the CPU, one after the other; the fastest step of each counts.

    Args:
        shapes: batch, d_in, n_latents, k of each row.
        steps: training steps a contender, each time that it is its turn.
        rounds: turns. What else runs on a machine comes and goes, and must not meet one contender only.
        peers: other libraries to set beside; those that are not installed are named in the report.
        say: told what is being done.
    Raises: ConfigError for shapes and counts that cannot be.
    """
    if steps < 2 or rounds < 1 or any(min(shape) < 1 or shape[3] > shape[2] for shape in shapes):
        raise ConfigError(
            f"bench ksae: steps={steps} (2 and more), rounds={rounds} (1 and more), "
            f"shapes {shapes} (k at most the latents)."
        )
    absent = {name: "not installed" for name in peers if version(name) is None}
    rows = []
    for shape in shapes:
        found: dict[tuple[str, str], Measured] = {}
        turns = [(number, precision) for number in range(rounds) for precision in PRECISIONS]
        for number, precision in turns:
            able = [name for name in peers if precision in PEERS[name].precisions]
            for contender in (*CONTENDERS, *able):
                if contender in absent:
                    continue
                say(f"{number + 1}/{rounds} {', '.join(map(str, shape))}: {contender}, {precision}")
                try:
                    turn = _in_own_process(contender, precision, shape, steps)
                except Unusable as error:
                    absent[contender] = str(error)
                    continue
                found[contender, precision] = min(found.get((contender, precision), turn), turn, key=_seconds_of)
        measured = tuple(found.values())
        rows.append(KsaeRow(batch=shape[0], d_in=shape[1], n_latents=shape[2], k=shape[3], measured=measured))
    versions = {name: str(version(name)) for name in peers if name not in absent}
    return KsaeReport(machine=machine(), steps=steps, rounds=rounds, rows=tuple(rows), versions=versions, absent=absent)


def _seconds_of(measured: Measured) -> float:
    return measured.seconds


def _in_own_process(contender: str, precision: str, shape: tuple[int, int, int, int], steps: int) -> Measured:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (contender, precision, shape, steps, torch.get_num_threads()))


def measure(contender: str, precision: str, shape: tuple[int, int, int, int], steps: int, threads: int) -> Measured:
    """Run one contender in this process. Raises: Unusable for a library that cannot be imported."""
    keep_freed_memory()
    if contender in PEERS:
        prepare(contender)
    torch.set_num_threads(threads)
    loaded, (batch, d_in, n_latents, k) = _peak_mib(), shape
    features = planted(batch * 3, d_in, seed=0)
    sae = topk.make(topk.Config(k=k, n_latents=n_latents, aux_weight=0.0), d_in, seed=0)
    sae.initialise(features.mean(0), features.var(0, correction=0))
    if contender in PEERS:
        features *= sae.scale  # the unit in which ours trains
        trainee = PEERS[contender].make(sae, batch)
    else:
        run = {"floor": _floor, "ours": _ours, "dense": _dense}[contender]
        trainee = Trainee(run(sae, k), functools.partial(_reconstruct, sae))
    del sae  # another library has its own weights: ours must not count to its memory
    times = []
    for number in range(steps):
        x = features[number % 2 * batch : (number % 2 + 1) * batch]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            times.append(seconds(lambda x=x: trainee.step(x), _CPU))  # type: ignore[misc]
    fvu, peak = None, _peak_mib()
    if contender != "floor":
        held = features[2 * batch :]
        with torch.no_grad():
            residual = held - trainee.reconstruct(held)
        fvu = float(residual.square().sum() / (held - held.mean(0)).square().sum())
    return Measured(
        contender=contender, precision=precision, seconds=min(times[1:]), fvu=fvu, peak_mib=peak, loaded_mib=loaded
    )


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def planted(n: int, d_in: int, *, seed: int, active: int = 16) -> Tensor:
    """Make sums of `active` out of 2 d_in known directions, about a mean of three times their spread."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(2 * d_in, d_in, generator=generator), dim=1)
    indices = torch.randint(2 * d_in, (n, active), generator=generator)
    weights = torch.rand(n, active, generator=generator) + 0.5
    sums = torch.nn.functional.embedding_bag(indices, directions, per_sample_weights=weights, mode="sum")
    return sums + 3 * float(sums.std()) * torch.randn(d_in, generator=generator)


def _reconstruct(sae: Any, x: Tensor) -> Tensor:
    x_hat: Tensor = sae(x)[0]
    return x_hat


def _floor(sae: Any, k: int) -> Callable[[Tensor], object]:
    """Make the encoder's product alone, by the library that is the faster one here, as in `ours`."""

    @torch.no_grad()
    def step(x: Tensor) -> object:
        if encoder_matmul.mkl_is_narrow() and not torch.is_autocast_enabled("cpu"):
            return torch.nn.functional.linear(x.to_mkldnn(), sae.W_enc.detach().to_mkldnn())
        return torch.nn.functional.linear(x, sae.W_enc)

    return step


def _ours(sae: Any, k: int) -> Callable[[Tensor], object]:
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3, eps=6.25e-10, fused=True)

    def step(x: Tensor) -> None:
        optimiser.zero_grad()
        sae.begin_step()
        sae.step(x).loss.backward()
        sae.remove_parallel_gradient()
        optimiser.step()
        sae.end_step()

    return step


def _dense(sae: Any, k: int) -> Callable[[Tensor], object]:
    """Make the step as it is usually written: every latent of every sample is in memory, and decoded."""
    optimiser = torch.optim.Adam(sae.parameters(), lr=1e-3, eps=6.25e-10)

    def step(x: Tensor) -> None:
        optimiser.zero_grad()
        scaled = x * sae.scale
        h = torch.nn.functional.linear(scaled - sae.b_pre, sae.W_enc, sae.b_enc)
        values, indices = h.topk(k, dim=1)
        codes = torch.zeros_like(h).scatter(1, indices, values.relu())
        x_hat = codes @ sae.W_dec + sae.b_pre
        ((scaled - x_hat).float().square().sum(1).mean() / sae.d_in).backward()
        with torch.no_grad():
            sae.W_dec.grad -= (sae.W_dec.grad * sae.W_dec).sum(1, keepdim=True) * sae.W_dec
        optimiser.step()
        with torch.no_grad():
            sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)

    return step
