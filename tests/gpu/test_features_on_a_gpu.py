"""Features read on a GPU: equal to those of the CPU up to rounding, equal to each other bit for bit."""

from pathlib import Path

import pytest
import torch

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.config.compose import load_run
from diffprobe.core.errors import RunFailed
from diffprobe.core.registry import FAMILIES
from diffprobe.runs.extract import extract_run
from tests.backbones.contract import RESOLUTION, make_case

SHIPPED = {"taps": ["mid_block", "up_blocks.*"], "timesteps": [25, 500], "draws": 2, "pool": "none"}
SAMPLES = {"captions": ["red cat", "blue dog"], "labels": [2, 0]}
TOLERANCES = {"float32": 2e-5, "bfloat16": 0.1, "float16": 0.02}


def read(device: str, n: int = 8, batch: int = 8, path: str = "emoji-sd", **settings: object) -> dict:
    images = torch.rand(n, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    features = DiffusionFeatures.from_pretrained(path, device=device, **{**SHIPPED, **settings})
    found: dict[str, list[torch.Tensor]] = {}
    for first in range(0, n, batch):
        keys = [f"image {i}" for i in range(first, min(n, first + batch))]
        for cell, value in features(images[first : first + batch], keys=keys).items():
            found.setdefault(cell, []).append(value.cpu())
    return {cell: torch.cat(values) for cell, values in found.items()}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_shipped_model_gives_the_features_of_the_cpu(dtype: str) -> None:
    expected, found = read("cpu"), read("cuda", dtype=dtype)
    assert set(found) == set(expected)
    worst = {cell: relative(found[cell], expected[cell]) for cell in expected}
    print(f"{dtype}: largest difference to float32 on the CPU {max(worst.values()):.1e} of the largest feature")
    assert max(worst.values()) < TOLERANCES[dtype], worst


def test_features_are_repeated_bit_for_bit_and_hardly_depend_on_the_batch() -> None:
    once, again, single = read("cuda"), read("cuda"), read("cuda", batch=3)
    for cell in once:
        assert once[cell].equal(again[cell])
        assert relative(single[cell], once[cell]) < 2e-5


def test_tf32_of_the_surrounding_program_changes_nothing() -> None:
    before = torch.get_float32_matmul_precision()
    expected = read("cuda")
    torch.set_float32_matmul_precision("high")
    try:
        found = read("cuda")
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(found[cell].equal(expected[cell]) for cell in expected)


def test_compiled_blocks_give_the_same_features() -> None:
    expected, found = read("cuda"), read("cuda", compile=True)
    assert max(relative(found[cell], expected[cell]) for cell in expected) < 2e-5


@pytest.mark.parametrize("family", FAMILIES.names())
def test_every_family_gives_the_features_of_the_cpu(family: str, tmp_path: Path) -> None:
    case = make_case(family, tmp_path)
    images = torch.rand(2, 3, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0))
    found = {device: case.load(device=device)(images, keys=["a", "b"], **SAMPLES) for device in ("cpu", "cuda")}
    worst = {cell: relative(found["cuda"][cell].cpu(), value) for cell, value in found["cpu"].items()}
    assert worst and max(worst.values()) < 1e-4, worst


def test_images_that_are_too_many_for_the_card_are_explained() -> None:
    images = torch.rand(4, 3, 64, 64)
    features = DiffusionFeatures.from_pretrained("emoji-sd", taps=["up_blocks.2"], timesteps=[25], device="cuda")
    features(images, keys=list("abcd"))
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 4e6) / total)
    try:
        with pytest.raises(RunFailed, match="1024 images(.|\n)*data.batch_size=512"):
            features(images.repeat(256, 1, 1, 1), keys=[str(i) for i in range(1024)])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_store_written_on_the_card_is_written_again_byte_for_byte(tiny_shards: Path, tmp_path: Path) -> None:
    def store(name: str, *settings: str) -> dict[str, bytes]:
        config = load_run(
            None,
            [
                "backbone.path=emoji-sd",
                f"data.path={tiny_shards}",
                "features.taps=[mid_block,up_blocks.1]",
                "features.timesteps=[25,200]",
                "probe=linear",
                f"features.store={tmp_path / name}",
                f"output={tmp_path}",
                *settings,
            ],
        )
        extract_run(config, progress=False)
        files = sorted((tmp_path / name).rglob("*.safetensors"))
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    one, again = store("one", "backbone.device=cuda"), store("again", "backbone.device=cuda")
    assert one and one == again
