"""The shape checks are on in the whole test run: a call with a wrong shape, axis or dtype raises."""

import os
import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from diffprobe.core import shapes
from diffprobe.metrics.fvu import fvu

WRONG = {
    "rank": (torch.zeros(4), torch.zeros(4)),
    "axis": (torch.zeros(4, 3), torch.zeros(4, 2)),
    "dtype": (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3)),
    "type": ([[0.0]], torch.zeros(1, 1)),
}
CALL = "import torch; from diffprobe.metrics.fvu import fvu; fvu(torch.zeros(4), torch.zeros(4))"


@pytest.mark.parametrize("case", WRONG)
def test_a_call_with_wrong_tensors_raises(case: str) -> None:
    with pytest.raises(TypeCheckError, match="fvu"):
        fvu(*WRONG[case])


@pytest.mark.slow
def test_a_process_that_a_test_starts_is_checked() -> None:
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "TypeCheckError" in done.stderr


@pytest.mark.slow
def test_the_switch_turns_the_checks_off() -> None:
    environment = {**os.environ, "DIFFPROBE_SHAPE_CHECKS": "0"}
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, check=False, env=environment)
    assert "TypeCheckError" not in done.stderr


@pytest.mark.parametrize(
    ("name", "fits", "does_not"),
    [
        ("Images", torch.zeros(2, 3, 8, 6), torch.zeros(2, 4, 8, 6)),
        ("FeatureMap", torch.zeros(2, 5, 8, 6), torch.zeros(2, 5, 8)),
        ("Features", torch.zeros(2, 7), torch.zeros(2, 7, dtype=torch.int64)),
    ],
)
def test_shared_shapes_are_what_their_names_state(name: str, fits: torch.Tensor, does_not: torch.Tensor) -> None:
    shape = getattr(shapes, name)
    assert isinstance(fits, shape) and not isinstance(does_not, shape)
