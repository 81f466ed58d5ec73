"""The rows of a sample: their order, and picking some of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError
from diffprobe.features.row_layout import RowLayout, by_place, joint_width, select

AXES = {"mean": 0, "tokens9": 1, "none": 2}


@settings(max_examples=50, deadline=None)
@given(pool=st.sampled_from(sorted(AXES)), draws=st.sampled_from([(), (1,), (2,)]), data=st.data())
def test_picked_rows_are_those_of_the_flat_view(pool, draws, data):
    n, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    places = tuple(data.draw(st.integers(1, 3)) for _ in range(AXES[pool]))
    shape = (n, *draws, width, *places) if pool == "none" else (n, *draws, *places, width)
    cell, values = f"mid@t1:empty:{pool}", torch.arange(torch.Size(shape).numel()).float().view(shape)
    view = by_place(values, cell)
    each = torch.Size((*draws, *places)).numel()
    assert view.shape == (n, *draws, *places, width)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, n * each - 1), max_size=6)), dtype=torch.int64)
    expected = view.reshape(n * each, width)[rows]
    assert select(values, cell, rows // each, rows % each).equal(expected)
    held_by_place = view.contiguous().movedim(-1, -3) if pool == "none" else values
    assert held_by_place.equal(values) and select(held_by_place, cell, rows // each, rows % each).equal(expected)


def test_a_layout_numbers_the_rows_of_several_cells_through():
    features = {"a@t1:empty:none": torch.zeros(5, 2, 3, 4), "a@t9:empty:none": torch.zeros(5, 2, 1, 2)}
    layout = RowLayout.of(list(features), features)
    assert (layout.starts, layout.total, layout.width) == ((0, 12), 14, 2)
    assert layout.group(torch.tensor([0, 11, 12, 13])).tolist() == [0, 0, 1, 1]


def test_widths_and_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="cells of one width"):
        RowLayout.of(["a@t1", "a@t9"], {"a@t1": torch.zeros(5, 2), "a@t9": torch.zeros(5, 3)})
    with pytest.raises(ConfigError, match="expected for pool=mean: 1 axes after the samples"):
        by_place(torch.zeros(5, 2, 3, 4), "a@t1:empty:mean")
    assert joint_width({"a": 3, "b": 3}) == 3
