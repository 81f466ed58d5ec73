"""What all edits share: the check of the width, and the digest of tensors."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.scoring.edits.base import check_width, digest_tensors


def test_features_of_another_width_are_refused():
    check_width(torch.zeros(0, 3), 3, "the vector")
    with pytest.raises(ConfigError, match=r"\(2, 4\) do not fit the vector, which is for 3 numbers"):
        check_width(torch.zeros(2, 4), 3, "the vector")
    with pytest.raises(ConfigError, match=r"\(3,\)"):
        check_width(torch.zeros(3), 3, "the vector")


def test_the_digest_is_of_names_shapes_and_numbers_alone():
    one = torch.arange(6.0)
    base = digest_tensors({"a": one, "b": one})
    assert digest_tensors({"b": one.clone(), "a": one}) == base
    others = [
        {"a": one, "c": one},
        {"a": one.reshape(2, 3), "b": one},
        {"a": one.double(), "b": one},
        {"a": one + 1, "b": one},
    ]
    assert len({base, *map(digest_tensors, others)}) == 5
    assert digest_tensors({"a": torch.arange(12.0)[::2]}) == digest_tensors({"a": torch.arange(12.0)[::2].clone()})
