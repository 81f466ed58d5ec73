"""Run the denoiser over draws x timesteps x branches x images, in passes of bounded size.

Features do not depend on the number of rows per pass. Failed allocations are reported with advice.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.base import DTYPES, Backbone, Condition
from diffprobe.backbones.compiled import compile_regions, compiling
from diffprobe.backbones.cpu_kernels import use_onednn
from diffprobe.backbones.device import set_memory_format
from diffprobe.backbones.hooks import Capture
from diffprobe.backbones.plan import ReadPlan
from diffprobe.backbones.pool import add_rows, make_pool
from diffprobe.core.errors import DiffprobeError, RunFailed
from diffprobe.core.rng import noise_for
from diffprobe.core.shapes import FeatureMap

_PLACES = 2**16
"""Latent places (rows x height x width) per pass: bounds the memory of the denoiser at any batch size."""
_ROWS = 256
"""Rows per pass at most."""
_SIGNS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""Marks of a failed allocation in a plain RuntimeError of torch: CPU allocator, CUDA, cuBLAS."""


def rows_per_pass(latent_shape: tuple[int, int, int]) -> int:
    """Return how many latents of a shape [channels, height, width] go through a denoiser in one pass.

    >>> rows_per_pass((4, 64, 64))
    16
    """
    return max(1, min(_ROWS, _PLACES // (latent_shape[1] * latent_shape[2])))


class DenoiserRunner:
    """Runs a loaded backbone over everything that a plan reads.

    With `compile`, the last of several passes is filled up to the rows of the others, so that a batch needs one shape.
    A batch of another size that fits into one pass is compiled anew, the second time for any number of rows.

    Args:
        plan: what is read; its backbone config fixes rows per pass, memory layout and compilation.
        backbone: the loaded backbone.
        compile_backend: backend of torch.compile, where the plan compiles.
        kernels: library of linear layers, one of `cpu_kernels.KERNELS`.
    """

    def __init__(
        self, plan: ReadPlan, backbone: Backbone, *, compile_backend: str = "inductor", kernels: str = "mkl"
    ) -> None:
        config = plan.backbone
        self._plan, self._backbone, self._shape = plan, backbone, plan.spec.latent_shape
        self.rows = config.max_rows_per_pass or rows_per_pass(self._shape)
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format
        denoiser = backbone.denoiser
        set_memory_format(denoiser, self._format)
        paths = [tap.path for tap in plan.taps]
        self._compiled = config.compile
        if config.compile:
            compile_regions(denoiser, plan.spec.blocks, paths, backend=compile_backend)
        if kernels == "onednn":
            use_onednn(denoiser)
        self._pool = make_pool(plan.pool, seed=plan.seed)
        self._bounds: dict[str, Tensor] | None = None
        self._places: tuple[Tensor, Tensor] | None = None  # timestep and branch of each row of the current pass
        self._capture = Capture(
            denoiser, paths, layout=plan.spec.layout, read=lambda x, keys: self._pool(x, keys), change=self._bounded
        )

    def bound(self, bounds: Mapping[str, Tensor]) -> None:
        """Limit the magnitude of channels before pooling, from now on; infinity leaves a channel as it is.

        Args:
            bounds: tap -> largest magnitudes [timesteps, branches, channels].
        """
        self._bounds = dict(bounds)

    @contextmanager
    def reading_magnitudes(self) -> Iterator[None]:
        """Read the mean magnitude of each channel over places, without bounds, in place of the pooled features."""
        pool, bounds = self._pool, self._bounds
        self._pool, self._bounds = (lambda x, keys: x.float().abs().mean(dim=(2, 3))), None
        try:
            yield
        finally:
            self._pool, self._bounds = pool, bounds

    def _bounded(self, tap: str, x: FeatureMap) -> FeatureMap:
        if self._bounds is None or self._places is None:
            return x
        step, branch = self._places
        bound = self._bounds[tap] = self._bounds[tap].to(x.device)
        limit = bound[step, branch][:, :, None, None]
        return x.float().clamp(-limit, limit)

    def __call__(
        self, clean: FeatureMap, condition: Condition, row_of: Int[Tensor, "branches batch"], keys: Sequence[str]
    ) -> dict[str, Tensor]:
        """Read the taps of a batch.

        Rows are ordered by draw, then timestep, then branch, then image.

        Args:
            clean: latents without noise.
            condition: encoded conditions, one row per distinct value.
            row_of: row of `condition` for each image in each branch.
            keys: the samples' keys.
        Returns: tap -> features [1 or draws, timesteps, branches, batch, ...]; draws are summed unless they are kept.
        Raises: RunFailed if memory does not suffice.
        """
        plan, n = self._plan, len(clean)
        shape = (plan.draws if plan.keep_draws else 1, len(plan.timesteps), len(row_of), n)
        n_rows, n_kept = math.prod(shape[1:]) * plan.draws, math.prod(shape)
        noise = self._noise(keys).to(clean.device)
        sums: dict[str, Tensor] = {}
        for start in range(0, n_rows, self.rows):
            stop = min(start + self.rows, n_rows)
            with _explain_rows(stop - start, n, clean.device):
                for tap, values in self._pass(clean, noise, condition, row_of, keys, start, stop).items():
                    if tap not in sums:
                        sums[tap] = torch.zeros(n_kept, *values.shape[1:], device=clean.device)
                    add_rows(sums[tap], values[: stop - start], start)
        return {tap: total.unflatten(0, shape) for tap, total in sums.items()}

    def _pass(
        self,
        clean: Tensor,
        noise: Tensor,
        condition: Condition,
        row_of: Tensor,
        keys: Sequence[str],
        start: int,
        stop: int,
    ) -> dict[str, Tensor]:
        plan, n = self._plan, len(clean)
        rows = torch.arange(start, stop, device=clean.device)
        if self._compiled and start > 0 and len(rows) < self.rows:
            rows = torch.cat([rows, rows[-1:].expand(self.rows - len(rows))])
        grid = torch.tensor(plan.timesteps, device=clean.device)
        image, branch = rows % n, rows // n % len(row_of)
        step, draw = rows // (n * len(row_of)) % len(grid), rows // (n * len(row_of) * len(grid))
        t, self._places = grid[step], (step, branch)
        x_t = plan.schedule.add(clean[image], noise[draw, image], t)
        x_t = x_t.to(DTYPES[plan.dtype]).contiguous(memory_format=self._format)
        conditioning = {name: values[row_of[branch, image]] for name, values in condition.items()}
        with compiling() if self._compiled else nullcontext():
            run = partial(self._backbone.denoise, x_t, t, conditioning)
            return self._capture(run, [keys[i] for i in image.tolist()])

    def _noise(self, keys: Sequence[str]) -> Float[Tensor, "draws batch channels height width"]:
        """Make the noise of all draws."""
        plan = self._plan
        rows = [noise_for(plan.seed, key, draw, self._shape) for draw in range(plan.draws) for key in keys]
        return torch.stack(rows).reshape(plan.draws, len(keys), *self._shape)


def _explain_rows(rows: int, batch: int, device: torch.device) -> Any:
    smaller = f"data.batch_size={batch // 2}" if batch > 1 else "a smaller features.resolution, or dtype=bfloat16"
    return explain_oom(
        f"in a pass of {rows} rows (a batch of {batch} images) on {device}",
        "a row is an image at one timestep, draw and condition; features do not depend on the number of rows",
        fix=f"backbone.max_rows_per_pass={rows // 2}; if that is not enough, {smaller}" if rows > 1 else smaller,
    )


@contextmanager
def explain_oom(where: str, *details: str, fix: str) -> Iterator[None]:
    """Turn a failed allocation into a message with advice. Raises: RunFailed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in _SIGNS)
        if isinstance(error, DiffprobeError) or not short:
            raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunFailed(f"out of memory {where}.", *details, f"torch: {reason[:200]}", fix=fix) from error
