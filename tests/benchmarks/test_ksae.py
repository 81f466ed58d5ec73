import json

import pytest
import torch

from diffprobe.benchmarks import ksae as bench
from diffprobe.benchmarks.ksae import (
    METHODS,
    PRECISIONS,
    KsaeReport,
    KsaeRow,
    Measured,
    bench_ksae,
    measure,
    planted,
)
from diffprobe.benchmarks.ksae_peers import PEERS, Unusable, version
from diffprobe.core.errors import ConfigError

SHAPE = (64, 32, 128, 8)


def test_ours_learns_what_the_dense_step_learns() -> None:
    ours, *dense = (measure(name, "float32", SHAPE, 6, torch.get_num_threads()) for name in METHODS[1:])
    assert [one.method for one in dense] == ["ours_dense", "dense"]
    assert all(ours.fvu == pytest.approx(one.fvu, rel=1e-4) for one in dense)
    untrained = measure("ours", "float32", SHAPE, 2, torch.get_num_threads())
    assert ours.fvu < untrained.fvu < 1.5
    assert 0 < ours.loaded_mib <= ours.peak_mib


@pytest.mark.parametrize("name", PEERS)
def test_another_library_is_near_after_equal_steps(name: str) -> None:
    try:
        theirs = measure(name, "float32", SHAPE, 6, torch.get_num_threads())
    except Unusable as error:
        pytest.skip(f"{name}: {error}")
    ours = measure("ours", "float32", SHAPE, 6, torch.get_num_threads())
    assert theirs.fvu == pytest.approx(ours.fvu, rel=0.1)


@pytest.mark.slow
def test_what_is_not_installed_is_named_in_the_report() -> None:
    absent = tuple(name for name in PEERS if version(name) is None)
    report = bench_ksae(((16, 8, 32, 4),), steps=2, rounds=1, peers=absent)
    assert report.absent == dict.fromkeys(absent, "not installed") and report.versions == {}
    assert json.loads(report.to_json())["absent"] == report.absent
    assert report.rows[0].peers("float32") == () and report.rows[0].name == "16, 8, 32, 4"


def test_the_fastest_other_comes_first() -> None:
    def one(method: str, seconds: float) -> Measured:
        numbers = {"seconds": seconds, "fvu": 0.5, "peak_mib": 2.0, "loaded_mib": 1.0}
        return Measured(method=method, precision="float32", **numbers)

    found = (one("ours", 1.0), one("sparsify", 3.0), one("overcomplete", 2.0))
    row = KsaeRow(batch=8, d_in=4, n_latents=8, k=2, measured=found)
    report = KsaeReport(machine="one", steps=2, rounds=1, rows=(row,), versions={"sparsify": "1"}, absent={})
    assert [peer.method for peer in report.rows[0].peers("float32")] == ["overcomplete", "sparsify"]
    assert row.peers("bfloat16") == ()


def test_of_several_turns_the_fastest_counts(monkeypatch) -> None:
    times = iter([3.0, 9.0, 8.0, 5.0, 7.0, 8.0, 3.0, 6.0, 2.0, 4.0, 7.0, 9.0, 6.0, 9.0, 4.0, 9.0])

    def turn(method: str, precision: str, shape: object, steps: int, device: str) -> Measured:
        return Measured(method=method, precision=precision, seconds=next(times), fvu=None, peak_mib=1.0, loaded_mib=1.0)

    monkeypatch.setattr(bench, "_in_own_process", turn)
    row = bench_ksae(((16, 8, 32, 4),), steps=2, rounds=2, peers=()).rows[0]
    fastest = {precision: [row.of(name, precision).seconds for name in METHODS] for precision in PRECISIONS}
    assert fastest == {"float32": [2.0, 4.0, 7.0, 5.0], "bfloat16": [6.0, 8.0, 3.0, 6.0]}
    assert len(row.measured) == 8


def test_the_features_are_sparse_sums_about_a_large_mean() -> None:
    x = planted(500, 32, seed=0)
    assert torch.equal(x, planted(500, 32, seed=0)) and not torch.equal(x, planted(500, 32, seed=1))
    assert x.mean(0).norm() > 2 * x.std(0).norm()


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ConfigError, match="k at most n_latents"):
        bench_ksae(((8, 4, 4, 5),))
    with pytest.raises(ConfigError, match="rounds=0"):
        bench_ksae(((8, 4, 4, 2),), rounds=0)
    with pytest.raises(ConfigError, match="device=tpu"):
        bench_ksae(((8, 4, 4, 2),), device="tpu")
