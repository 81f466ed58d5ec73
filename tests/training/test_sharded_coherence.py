"""The coherence of a decoder on several processes is that of the whole one."""

import importlib.util
from pathlib import Path

import pytest
import torch

from diffprobe.core.errors import EmptyClass, NonFinite
from diffprobe.metrics import measured_on
from diffprobe.metrics.decoder_coherence import WholeDecoder, decoder_coherence
from diffprobe.probes.sae.latent_shards import LatentShards
from diffprobe.training.sae_scores import decoder_scores
from diffprobe.training.sharded_coherence import sharded_coherence

_spec = importlib.util.spec_from_file_location("shard_threads", Path(__file__).parents[1] / "shard_threads.py")
threads = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(threads)


def on(size, rows, **options):
    def measure(shards):
        span = shards.span(len(rows))
        return sharded_coherence(rows[span.start : span.stop], len(rows), shards, **options)

    return threads.in_threads(size, measure)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("chunk", [2, 100])
def test_each_pair_counts_once_on_any_number_of_processes(size, chunk):
    rows = torch.randn(11, 5, generator=torch.Generator().manual_seed(0))
    whole = decoder_coherence(rows)
    for found in on(size, rows, chunk=chunk):
        assert found.pair == whole.pair and found.largest == pytest.approx(whole.largest, rel=1e-12)
        assert found.mean == pytest.approx(whole.mean, rel=1e-6)


def test_bad_rows_are_named_by_their_number_in_the_whole():
    rows = torch.randn(6, 3)
    rows[4] = 0
    with pytest.raises(NonFinite, match="1 of 6 decoder rows .* row 4"):
        on(2, rows)
    with pytest.raises(EmptyClass, match="1 decoder rows"):
        sharded_coherence(rows[:1], 1, LatentShards())


def test_every_metric_of_decoders_takes_what_is_known_of_the_whole_one():
    """Of a part alone, a metric would record a number that is not the decoder's."""
    rows = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    whole = WholeDecoder(decoder_coherence(rows), (8, 3))
    one, part = decoder_scores(rows), decoder_scores(rows[:2], whole)
    assert len(one.measured) == len(list(measured_on("sae_decoder"))) and part == one
