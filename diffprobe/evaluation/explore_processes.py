"""The passes of the explorer over several processes, which read the shards of a split in turns.

Each process opens the run by itself and encodes every n-th part of the split in the batches that one process would
make; sums are exact and top images have a fixed order, so the pages do not depend on the number of processes.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import TypeVar

from diffprobe.core.errors import RunFailed
from diffprobe.evaluation.explore_codes import stream_codes
from diffprobe.evaluation.explore_pages import Thumbnails, image_pages
from diffprobe.evaluation.explore_pass import (
    FoundImage,
    LatentPass,
    PassResult,
    joined,
    locate,
    located,
    new_pass,
)
from diffprobe.evaluation.explore_runs import ExploredRun, open_explored, require_images
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.report.explorer.records import ImagePage

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a process opens the run."""

    folder: str
    config: ExploreConfig
    store: str
    """Folder of the temporary stores of a run on live features; "" for other runs."""
    n_threads: int
    """Threads of the first process: sums of products depend on their number by rounding."""


class Passes:
    """The passes over the images of a run.

    Args:
        run: the run.
        config: settings.
        pool: the processes; None for this one alone.
    """

    def __init__(self, run: ExploredRun, config: ExploreConfig, pool: ProcessPoolExecutor | None = None) -> None:
        self._run, self._config, self._pool = run, config, pool

    def find(self) -> PassResult:
        """Read the split once for the sums, and once more for the top images.

        Raises: StoreIncomplete for a split without images, NonFinite, the errors of reading a store.
        """
        run, config = self._run, self._config
        found, left_out = new_pass(run, config.n_top, config.max_values)
        if self._pool is None:
            found.read(stream_codes(run.sae, run.tables(), run.cells))
        else:
            for part in self._turns(_sums):
                found.merge(part)
        require_images(run, found.sums.n_images)
        if self._pool is None:
            top = locate(found, stream_codes(run.sae, run.tables(), run.cells))
        else:
            top = joined(list(self._turns(_located, found)))
        return PassResult(sums=found.sums, labels=found.labels, left_out=left_out, top=top)

    def images(self, found: PassResult, thumbnails: Thumbnails) -> Iterator[ImagePage]:
        """Yield the page of each image, in order; the pages of as many parts as there are processes are held."""
        run, config = self._run, self._config
        if self._pool is None:
            codes = stream_codes(run.sae, run.tables(), run.cells)
            yield from image_pages(found, codes, thumbnails, n_latents=config.n_latents_per_image)
            return
        n_parts = sum(1 for _ in run.tables())
        light = replace(found, top=[])
        waiting: list[Future[list[ImagePage]]] = []
        for part in range(n_parts):
            waiting.append(self._pool.submit(_pages, part, n_parts, light))
            if len(waiting) > config.processes:
                yield from waiting.pop(0).result()
        for future in waiting:
            yield from future.result()

    def _turns(self, task: Callable[..., T], *arguments: object) -> Iterator[T]:
        """Run a task on each part of the split, and yield the results in order."""
        assert self._pool is not None
        n = self._config.processes
        for future in [self._pool.submit(task, i, n, *arguments) for i in range(n)]:
            yield future.result()


@contextmanager
def passes(run: ExploredRun, config: ExploreConfig) -> Iterator[Passes]:
    """Start the processes that the settings ask for, and end them.

    Raises: RunFailed if one of them was killed.
    """
    if config.processes == 1:
        yield Passes(run, config)
        return
    import torch

    opening = Opening(
        folder=str(run.trained.folder), config=replace(config, seeds=()), store=run.temporary_store,
        n_threads=torch.get_num_threads(),
    )  # fmt: skip
    pool = ProcessPoolExecutor(
        config.processes, mp_context=get_context("spawn"), initializer=_open, initargs=(opening,)
    )  # fmt: skip
    try:
        yield Passes(run, config, pool)
    except BrokenProcessPool as error:
        raise RunFailed(
            "a process of the explorer was killed, perhaps for lack of memory.", fix="fewer processes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_RUN: list[tuple[ExploredRun, ExploreConfig]] = []
"""The run of a process that was started here."""


def _open(opening: Opening) -> None:
    import torch

    torch.set_num_threads(opening.n_threads)
    run = open_explored(opening.folder, opening.config, temporary_store=opening.store)
    _RUN.append((run, opening.config))


def _sums(part: int, n_parts: int) -> LatentPass:
    run, config = _RUN[0]
    found, _ = new_pass(run, config.n_top, config.max_values)
    found.read(stream_codes(run.sae, run.tables(), run.cells, part=(part, n_parts)))
    return found


def _located(part: int, n_parts: int, found: LatentPass) -> list[list[FoundImage | None]]:
    run, _ = _RUN[0]
    return located(found, stream_codes(run.sae, run.tables(), run.cells, part=(part, n_parts)))


def _pages(part: int, n_parts: int, found: PassResult) -> list[ImagePage]:
    run, config = _RUN[0]
    shards = dict.fromkeys(table.shards[0] for i, table in enumerate(run.tables()) if i == part and table.shards)
    thumbnails = Thumbnails(run.features, shards, config.thumbnail_side, run.trained.config.data.caps)
    codes = stream_codes(run.sae, run.tables(), run.cells, part=(part, n_parts))
    return list(image_pages(found, codes, thumbnails, n_latents=config.n_latents_per_image))
