import pytest
import torch

from diffprobe.analysis.caption_regression import CaptionRegression, RegressionRule, choose_nearest
from diffprobe.core.errors import ConfigError, EmptyClass


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_it_is_the_closed_form_of_weighted_kernel_ridge_regression():
    inputs, latents, asked = draw(30, 4), draw(30, 2, 3, 3, seed=1), draw(7, 4, seed=2)
    groups = [f"g{min(i, 20)}" for i in range(30)]  # ten of one drawing
    rule = RegressionRule(images=30, width=0.7, ridge=0.2, balance_power=0.5)
    found = CaptionRegression(inputs, latents, groups, rule)(asked)

    centre = inputs.double().mean(0)
    scale = (inputs.double() - centre).norm(dim=1).mean()
    x, y = (inputs - centre) / scale, (asked - centre) / scale
    kernel = lambda a, b: torch.exp(-0.7 * (a[:, None] - b[None]).square().sum(-1))  # noqa: E731
    weights = torch.tensor([10.0**-0.5 if group == "g20" else 1.0 for group in groups]).double()
    flat = latents.flatten(1).double()
    dual = torch.linalg.inv(weights.diag() @ kernel(x, x) + 0.2 * torch.eye(30)) @ (
        weights.diag() @ (flat - flat.mean(0))
    )
    torch.testing.assert_close(found.double(), kernel(y, x) @ dual + flat.mean(0), rtol=1e-4, atol=1e-4)


def test_neither_scale_nor_place_of_the_inputs_matters():
    inputs, latents, asked = draw(30, 4), draw(30, 2, 3, 3, seed=1), draw(7, 4, seed=2)
    fit = lambda x: CaptionRegression(x, latents, ["a"] * 30, RegressionRule(images=30))  # noqa: E731
    torch.testing.assert_close(fit(inputs)(asked), fit(inputs * 50 + 3)(asked * 50 + 3), rtol=1e-3, atol=1e-3)


def test_captions_that_are_all_alike_are_refused():
    rule = RegressionRule(images=3)
    with pytest.raises(EmptyClass, match="3 captions"):
        CaptionRegression(torch.ones(3, 2), draw(3, 1, 1, 1), ["a", "b", "c"], rule)
    with pytest.raises(EmptyClass, match="0 captions"):
        CaptionRegression(torch.ones(0, 2), draw(0, 1, 1, 1), [], rule)


@pytest.mark.parametrize("wrong", [{"images": -1}, {"width": 0.0}, {"ridge": 0.0}])
def test_settings_out_of_range_are_refused(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises(ConfigError, match=f"{name}={value:g}"):
        RegressionRule(**wrong)


def test_the_nearest_is_chosen_and_a_tie_is_wrong():
    expected = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    latents = torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.0, 0.0]]).reshape(3, 2, 1, 1)
    candidates = torch.tensor([[0, 1], [1, 0], [2, 0]])
    assert choose_nearest(expected, latents, candidates).tolist() == [True, False, False]
