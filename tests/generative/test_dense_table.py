"""Tables of images with classes, depth or referring expressions, and truth that is refused."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError, SampleError, SplitLeak, UnknownName
from diffprobe.generative.dense_table import DenseTable, DenseTableData, load_dense
from diffprobe.shards.class_maps import IGNORED
from diffprobe.shards.datasets import scenes
from diffprobe.shards.index import build_index

CLASSES = {"background": (0,), "object": (1,), "figure": (2, 3, 4, 5), "hat": (6,), "tool": (7,)}
EXPRESSIONS = {"the {hat}": "hat", "the {tool}": "tool"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scenes")
    scenes.build(path, n=60, resolution=32)
    return path


def table(path: Path, task: str = "segmentation", **changes: Any) -> DenseTable:
    given: dict[str, Any] = {"split": "train", "n": 12, "classes": CLASSES, "expressions": {}, "seed": 0} | changes
    return load_dense(DataConfig(path=str(path)), given.pop("split"), task=task, resolution=32, **given)  # type: ignore[arg-type]


def test_classes_depth_and_expressions_are_read(shards: Path) -> None:
    classes, depth = table(shards), table(shards, "depth", classes={})
    assert classes.images.shape == (12, 3, 32, 32) and classes.truth.shape == (12, 32, 32)
    assert set(classes.truth.unique().tolist()) == {0, 1, 2, 3, 4}
    assert depth.keys == classes.keys and int(depth.truth.max()) > 0
    referring = table(shards, "referring", expressions=EXPRESSIONS)
    assert set(referring.truth.unique().tolist()) == {0, 1}
    places = [
        3 if text.removeprefix("the ") not in ("broom", "flag", "hammer", "lens") else 4 for text in referring.texts
    ]
    assert len(set(places)) == 2
    for own, mask, place in zip(classes.truth, referring.truth, places, strict=True):
        assert ((own == place) == mask.bool()).all()


def test_an_expression_depends_on_seed_and_key_alone(shards: Path) -> None:
    few, many = (table(shards, "referring", expressions=EXPRESSIONS, n=n) for n in (4, 12))
    assert many.texts[:4] == few.texts
    assert table(shards, "referring", expressions=EXPRESSIONS, seed=1).texts != many.texts


def test_wrong_expressions_and_too_few_samples_are_refused(shards: Path) -> None:
    with pytest.raises(UnknownName, match="cape"):
        table(shards, "referring", expressions={"the cape": "cape"})
    with pytest.raises(UnknownName, match="shoe"):
        table(shards, "referring", expressions={"the {shoe}": "hat"})
    with pytest.raises(ConfigError, match="2"):
        table(shards, n=1)
    with pytest.raises(SampleError, match="no class"):
        table(shards, classes={"background": (0,), "hat": (6,)})
    with pytest.raises(SampleError, match="value 1,"):  # 0 alone is ignored
        table(shards, classes={"figure": (2, 3, 4, 5), "hat": (6,)}, ignore=(0,))
    with pytest.raises(ConfigError, match="ignore: the value 6"):
        table(shards, classes={"background": (0,), "hat": (6,)}, ignore=(6,))
    with pytest.raises(SampleError, match="no pixel"):
        table(shards, classes={"one": (8,), "other": (9,)}, ignore=tuple(range(8)))


def test_ignored_values_are_unknown_and_all_others_as_before(shards: Path) -> None:
    whole = table(shards).truth
    classes = {name: values for name, values in CLASSES.items() if name != "background"}
    found = table(shards, classes=classes, ignore=(0,)).truth
    assert torch.equal(found == IGNORED, whole == 0)
    assert torch.equal(found[whole > 0], whole[whole > 0] - 1)


def test_a_mask_of_another_size_is_refused_with_its_key(shards: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, format="PNG")
    source = next(shards.glob("train-*.tar"))
    with tarfile.open(source) as old, tarfile.open(tmp_path / "train-0000.tar", "w") as new:
        for member in old:
            content = old.extractfile(member).read()  # type: ignore[union-attr]
            if member.name.endswith("mask.png"):
                content = buffer.getvalue()
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    build_index(tmp_path, name="wrong", licence="none")
    with pytest.raises(SampleError, match="16 x 16"):
        table(tmp_path)


def test_a_group_in_two_splits_and_a_batch_that_is_too_large_are_refused(shards: Path) -> None:
    tables = {name: table(shards, split=name, n=4) for name in ("train", "val", "test")}
    data = DataConfig(path=str(shards), batch_size=4)
    assert len(DenseTableData(tables, data, seed=0).train) == 4
    with pytest.raises(SplitLeak, match="val"):
        DenseTableData({**tables, "val": tables["train"]}, data, seed=0)
    with pytest.raises(ConfigError, match="batch_size=5"):
        DenseTableData(tables, DataConfig(path=str(shards), batch_size=5), seed=0)
