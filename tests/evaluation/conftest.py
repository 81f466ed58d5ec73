"""Tiny finished runs that the tests of pages share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluation.page_runs import DIRECTION, SAE, SPATIAL, trainer
from tests.evaluation.planted_use import planted_use_run


@pytest.fixture(scope="session")
def train_tiny(tiny_sd: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    return trainer(tiny_sd, tiny_shards, tmp_path_factory.mktemp("page-runs"))


@pytest.fixture(scope="session")
def small_sae(train_tiny: Callable[..., Path]) -> Path:
    return train_tiny(*SAE, "probe.params.k=2")


@pytest.fixture(scope="session")
def large_sae(train_tiny: Callable[..., Path]) -> Path:
    return train_tiny(*SAE, "probe.params.k=8")


@pytest.fixture(scope="session")
def spatial_sae(train_tiny: Callable[..., Path]) -> Path:
    return train_tiny(*SPATIAL)


@pytest.fixture(scope="session")
def direction(train_tiny: Callable[..., Path]) -> Path:
    return train_tiny(*DIRECTION)


@pytest.fixture(scope="session")
def planted_use(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_use_run(tmp_path_factory.mktemp("planted-use"), tiny_sd)
