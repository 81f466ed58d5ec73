import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diffprobe.backbones.compiled import compile_regions, compiling, regions
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.hooks import prune_after
from diffprobe.core.errors import RunFailed

Load = Callable[..., DiffusionFeatures]
KEYS = ["a/0", "a/1", "b.2", "b.3", "c"]
ATTN = "up_blocks.1.attentions.0.transformer_blocks.0.attn2"


def block() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), nn.Sequential(nn.Linear(2, 2), nn.Tanh()))


@pytest.fixture
def network() -> nn.ModuleDict:
    return nn.ModuleDict({"a": block(), "b": block(), "end": nn.Linear(2, 2)})


def test_whole_blocks_are_compiled_where_no_tap_lies_inside(network: nn.ModuleDict) -> None:
    assert regions(network, ["a", "b", "end"], ["a", "b"]) == ("a", "b")
    assert regions(network, ["a", "b", "end"], ["b.0"]) == ("a", "b.0", "b.1")
    assert regions(network, ["a", "b", "end"], ["b.0.1"]) == ("a", "b.1")


def test_what_was_cut_is_left_out(network: nn.ModuleDict) -> None:
    prune_after(network, {"a", "a.0", "a.0.0", "a.0.1"})
    assert regions(network, ["a", "b", "end"], ["a.0"]) == ("a.0",)


def test_attention_is_read_outside_compiled_code() -> None:
    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k, self.out = nn.Linear(2, 2), nn.Linear(2, 2), block()

    network = nn.ModuleDict({"a": Attend()})
    assert regions(network, ["a"], ["a"]) == ("a",)
    assert regions(network, ["a"], ["a/probs"]) == ("a.out",)
    assert regions(network, ["a"], ["a/text"]) == ("a",)


def test_a_region_that_cannot_be_compiled_is_reported() -> None:
    def broken(graph: object, inputs: object) -> object:
        raise ValueError("no such instruction")

    network = nn.ModuleDict({"a": block()})
    compile_regions(network, ["a"], ["a"], backend=broken)  # type: ignore[arg-type]
    with pytest.raises(RunFailed, match="cannot be compiled(.|\n)*backbone.compile=false"), compiling():
        network["a"](torch.zeros(1, 2))


@pytest.mark.slow
class TestOnATinyPipeline:
    @pytest.mark.parametrize(
        ("taps", "backend"),
        [
            (["down_blocks.0", "mid_block", "up_blocks.*"], "eager"),
            (["up_blocks.1.resnets.0", "mid_block.attentions.0"], "aot_eager"),
            ([f"{ATTN}/probs", "down_blocks.*.resnets.0.conv1"], "aot_eager"),
        ],
        ids=["blocks", "inner", "attention"],
    )
    def test_features_are_those_of_eager_code(self, taps: list[str], backend: str, load: Load, images: Tensor) -> None:
        settings = {"taps": taps, "timesteps": [0, 500], "draws": 2, "max_rows_per_pass": 4}
        plain = load(**settings)(images, keys=KEYS)
        compiled = load(**settings, compile=backend)
        for n in (5, 2, 5):  # passes of 4 rows with the last one filled up; then another batch size
            found = compiled(images[:n], keys=KEYS[:n])
            for cell, value in plain.items():
                torch.testing.assert_close(found[cell], value[:n], atol=1e-5, rtol=0)

    def test_nothing_behind_the_deepest_tap_runs(self, load: Load, images: Tensor) -> None:
        features = load(taps=["mid_block"], compile="eager")
        names = features._backbone.denoiser.state_dict()
        assert not [name for name in names if name.startswith("up_blocks")]
        assert features(images, keys=KEYS)["mid_block@t100:empty:mean"].shape == (5, 32)

    def test_passes_have_one_shape_however_the_rows_come_out(self, load: Load, images: Tensor) -> None:
        features = load(timesteps=[0, 100], max_rows_per_pass=4, compile="eager")
        calls: list[int] = []
        features._backbone.denoiser.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
        features(images, keys=KEYS)
        assert calls == [4, 4, 4]

    def test_it_is_no_matter_of_content(self, load: Load) -> None:
        assert load(compile="eager").fingerprint == load().fingerprint

    @pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler (g++)")
    def test_machine_code_gives_the_same(self, load: Load, images: Tensor) -> None:
        (plain,) = load(taps=["down_blocks.0"])(images, keys=KEYS).values()
        (found,) = load(taps=["down_blocks.0"], compile=True)(images, keys=KEYS).values()
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)
