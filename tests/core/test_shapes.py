import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from diffprobe.core.shapes import FeatureMap, Features, Images, Labels


@jaxtyped(typechecker=beartype)
def classify(images: Images, maps: FeatureMap, features: Features, labels: Labels) -> None:
    """Takes one of each, all of one batch."""


def arguments(batch: int = 2) -> dict[str, torch.Tensor]:
    return {
        "images": torch.zeros(2, 3, 8, 6),
        "maps": torch.zeros(2, 5, 8, 6),
        "features": torch.zeros(2, 7),
        "labels": torch.zeros(batch, dtype=torch.int64),
    }


def test_shapes_of_one_batch_fit() -> None:
    classify(**arguments())


@pytest.mark.parametrize(
    "wrong",
    [
        {"images": torch.zeros(2, 4, 8, 6)},
        {"maps": torch.zeros(2, 5, 8, 7)},
        {"features": torch.zeros(2, 7, dtype=torch.int64)},
        {"labels": torch.zeros(3, dtype=torch.int64)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_other_shapes_do_not(wrong: dict) -> None:
    with pytest.raises(TypeCheckError):
        classify(**{**arguments(), **wrong})
