"""Toy features for the tests of LightningModules."""

import pytest

from tests.toy import Toy


@pytest.fixture
def toy() -> type[Toy]:
    return Toy
