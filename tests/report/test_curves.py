"""Curves from the files of Lightning's CSV logger."""

from pathlib import Path

import pytest

from diffprobe.core.errors import SchemaError
from diffprobe.report.curves import Curve, read_curves, thinned


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "metrics.csv").write_text(text)


def test_each_name_has_its_points(tmp_path: Path) -> None:
    write(tmp_path, "curves", "epoch,step,train/loss,val/fvu\n0,1,2.5,\n0,2,nan,\n0,3,1.5,0.25\n")
    assert read_curves(tmp_path) == [
        Curve(name="train/loss", steps=(1, 3), values=(2.5, 1.5)),
        Curve(name="val/fvu", steps=(3,), values=(0.25,)),
    ]
    assert read_curves(tmp_path / "curves") == []


def test_a_resumed_run_has_each_step_once_and_the_later_value(tmp_path: Path) -> None:
    write(tmp_path, "curves", "step,loss\n1,5\n2,4\n3,9\n")
    write(tmp_path, "curves-1", "step,loss\n3,3\n4,2\n")
    for i in range(2, 11):
        write(tmp_path, f"curves-{i}", f"step,loss\n4,{i}\n")
    (curve,) = read_curves(tmp_path)
    assert (curve.steps, curve.values) == ((1, 2, 3, 4), (5.0, 4.0, 3.0, 10.0))


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "step,loss\nx,1\n", "step,loss\n1,two\n", "step,loss\n1,2,3\n", ""])
def test_other_files_are_named(tmp_path: Path, text: str) -> None:
    write(tmp_path, "curves", text)
    with pytest.raises(SchemaError, match=r"metrics\.csv"):
        read_curves(tmp_path)


def test_thinning_keeps_both_ends() -> None:
    curve = Curve(name="loss", steps=tuple(range(1001)), values=tuple(map(float, range(1001))))
    thin = thinned(curve, 100)
    assert len(thin.steps) <= 102 and thin.steps[0] == 0 and thin.steps[-1] == 1000
    assert thin.values == tuple(map(float, thin.steps))
    assert thinned(thin, 200) is thin
