from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones import cpu_kernels
from diffprobe.backbones.cpu_kernels import (
    MARGIN,
    check_kernels,
    choose_kernels,
    linear_shapes,
    measured_ratio,
    onednn_linear,
    use_onednn,
)
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.plan import ReadPlan, make_configs, make_plan
from diffprobe.core.errors import ConfigError

KEYS = ["a/0", "a/1", "b.2", "b.3", "c"]
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")


@pytest.fixture(scope="module")
def plan(tiny_sd: Path) -> ReadPlan:
    options = {"taps": ["mid_block"], "timesteps": [100, 300], "device": "cpu", "cpu_kernels": "auto"}
    return make_plan(*make_configs(str(tiny_sd), options))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each product that oneDNN computes."""
    found: list[int] = []

    def count(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found.append(x.numel() // weight.shape[1])
        return onednn_linear(x, weight, bias)

    monkeypatch.setattr(cpu_kernels, "onednn_linear", count)
    return found


@torch.no_grad()
def test_only_large_float32_products_go_to_onednn(calls: list[int]) -> None:
    class Own(nn.Linear):
        pass

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(300, 200), nn.GELU(), nn.Linear(200, 100, bias=False), Own(100, 50))
    x, seen = torch.randn(2, 20, 300), list[Tensor]()
    expected = network(x)
    assert use_onednn(network) == 2
    network[0].register_forward_hook(lambda module, args, output: seen.append(output))
    torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=0)
    assert calls == [40, 40] and seen[0].shape == (2, 20, 200)
    torch.testing.assert_close(network(x[:1, :4]), expected[:1, :4], atol=1e-5, rtol=0)
    network.double()(x.double())
    assert calls == [40, 40]
    assert set(network.state_dict()) == {"0.weight", "0.bias", "2.weight", "3.weight", "3.bias"}


@torch.no_grad()
def test_onednn_computes_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, 512, generator=generator) for _ in range(2))
    exact = x.double() @ weight.double().T
    assert float((onednn_linear(x, weight, None) - exact).norm() / exact.norm()) < 1e-6


@pytest.mark.parametrize("offload", ["none", "blocks"])
def test_features_differ_by_rounding_only(
    offload: str, load: Callable[..., DiffusionFeatures], images: Tensor, calls: list[int]
) -> None:
    plain, by_onednn = load(), load(cpu_kernels="onednn", offload=offload)
    (expected,) = plain(images, keys=KEYS).values()
    assert calls == []
    (found,) = by_onednn(images, keys=KEYS).values()
    assert calls
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert by_onednn.fingerprint == plain.fingerprint


def test_products_are_those_of_a_full_pass(plan: ReadPlan) -> None:
    def of(rows: int | None) -> dict[tuple[int, int], int]:
        limited = replace(plan, backbone=replace(plan.backbone, max_rows_per_pass=rows))
        return {(d_in, d_out): found for found, d_in, d_out, _ in linear_shapes(limited)}

    many, few = of(4), of(2)
    assert few and max(of(None).values()) == 512 and min(many.values()) >= 32
    assert all(many[layer] == min(512, 2 * rows) for layer, rows in few.items())


def test_the_products_with_most_operations_are_measured() -> None:
    shapes = ((64, 10, 10, 1), (64, 100, 100, 4), (64, 100, 100, 5), (64, 20, 20, 1))
    assert cpu_kernels._largest(shapes) == ((64, 100, 100, 5), (64, 100, 100, 4))


@torch.no_grad()
def test_both_libraries_are_timed_alike(calls: list[int]) -> None:
    assert measured_ratio.__wrapped__(((32, 8, 8, 1), (40, 8, 16, 3))) > 0
    assert calls == [32] * 6 + [40] * 6


@pytest.mark.parametrize(("ratio", "used"), [(MARGIN, "onednn"), (MARGIN - 0.01, "mkl")])
def test_auto_takes_onednn_where_it_is_clearly_faster(
    ratio: float, used: str, plan: ReadPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kernels, "measured_ratio", lambda shapes: ratio)
    choice = choose_kernels(plan)
    assert choice.used == used and f"oneDNN is {ratio:.2f} x as fast" in str(choice)
    named = replace(plan, backbone=replace(plan.backbone, cpu_kernels="onednn"))
    assert str(choose_kernels(named)) == "linear layers by onednn"


def test_a_setting_without_effect_is_refused(plan: ReadPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernels(plan)
    with pytest.raises(ConfigError, match="no linear layer that it is for"):
        check_kernels(replace(plan, needed=frozenset({"conv_in"})))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="without oneDNN"):
        check_kernels(plan)
    monkeypatch.setattr(cpu_kernels, "choose_device", lambda name: torch.device("cuda"))
    with pytest.raises(ConfigError, match="the backbone runs on cuda"):
        check_kernels(plan)
    check_kernels(replace(plan, backbone=replace(plan.backbone, cpu_kernels="mkl")))
