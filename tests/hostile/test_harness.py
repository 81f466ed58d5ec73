"""The harness of the hostile inputs says how an attempt ended, and stops what runs or grows without end."""

from pathlib import Path

import pytest

from diffprobe.core.errors import SchemaError
from tests.hostile.conftest import FEW, ONE_IN, left_out
from tests.hostile.harness import KILLED, RAW, REFUSED, Canary, assert_refused, attempt, attempt_cli, canary

__all__ = ["canary"]  # a fixture

pytestmark = pytest.mark.slow  # the first attempt imports all libraries


def answer(word: str) -> str:
    return f"heard {word}"


def refuse(path: str) -> None:
    raise SchemaError(f"'{path}' is not one.")


def fail() -> None:
    raise ValueError("raw")


def wait() -> None:
    while True:
        pass


def grow(n_mb: int) -> int:
    return len(bytearray(n_mb * 2**20))


def unpickle(path: str) -> None:
    import pickle

    pickle.loads(Path(path).read_bytes())


def test_one_case_in_four_of_a_test_with_many_runs() -> None:
    few, many = ([f"{test}[{i}]" for i in range(n)] for test, n in (("few", FEW), ("many", 10 * ONE_IN)))
    dropped = left_out({"few": few, "many": many})
    assert dropped == left_out({"many": many}) < set(many)
    kept = [i for i, name in enumerate(many) if name not in dropped]
    assert len(kept) == 10 and {b - a for a, b in zip(kept, kept[1:], strict=False)} == {ONE_IN}


def test_a_result_a_refusal_and_a_raw_error_are_told_apart(tmp_path: Path) -> None:
    outcome = attempt(answer, "this")
    assert (outcome.status, outcome.stdout) == (0, "heard this\n")
    assert_refused(attempt(refuse, tmp_path / "x.json"), "SchemaError", "x.json")
    outcome = attempt(fail)
    assert outcome.status == RAW and "ValueError: raw" in outcome.stderr
    with pytest.raises(AssertionError, match="traceback"):
        assert_refused(outcome)
    with pytest.raises(AssertionError, match="y.json"):
        assert_refused(attempt(refuse, "x.json"), "y.json")


def test_commands_give_their_status_and_output(tmp_path: Path) -> None:
    assert "diffprobe" in attempt_cli(["--version"]).stdout
    outcome = attempt_cli(["no-such-verb"], cwd=tmp_path)
    assert outcome.status == REFUSED and "no-such-verb" in outcome.stderr


def test_time_and_memory_are_bounded_and_measured() -> None:
    assert attempt(wait, seconds=0.5).status == KILLED
    base = attempt(grow, 1).peak_mb
    assert 300 < attempt(grow, 500).peak_mb - base < 700
    outcome = attempt(grow, 4000)
    assert outcome.status == RAW and "MemoryError" in outcome.stderr


def test_a_canary_is_touched_by_what_executes_it(tmp_path: Path) -> None:
    bird = Canary(tmp_path / "touched")
    (tmp_path / "x.pkl").write_bytes(bird.pickle())
    assert not bird.touched
    assert attempt(unpickle, tmp_path / "x.pkl").status == 0
    assert bird.touched


def test_its_torch_file_and_its_source_touch_it_too(canary: Canary) -> None:
    import torch

    bird = Canary(canary.path.with_name("other"))
    path = canary.path.with_name("x.bin")
    path.write_bytes(bird.torch_file())
    torch.load(path, weights_only=False)
    assert bird.touched
    bird.path.unlink()
    exec(bird.source())
    assert bird.touched
