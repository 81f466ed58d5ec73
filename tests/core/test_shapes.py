import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from diffprobe.core.shapes import FeatureMap, Features, Images


@jaxtyped(typechecker=beartype)
def classify(images: Images, maps: FeatureMap, features: Features) -> None:
    """Take one tensor of each shape, all of one batch."""


def arguments() -> dict[str, torch.Tensor]:
    return {
        "images": torch.zeros(2, 3, 8, 6),
        "maps": torch.zeros(2, 5, 8, 6),
        "features": torch.zeros(2, 7),
    }


def test_shapes_of_one_batch_fit() -> None:
    classify(**arguments())


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": torch.zeros(2, 4, 8, 6)},
        {"maps": torch.zeros(2, 5, 8, 7)},
        {"features": torch.zeros(2, 7, dtype=torch.int64)},
        {"features": torch.zeros(3, 7)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_other_shapes_do_not(wrong: dict[str, torch.Tensor]) -> None:
    with pytest.raises(TypeCheckError):
        classify(**{**arguments(), **wrong})
