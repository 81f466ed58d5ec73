import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.errors import EmptyClass, NonFinite
from diffprobe.metrics.decoder_coherence import decoder_coherence, make


@given(st.integers(2, 40), st.integers(1, 9), st.integers(1, 50), st.integers(0, 99))
def test_chunks_do_not_matter(n, d, chunk, seed):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 3
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    cosines = (unit @ unit.T).abs()[*torch.triu_indices(n, n, 1)]
    found = decoder_coherence(rows, chunk=chunk)
    assert found.largest == pytest.approx(float(cosines.max()), abs=1e-7)
    assert found.mean == pytest.approx(float(cosines.mean()), abs=1e-7)
    a, b = found.pair
    assert a < b and float((unit[a] @ unit[b]).abs()) == pytest.approx(found.largest, abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 2048])
def test_orthogonal_rows_have_none(chunk):
    for n in (2, 3, 7):
        assert decoder_coherence(torch.eye(n), chunk=chunk) == (0, 0, (0, 1))


@pytest.mark.parametrize("chunk", [1, 2, 3, 2048])
def test_opposed_directions_count_as_much_as_alike_ones(chunk):
    angles = torch.tensor([0.0, 2.0, 4.1], dtype=torch.float64)  # all cosines are negative
    found = decoder_coherence(torch.stack([angles.cos(), angles.sin()], 1), chunk=chunk)
    assert found.pair == (0, 2) and found.largest == pytest.approx(-math.cos(4.1), abs=1e-12)


def test_twins_are_found_whatever_their_sign_and_length():
    rows = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    rows[41] = -7 * rows[3]
    found = decoder_coherence(rows, chunk=16)
    assert found.pair == (3, 41) and found.largest == pytest.approx(1, abs=1e-12)


def test_random_directions_have_the_mean_they_should():
    rows = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    assert decoder_coherence(rows).mean == pytest.approx(math.sqrt(2 / (math.pi * 64)), rel=0.02)


def test_autocast_does_not_round_it():
    rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert decoder_coherence(rows) == decoder_coherence(rows.clone())


def test_rows_that_cannot_be_compared_are_an_error():
    with pytest.raises(EmptyClass, match="1 decoder rows"):
        decoder_coherence(torch.ones(1, 3))
    for bad in (0.0, float("nan")):
        rows = torch.ones(4, 3)
        rows[2] = bad
        with pytest.raises(NonFinite, match="row 2 is the first"):
            decoder_coherence(rows)


def test_the_metric_reports_value_and_pair_of_the_last_decoder():
    rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    metric, found = make(d_in=4, n_latents=9), decoder_coherence(rows)
    metric.update(rows.flip(0))
    metric.update(rows)
    assert float(metric.compute()) == found.largest and metric.detail() == {"pair": list(found.pair)}
