import pytest

import diffprobe


@pytest.mark.parametrize("name", diffprobe.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(diffprobe, name) is not None


def test_other_names_are_refused_as_python_does() -> None:
    with pytest.raises(AttributeError, match="no attribute 'DiffusionFeature'"):
        diffprobe.DiffusionFeature  # noqa: B018
