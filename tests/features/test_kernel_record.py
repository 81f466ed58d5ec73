import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffprobe.backbones.cpu_kernels import KernelChoice
from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.features import kernel_record
from diffprobe.features.extract import extract
from diffprobe.features.kernel_record import RECORD, recorded_kernels, settle_kernels
from diffprobe.features.manifest import Manifest
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request

CELL = {"features_taps": ("mid_block",), "features_timesteps": (20,)}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make oneDNN twice as fast; lists the models that were measured."""
    found: list[str] = []

    def choose(plan: object) -> KernelChoice:
        found.append("measured")
        return KernelChoice(used="onednn", ratio=2.0)

    monkeypatch.setattr(kernel_record, "choose_kernels", choose)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_a_store_keeps_the_library_that_it_was_begun_with(configs: Callable[..., tuple], measured: list[str]) -> None:
    lines: list[str] = []
    auto, plain = configs(**CELL, backbone_cpu_kernels="auto"), configs(**CELL)
    path = extract(*auto, splits=["val"], progress=False, announce=lines.append)
    store = FeatureStore.open(path)
    assert store.manifest.recorded[RECORD] == {"asked": "auto", "used": "onednn", "ratio": 2.0}
    assert any("linear layers by onednn: oneDNN is 2.00 x" in line for line in lines)
    # The library changes rounding only, so that it is not part of the identity.
    assert store.manifest.digest == Request(*plain, splits=["val"]).manifest.digest
    whole = extract(*plain, splits=["val"], progress=False)
    assert whole == path and measured == ["measured"]  # complete: it serves both
    shard = next(file for file in path.iterdir() if file.is_dir())
    shutil.rmtree(shard)
    with pytest.raises(ConfigError, match=r"was begun with linear layers by onednn(.|\n)*cpu_kernels=onednn"):
        extract(*plain, splits=["val"], progress=False)
    assert extract(*auto, splits=["val"], progress=False) == path and measured == ["measured"]


def test_stores_of_both_libraries_are_not_continued_together(
    configs: Callable[..., tuple], manifest: Manifest, measured: list[str]
) -> None:
    request = Request(*configs(**CELL, backbone_cpu_kernels="auto"))
    root = configs()[2].store
    stores = []
    for used in ("onednn", "mkl"):
        folder = Path(root) / used
        folder.mkdir(parents=True)
        record = {} if used == "mkl" else {RECORD: {"asked": used, "used": used, "ratio": None}}
        Manifest(**{**vars(manifest), "recorded": {**manifest.recorded, **record}}).write(folder / "manifest.json")
        stores.append(folder)
    assert settle_kernels(request, stores[:1]).used == "onednn" and settle_kernels(request, stores[1:]).used == "mkl"
    with pytest.raises(ConfigError, match="was begun with linear layers by mkl; now they would run by onednn"):
        settle_kernels(request, stores)
    assert measured == [] and settle_kernels(request, []).used == "onednn"


@pytest.mark.parametrize("found", [{"used": "blas"}, "onednn", {}])
def test_a_record_that_is_not_known_is_refused(found: object, manifest: Manifest) -> None:
    assert recorded_kernels(manifest) == "mkl"
    with pytest.raises(SchemaError, match="recorded.cpu_kernels"):
        recorded_kernels(Manifest(**{**vars(manifest), "recorded": {**manifest.recorded, RECORD: found}}))
