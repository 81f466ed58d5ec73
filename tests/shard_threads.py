"""Processes that share latents, as threads of one: the collectives of `LatentShards` without a process group."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from diffprobe.probes.sae.latent_shards import LatentShards


class ThreadShards(LatentShards):
    """One of several threads; `meeting` is what they share."""

    def __init__(self, rank, meeting):
        super().__init__(rank, meeting.size)
        self.meeting, self.sent = meeting, 0

    def _exchange(self, x):
        self.sent += x.numel()
        return self.meeting.exchange(self.rank, x.detach())

    def gather(self, x):
        return torch.stack(self._exchange(x))

    def gather_objects(self, mine):
        return self.meeting.exchange(self.rank, mine)

    def total(self, x):
        return torch.stack(self._exchange(x)).sum(0)

    def broadcast(self, x, source):
        return self._exchange(x)[source].clone()


class Meeting:
    """Where threads hand their tensors to each other; a thread that fails ends the others."""

    def __init__(self, size):
        self.size, self.barrier, self.given = size, threading.Barrier(size, timeout=60), [None] * size

    def exchange(self, rank, x):
        self.given[rank] = x
        self.barrier.wait()
        found = list(self.given)
        self.barrier.wait()
        return found


def in_threads(size, task):
    """Return what `task(shards)` returns in each of `size` threads."""
    meeting = Meeting(size)

    def run(rank):
        try:
            return task(ThreadShards(rank, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        running = [pool.submit(run, rank) for rank in range(size)]
    failed = [part.exception() for part in running if part.exception() is not None]
    for error in failed:
        if not isinstance(error, threading.BrokenBarrierError):
            raise error
    return [part.result() for part in running]
