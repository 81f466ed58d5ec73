import json
from pathlib import Path

import pytest

from diffprobe.backbones.families import family_of
from diffprobe.backbones.locate import locate
from diffprobe.core.errors import WeightsMismatch
from diffprobe.core.registry import FAMILIES


def test_the_family_is_chosen_by_the_checkpoints_own_index(tiny_sd: Path) -> None:
    assert family_of(locate(str(tiny_sd))).__name__.endswith("sd_unet")  # type: ignore[attr-defined]
    assert family_of(locate("pixels")).__name__.endswith("pixels")  # type: ignore[attr-defined]


def test_an_unknown_pipeline_lists_the_families(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "AudioPipeline"}))
    with pytest.raises(WeightsMismatch, match="a AudioPipeline") as caught:
        family_of(locate(str(tmp_path)))
    assert f"families: {', '.join(FAMILIES.names())}" in str(caught.value)


@pytest.mark.parametrize("name", FAMILIES.names())
def test_a_family_file_keeps_the_contract(name: str) -> None:
    module = FAMILIES.load(name)
    assert not [part for part in ("matches", "spec", "load", "digests", "tiny") if not hasattr(module, part)]
