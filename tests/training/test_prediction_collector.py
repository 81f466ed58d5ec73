"""Collected samples: sorted, exactly once, and the same for one process and for several of unequal shares."""

import threading

import pytest
import torch

from diffprobe.core.errors import RunFailed
from diffprobe.training.prediction_collector import PredictionCollector

LAYOUT = {
    "ids": (torch.int32, (2,)), "scores": (torch.float16, (3,)), "one": (torch.float32, ()), "few": (torch.int16, ()),
}  # fmt: skip
KEYS = [f"é/{i}" for i in (5, 3, 11, 0, 2, 10, 7)]


def values(rows):
    n = torch.tensor([int(KEYS[row].partition("/")[2]) for row in rows])
    scores = torch.stack([n, n + 1, n + 2], dim=1) / 7
    return {
        "ids": torch.stack([n, -n], dim=1),
        "scores": scores,
        "one": torch.stack([n, n], dim=1).double()[:, 0] / 3,
        "few": n,
    }


def collected(rows, size=2):
    collector = PredictionCollector(LAYOUT)
    for at in range(0, len(rows), size):
        part = rows[at : at + size]
        collector.update([KEYS[row] for row in part], values(part))
    return collector


def in_processes(shares):
    """Compute in one thread per process, with a gather that waits for all of them."""
    barrier, board, found = threading.Barrier(len(shares)), [None] * len(shares), [None] * len(shares)

    def work(rank):
        def gather(part):
            board[rank] = part
            barrier.wait(10)
            assert len({tuple(other.shape) for other in board}) == 1
            whole = torch.cat(board)
            barrier.wait(10)
            return whole

        found[rank] = collected(shares[rank]).compute(gather)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(shares))]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    return found


@pytest.mark.parametrize(
    "shares", [[[0, 2, 4, 6], [1, 3, 5]], [[], [0, 1, 2, 3, 4, 5, 6]], [[6, 0], [5, 4, 3, 2], [1]]]
)
def test_unequal_shares_give_what_one_process_gives(shares):
    keys, tensors = collected(list(range(7))).compute(lambda part: part)
    assert keys == tuple(sorted(KEYS)) and tensors["ids"][:, 0].tolist() == [0, 10, 11, 2, 3, 5, 7]
    assert [tensors[name].dtype for name in LAYOUT] == [dtype for dtype, _ in LAYOUT.values()]
    for other_keys, others in in_processes(shares):
        assert other_keys == keys and all(others[name].equal(tensors[name]) for name in LAYOUT)


def test_no_samples_and_wrong_shapes():
    keys, tensors = PredictionCollector(LAYOUT).compute(lambda part: part)
    assert keys == () and tensors["scores"].shape == (0, 3)
    with pytest.raises(RunFailed, match=r"'one'.*\[2, 1\].*\[2\]"):
        PredictionCollector(LAYOUT).update(KEYS[:2], {**values([0, 1]), "one": torch.zeros(2, 1)})
