"""`diffprobe bench ksae`: a training step of the k-sparse autoencoder, compared with other libraries and a floor.

All methods start from the same weights and train on the same batches, each in its own process, so that peak memory can
be compared. Ours is measured with both values of `probe.params.step`. The dense step is the same model in plain
autograd: dense codes, dense decoder, Adam. The floor is the matrix product of the encoder, which every step needs.
After equal steps the fvu of the dense steps has to be equal and that of the other libraries close; both are printed.
`ksae_peers.py` describes what each library runs.

On a GPU, memory is what torch allocated there; other libraries are measured on the CPU only.
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

from diffprobe.backbones.device import choose_device
from diffprobe.benchmarks.ksae_peers import PEERS, Plan, Trainee, Unusable, prepare, version, weights_of
from diffprobe.benchmarks.machine import machine, seconds
from diffprobe.config.validators import a_device
from diffprobe.core.errors import ConfigError
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.progress import Countdown
from diffprobe.probes.sae import topk
from diffprobe.probes.sae.kernels import encoder_matmul

SHAPES = ((2048, 1280, 5120, 32), (2048, 1280, 20480, 32), (4096, 768, 6144, 32))
"""Batch size, d_in, n_latents, k."""
METHODS = ("floor", "ours", "ours_dense", "dense")
"""`ours` and `ours_dense` are the values sparse and dense of `probe.params.step`; `dense` is plain autograd."""
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One method at one shape and precision."""

    method: str
    precision: str
    seconds: float
    fvu: float | None
    """fvu after all steps on a held-out batch; None for the floor."""
    peak_mib: float
    """Peak memory at the end of the last step: resident memory of its process, or torch's allocations on a GPU."""
    loaded_mib: float
    """Memory after loading its libraries, before the first tensor; 0 on a GPU."""


@dataclass(frozen=True, kw_only=True)
class KsaeRow:
    """All methods at one shape."""

    batch: int
    d_in: int
    n_latents: int
    k: int
    measured: tuple[Measured, ...]

    @property
    def name(self) -> str:
        """Batch size, d_in, n_latents, k, as printed in tables."""
        return f"{self.batch}, {self.d_in}, {self.n_latents}, {self.k}"

    def of(self, method: str, precision: str) -> Measured:
        """Return the measurement of one method."""
        return next(m for m in self.measured if (m.method, m.precision) == (method, precision))

    def peers(self, precision: str) -> tuple[Measured, ...]:
        """Return the measurements of other libraries, fastest first; empty if none is installed."""
        found = (m for m in self.measured if m.method in PEERS and m.precision == precision)
        return tuple(sorted(found, key=lambda m: m.seconds))


@dataclass(frozen=True, kw_only=True)
class KsaeReport:
    """The measurements, and the machine they were made on."""

    machine: str
    steps: int
    rounds: int
    rows: tuple[KsaeRow, ...]
    versions: dict[str, str]
    """Versions of the other libraries that were measured."""
    absent: dict[str, str]
    """Libraries that were not measured -> reason."""

    def to_json(self) -> str:
        """Return all measurements as JSON."""
        return json.dumps(asdict(self), indent=2)


def bench_ksae(
    shapes: tuple[tuple[int, int, int, int], ...] = SHAPES,
    *,
    steps: int = 8,
    rounds: int = 2,
    peers: tuple[str, ...] = tuple(PEERS),
    device: str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> KsaeReport:
    """Measure all methods at all shapes, one after the other; the fastest step of each counts.

    Args:
        shapes: batch, d_in, n_latents, k of each row.
        steps: training steps per method and round.
        rounds: rounds over all methods, so that other load on the machine does not affect one method only.
        peers: other libraries to measure; the report names those that are not measured.
        device: torch device.
        progress: called with a line of text before each measurement.
    Raises: ConfigError for invalid shapes, counts and devices.
    """
    if steps < 2 or rounds < 1 or any(min(shape) < 1 or shape[3] > shape[2] for shape in shapes):
        raise ConfigError(
            f"bench ksae: steps={steps} (at least 2), rounds={rounds} (at least 1), "
            f"shapes {shapes} (k at most n_latents)."
        )
    a_device(device)
    place = choose_device(device)
    absent = {name: "not installed" for name in peers if version(name) is None}
    if place.type != "cpu":
        absent = dict.fromkeys(peers, "measured on the CPU only")
    methods = {
        precision: [*METHODS, *(name for name in peers if precision in PEERS[name].precisions)]
        for precision in PRECISIONS
    }
    counted = [name for names in methods.values() for name in names if name not in absent]
    step = Countdown(len(shapes) * rounds * len(counted), progress)
    rows = []
    for shape in shapes:
        found: dict[tuple[str, str], Measured] = {}
        turns = [(number, precision) for number in range(rounds) for precision in PRECISIONS]
        for number, precision in turns:
            for method in methods[precision]:
                if method in absent:
                    continue
                step(f"round {number + 1} of {rounds}, {', '.join(map(str, shape))}: {method}, {precision}")
                try:
                    turn = _in_own_process(method, precision, shape, steps, str(place))
                except Unusable as error:
                    absent[method] = str(error)
                    continue
                found[method, precision] = min(found.get((method, precision), turn), turn, key=_seconds_of)
        measured = tuple(found.values())
        rows.append(KsaeRow(batch=shape[0], d_in=shape[1], n_latents=shape[2], k=shape[3], measured=measured))
    versions = {name: str(version(name)) for name in peers if name not in absent}
    return KsaeReport(machine=machine(), steps=steps, rounds=rounds, rows=tuple(rows), versions=versions, absent=absent)


def _seconds_of(measured: Measured) -> float:
    return measured.seconds


def _in_own_process(method: str, precision: str, shape: tuple[int, int, int, int], steps: int, device: str) -> Measured:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (method, precision, shape, steps, torch.get_num_threads(), device))


def measure(
    method: str, precision: str, shape: tuple[int, int, int, int], steps: int, threads: int, device: str = "cpu"
) -> Measured:
    """Measure one method in this process. Raises: Unusable for a library that cannot be imported."""
    keep_freed_memory()
    if method in PEERS:
        prepare(method)
    torch.set_num_threads(threads)
    place = torch.device(device)
    loaded, (batch, d_in, n_latents, k) = _peak_mib(place), shape
    features = planted(batch * 3, d_in, seed=0)
    config = topk.Config(k=k, n_latents=n_latents, aux_weight=0.0, step="dense" if method == "ours_dense" else "sparse")
    sae = topk.make(config, d_in, seed=0)
    sae.initialise(features.mean(0), features.var(0, correction=0))
    sae, features = sae.to(place), features.to(place)
    if method in PEERS:
        features *= sae.scale  # the scale in which our implementation trains
        trainee = PEERS[method].make(sae, Plan(batch=batch))
    else:
        run = {"floor": _floor, "ours": _ours, "ours_dense": _ours, "dense": _dense}[method]
        trainee = Trainee(run(sae, k), functools.partial(_reconstruct, sae), functools.partial(weights_of, sae))
    del sae  # other libraries copy the weights: ours must not add to their memory
    times = []
    for number in range(steps):
        x = features[number % 2 * batch : (number % 2 + 1) * batch]
        with torch.autocast(place.type, torch.bfloat16, enabled=precision == "bfloat16"):
            times.append(seconds(lambda x=x: trainee.step(x), place))  # type: ignore[misc]
    fvu, peak = None, _peak_mib(place)
    if method != "floor":
        held = features[2 * batch :]
        with torch.no_grad():
            residual = held - trainee.reconstruct(held)
        fvu = float(residual.square().sum() / (held - held.mean(0)).square().sum())
    return Measured(
        method=method, precision=precision, seconds=min(times[1:]), fvu=fvu, peak_mib=peak, loaded_mib=loaded
    )


def _peak_mib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def planted(n: int, d_in: int, *, seed: int, active: int = 16) -> Tensor:
    """Return sums of `active` out of 2 d_in known directions, plus a mean of three times their standard deviation."""
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
    """Return the matrix product of the encoder, by the same library as in `ours`."""

    @torch.no_grad()
    def step(x: Tensor) -> object:
        if x.device.type == "cpu" and encoder_matmul.mkl_is_narrow() and not torch.is_autocast_enabled("cpu"):
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
    """Return the usual dense step: all latents of all samples are in memory and decoded."""
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
