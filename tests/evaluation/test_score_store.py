"""Errors on disk: a run that was killed continues, and leaves the same bytes."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffprobe.core.errors import SchemaError
from diffprobe.evaluation.score_candidates import questions
from diffprobe.evaluation.score_settings import CandidateRule
from diffprobe.evaluation.score_store import stored_errors
from diffprobe.probes.score.staged_errors import Stage
from tests.evaluation.score_world import encoded

TIMES = [500, 250, 750]


class Score:
    """Errors that follow from (image, candidate, timestep); it stops after some calls."""

    def __init__(self, stop_after: int = 10**6) -> None:
        self.calls, self.stop_after = 0, stop_after

    def __call__(self, latents, keys, conditions, timesteps) -> Tensor:
        self.calls += 1
        if self.calls > self.stop_after:
            raise KeyboardInterrupt
        text = conditions["text"][..., 0].double()
        t = torch.tensor(timesteps).double()
        return (latents.flatten(1)[:, :1, None].double() - text[..., None]).abs().sqrt() + (text[..., None] * t).cos()


def run(
    folder: Path,
    score: Score,
    *,
    process: tuple[int, int] = (0, 1),
    weights: float = 1.0,
    whole: bool = False,
    **facts: object,
) -> Tensor | None:
    world = encoded()
    (question,) = questions(CandidateRule(n=5), world, seed=0)
    conditions = {"text": torch.arange(float(len(question.values)))[:, None]}
    return stored_errors(
        folder, {"seed": 0, **facts}, score, lambda rows: world.latents[rows], world.table.keys, conditions, question,
        TIMES, torch.tensor([weights, 1.0, 1.0], dtype=torch.float64), [Stage(n_timesteps=1, kept=2)], chunk=6,
        process=process, whole=whole,
    )  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def test_an_interrupted_run_continues_and_leaves_the_same_bytes(tmp_path: Path) -> None:
    whole, score = tmp_path / "whole", Score()
    expected = run(whole, score)
    assert len(digests(whole)) == 4 and expected.shape == (20, 5, 3)
    for stop in (1, 3, 5):
        broken = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            run(broken, Score(stop))
        done = digests(broken)
        later = Score()
        assert torch.equal(run(broken, later).nan_to_num(-1), expected.nan_to_num(-1))
        assert digests(broken) == digests(whole) and done.items() <= digests(whole).items()
        assert later.calls == score.calls - 2 * len(done)
    again = Score()
    run(whole, again)
    assert again.calls == 0


def test_other_facts_have_other_files(tmp_path: Path) -> None:
    run(tmp_path, Score())
    run(tmp_path, Score(), seed=1)
    run(tmp_path, Score(), weights=2.0)  # they decide what is pruned
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("count", [2, 3, 7])
def test_several_processes_leave_the_bytes_of_one(tmp_path: Path, count: int) -> None:
    whole = run(tmp_path / "whole", Score())
    parts = [run(tmp_path / "parts", Score(), process=(index, count)) for index in reversed(range(count))]
    assert all(part is None for part in parts[:-1])  # chunk 0 is of the process that comes last
    assert whole is not None and parts[-1] is not None
    assert torch.equal(parts[-1].nan_to_num(-1), whole.nan_to_num(-1))
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_a_process_that_needs_all_leaves_unfinished_files_of_others(tmp_path: Path) -> None:
    assert run(tmp_path, Score(), process=(0, 2)) is None
    (place,) = tmp_path.iterdir()
    unfinished = place / ".000001.safetensors.0123abcd.tmp"
    unfinished.touch()
    assert run(tmp_path, Score(), process=(0, 2), whole=True) is not None and unfinished.exists()
    assert run(tmp_path, Score()) is not None and not unfinished.exists()


def test_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    run(tmp_path, Score())
    path = next(tmp_path.rglob("000001.safetensors"))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(SchemaError, match="000001"):
        run(tmp_path, Score())
