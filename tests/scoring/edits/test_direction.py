"""Adding a vector: the change is strength times the vector, whatever the row."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.scoring.edits.direction import AblateDirection, AddVector


def test_it_adds_strength_times_the_vector():
    x, vector = torch.randn(5, 4), torch.arange(4.0)
    edit = AddVector(vector)
    assert edit.d_in == 4
    torch.testing.assert_close(edit(x, -1.5), x - 1.5 * vector)
    assert torch.equal(edit(x, 0.0), x)


def test_its_identity_is_that_of_the_numbers():
    one = AddVector(torch.arange(4.0)).identity
    assert AddVector(torch.arange(4.0).double()).identity == one
    assert AddVector(torch.arange(4.0) + 1).identity != one


def test_features_of_another_width_are_refused():
    with pytest.raises(ConfigError, match=r"\(5, 3\) do not fit the vector, which is for 4"):
        AddVector(torch.arange(4.0))(torch.zeros(5, 3), 1.0)


def test_ablation_removes_the_coordinate_and_nothing_else():
    x, unit = torch.randn(50, 4), torch.tensor([0.6, 0.8, 0.0, 0.0])
    edit = AblateDirection(unit, 0.3)
    found = edit(x, 1.0)
    torch.testing.assert_close(found @ unit, torch.full((50,), 0.3))
    torch.testing.assert_close(found - (found @ unit)[:, None] * unit, x - (x @ unit)[:, None] * unit)
    torch.testing.assert_close(edit(x, 0.5), (x + found) / 2)
    assert torch.equal(edit(x, 0.0), x)
    assert edit.identity != AblateDirection(unit, 0.4).identity
    with pytest.raises(ConfigError, match="norm 2"):
        AblateDirection(2 * unit, 0.0)
