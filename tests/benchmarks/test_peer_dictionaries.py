"""Dictionaries of other libraries: what is not installed is named; what is, converts to the same function."""

import pytest
import torch

from diffprobe.benchmarks.ksae import planted
from diffprobe.benchmarks.peer_dictionaries import LIBRARIES, PeerLibrary
from diffprobe.benchmarks.timed_dictionaries import TrainingSettings, train_peer


def test_a_library_that_is_not_installed_is_named() -> None:
    library = PeerLibrary(distribution="no-such-distribution", module="no_such", make=LIBRARIES["SAELens"].make)
    assert "not installed" in str(library.reason_it_is_absent())


def test_a_library_that_cannot_be_imported_is_named() -> None:
    library = PeerLibrary(distribution="torch", module="no_such_module", make=LIBRARIES["SAELens"].make)
    assert "its import fails: ModuleNotFoundError" in str(library.reason_it_is_absent())


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_installed_library_trains_and_converts(name: str) -> None:
    library = LIBRARIES[name]
    if (reason := library.reason_it_is_absent()) is not None:
        pytest.skip(f"{name}: {reason}")
    rows = planted(400, 12, seed=0) * 5 + 2
    # `train_peer` itself compares both reconstructions.
    found = train_peer(library.make, rows, TrainingSettings(seconds=0.3, k=4, expansion=2, batch=64), seed=0)
    with torch.no_grad():
        fvu = float((rows - found.sae(rows)[0]).square().sum() / (rows - rows.mean(0)).square().sum())
    assert found.steps > 3 and fvu < 0.9
