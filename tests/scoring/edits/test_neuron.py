"""Edits of raw neurons change their own numbers alone."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass, UnknownName
from diffprobe.scoring.edits.neuron import EditNeurons
from diffprobe.scoring.steering import Steering

ROWS = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7) + 2


@pytest.mark.parametrize("mode", ["add", "ablate"])
def test_it_changes_its_neurons_alone(mode):
    x = ROWS[:9] + 1
    edit = EditNeurons.of((1, 4), ROWS, mode)
    found = edit(x, 1.5)
    others = [0, 2, 3, 5]
    assert torch.equal(found[:, others], x[:, others]) and torch.equal(edit(x, 0.0), x)
    sd, mean = ROWS.std(0, correction=0), ROWS.mean(0)
    expected = x + 1.5 * sd if mode == "add" else x + 1.5 * (mean - x)
    torch.testing.assert_close(found[:, [1, 4]], expected[:, [1, 4]])


def test_full_ablation_leaves_the_mean():
    found = EditNeurons.of((2,), ROWS, "ablate")(ROWS, 1.0)
    torch.testing.assert_close(found[:, 2], ROWS[:, 2].mean().expand(60))


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_at_a_tap_the_other_channels_of_the_map_stay(pool):
    x = torch.randn(2, 6, 4, 4)
    changed = Steering(tap="t", pool=pool, edit=EditNeurons.of((3,), ROWS)).change(2.0)(x)
    others = [0, 1, 2, 4, 5]
    assert torch.equal(changed[:, others], x[:, others])
    torch.testing.assert_close(changed[:, 3], x[:, 3] + 2 * ROWS[:, 3].std(correction=0))


def test_bad_input():
    with pytest.raises(ConfigError, match="neuron 6 is out of range: 0 to 5"):
        EditNeurons.of((6,), ROWS)
    with pytest.raises(ConfigError, match="each once"):
        EditNeurons.of((1, 1), ROWS)
    with pytest.raises(EmptyClass, match="neuron 0 does not vary"):
        EditNeurons.of((0,), torch.zeros(4, 6))
    with pytest.raises(UnknownName, match="mode"):
        EditNeurons.of((0,), ROWS, "set")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="2 units and 1 means for 1 neurons"):
        EditNeurons(neurons=(0,), units=(1.0, 1.0), means=(0.0,), width=6)
    with pytest.raises(ConfigError, match=r"\(2, 5\)"):
        EditNeurons.of((0,), ROWS)(torch.zeros(2, 5), 1.0)


def test_its_identity_depends_on_all_that_fixes_it():
    found = {
        EditNeurons.of((0,), ROWS).identity, EditNeurons.of((1,), ROWS).identity,
        EditNeurons.of((0,), ROWS, "ablate").identity, EditNeurons.of((0,), ROWS * 2).identity,
    }  # fmt: skip
    assert len(found) == 4
