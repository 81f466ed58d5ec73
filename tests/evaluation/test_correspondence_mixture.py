"""States of a mixture: written once, read again as they were, refused for other pairs."""

from pathlib import Path

import pytest
import torch

from diffprobe.core.errors import SchemaError
from diffprobe.evaluation.correspondence_mixture import EQUAL, FOLDER, MIXTURE, mixed_maps, trained_states
from diffprobe.evaluation.correspondence_settings import MixtureTraining
from diffprobe.probes.dense.mixture import TrainingPair
from tests.probes.dense.test_mixture import KNOWS, NOISE, PAIRS

SETTINGS = MixtureTraining(steps=5, batch=2, width=32, groups=2, every=2)


def never() -> list[TrainingPair]:
    raise AssertionError("read again")


def test_states_are_read_as_they_were_trained(tmp_path: Path) -> None:
    def states(rung: str, read: object, digest: str = "d") -> dict[str, torch.nn.Module]:
        return dict(
            trained_states(rung, SETTINGS, read, (KNOWS, NOISE), tmp_path, resolution=16, digest=digest)  # type: ignore[arg-type]
        )

    first = states(MIXTURE, lambda: PAIRS)
    again = states(MIXTURE, never)
    assert list(first) == list(again) == ["step2", "step4", "step5"]
    for name, one in first.items():
        assert all(torch.equal(value, again[name].state_dict()[key]) for key, value in one.state_dict().items())
    assert not torch.equal(first["step2"].mixing, first["step5"].mixing)
    assert not states(EQUAL, lambda: PAIRS)["step5"].mixing.any()
    with pytest.raises(SchemaError, match="hyperfeatures.safetensors"):
        states(MIXTURE, never, digest="other")
    assert (tmp_path / FOLDER).is_dir()


def test_mixed_maps_are_those_of_each_state(tmp_path: Path) -> None:
    states = trained_states(MIXTURE, SETTINGS, lambda: PAIRS, (KNOWS, NOISE), tmp_path, resolution=16, digest="d")
    found = mixed_maps(lambda samples: dict(PAIRS[0].maps), states)([])
    assert list(found) == list(states)
    for name, state in states.items():
        assert torch.equal(found[name], state(PAIRS[0].maps)) and not found[name].requires_grad
