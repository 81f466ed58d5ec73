"""The nearest decoder row, and absorption, against plain loops."""

import numpy as np
import pytest

from diffprobe.analysis.latents.best_value import LabelledCodes
from diffprobe.analysis.latents.redundancy import absorption, nearest_rows, precise_latents
from diffprobe.core.errors import NonFinite
from diffprobe.core.groups import Groups
from tests.analysis.latents.planted_codes import collected


def test_nearest_rows_equal_the_full_table():
    rows = np.random.default_rng(0).standard_normal((1500, 6))  # more than one block
    rows[7] = -2 * rows[3]
    rows[11] = 0
    found = nearest_rows(rows)
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    table = np.abs(unit @ unit.T)
    np.fill_diagonal(table, -1)
    live = np.arange(1500) != 11
    np.testing.assert_allclose(np.abs(found.cosine[live]), table.max(1)[live], atol=1e-12)
    assert found.latent[3] == 7 and found.cosine[3] == pytest.approx(-1)
    assert found.latent[11] == -1 and np.isnan(found.cosine[11]) and 11 not in found.latent
    assert nearest_rows(np.ones((1, 3))).latent.tolist() == [-1]
    with pytest.raises(NonFinite, match="row 2"):
        nearest_rows(np.array([[1.0], [1.0], [np.nan]]))


def test_absorption_is_the_share_that_another_latent_of_the_value_has():
    generator = np.random.default_rng(1)
    dense = (generator.random((200, 8)) < 0.3).astype(np.float64)
    labels = generator.integers(0, 3, 200)
    dense[:, 0] = labels == 1
    dense[::4, 0] = 0  # misses a quarter, which latent 1 has
    dense[:, 1] = 0
    dense[::4, 1] = (labels == 1)[::4]
    codes = collected(dense, [f"{i:03d}" for i in range(200)], k=8)
    part = LabelledCodes(codes=codes, labels=labels, groups=Groups.of_values(np.arange(200)))
    value = np.array([1, 1, 0, 2, 0, 1, 2, -1])
    found = absorption(part, part, value, 3)
    precise = np.array([[(labels == v)[dense[:, j] > 0].mean() >= 0.9 for v in range(3)] for j in range(8)])
    for j, v in enumerate(value.tolist()):
        if v < 0:
            assert np.isnan(found[j])
            continue
        has = labels == v
        others = [i for i in range(8) if i != j and precise[i, v]]
        expected = (has & (dense[:, j] == 0) & (dense[:, others] > 0).any(1)).sum() / has.sum()
        assert found[j] == pytest.approx(expected)
    assert found[0] == pytest.approx((labels == 1)[::4].sum() / (labels == 1).sum()) and found[0] > 0.1


def test_a_latent_that_is_never_active_is_of_no_value():
    assert precise_latents(np.array([0.0, 9.0, 8.0]), np.array([0.0, 10.0, 10.0]), 0.9).tolist() == [False, True, False]
