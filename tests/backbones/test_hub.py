import json
from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.backbones.hub import fetch_file
from diffprobe.backbones.locate import locate
from diffprobe.core.errors import WeightsMissing


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write files as if they had been downloaded, and go offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def write(repo: str, **files: str) -> Path:
        root = tmp_path / f"models--{repo.replace('/', '--')}"
        snapshot = root / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (root / "refs").mkdir()
        (root / "refs" / "main").write_text("0" * 40)
        for name, text in files.items():
            (snapshot / name.replace("__", ".")).write_text(text)
        return snapshot

    return write


def test_a_hub_id_offline_gives_the_download_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def no_network(*args: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", no_network)
    with pytest.raises(WeightsMissing) as caught:
        locate("nobody/no-such-model-0", revision="v1")
    message = str(caught.value)
    assert "'nobody/no-such-model-0' at v1 is not on this machine" in message and "offline mode is on" in message
    assert "backbone.path=FOLDER" in message and "hf download nobody/no-such-model-0" in message


def test_a_hub_id_in_the_cache_needs_no_network(cache: Callable[..., Path]) -> None:
    snapshot = cache("diffprobe-tests/tiny", model_index__json=json.dumps({"_class_name": "DDPMPipeline"}))
    found = locate("diffprobe-tests/tiny")
    assert found.folder is not None and found.folder.samefile(snapshot)
    assert found.index == {"_class_name": "DDPMPipeline"}


def test_a_single_file_is_found_in_the_cache(cache: Callable[..., Path]) -> None:
    snapshot = cache("diffprobe-tests/weights", a__safetensors="")
    assert fetch_file("diffprobe-tests/weights", "a.safetensors").samefile(snapshot / "a.safetensors")
    with pytest.raises(WeightsMissing, match=r"hf download diffprobe-tests/weights b\.safetensors"):
        fetch_file("diffprobe-tests/weights", "b.safetensors")


def test_replaced_weights_may_come_from_the_hub(cache: Callable[..., Path], tiny_sd: Path) -> None:
    snapshot = cache("diffprobe-tests/weights", a__safetensors="")
    found = locate(str(tiny_sd), denoiser_weights="diffprobe-tests/weights:a.safetensors").denoiser_weights
    assert found is not None and found.samefile(snapshot / "a.safetensors")


def test_replaced_weights_may_be_of_a_revision(cache: Callable[..., Path], tiny_sd: Path) -> None:
    snapshot = cache("diffprobe-tests/weights", a__safetensors="")
    other = snapshot.with_name("1" * 40)
    other.mkdir()
    (other / "a.safetensors").write_text("other")
    (snapshot.parents[1] / "refs" / "v1").write_text("1" * 40)
    found = locate(str(tiny_sd), denoiser_weights="diffprobe-tests/weights@v1:a.safetensors").denoiser_weights
    assert found is not None and found.read_text() == "other"
    with pytest.raises(WeightsMissing, match=r"'diffprobe-tests/weights' at v2 .*\n.*a\.safetensors --revision v2"):
        locate(str(tiny_sd), denoiser_weights="diffprobe-tests/weights@v2:a.safetensors")
