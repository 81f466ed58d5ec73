"""Columns of the explorer from files: numbers, texts, missing values, and files that are refused."""

import json

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.explore_files import columns_from_files


def test_numbers_and_texts_of_a_table_and_of_json_are_the_same(tmp_path):
    table = tmp_path / "use.csv"
    table.write_text('latent,delta_mse,q (use),verdict\n2,0.5,1e-3,"used, <b>"\n0,,0.5,\n')
    file = tmp_path / "use.json"
    values = {
        "2": {"delta_mse": 0.5, "q (use)": 1e-3, "verdict": "used, <b>"},
        "0": {"q (use)": 0.5, "delta_mse": None},
    }
    file.write_text(json.dumps(values))
    for path in (table, file):
        found = columns_from_files([str(path)], 4)
        columns = {column.key: column for column in found.columns}
        assert columns["delta_mse"].values == [None, None, 0.5, None]
        assert columns["q__use_"].values == [0.5, None, 1e-3, None] and columns["q__use_"].title == "q (use)"
        (text,) = found.texts
        assert (text.key, text.values) == ("verdict", ["", "", "used, <b>", ""])
        assert "2 of 4 latents" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "pattern"),
    [
        ("a.csv", "latent,x\n9,1\n", r"'9'[\s\S]*0 to 3"),
        ("a.csv", "latent,x\n-1,1\n", "'-1'"),
        ("a.csv", "latent,x\n1,1\n1,2\n", "latent 1 twice"),
        ("a.csv", "latent,x\n1,1\n01,2\n", "twice"),
        ("a.csv", "unit,x\n1,1\n", r"unit, x[\s\S]*'latent'"),
        ("a.csv", "latent,x\n1,1,3\n", "line 2"),
        ("a.csv", "latent,x\n1,inf\n", "latent 1 is not finite"),
        ("a.csv", "latent,frequency\n1,1\n", "'frequency'"),
        ("a.csv", "", "empty"),
        ("a.json", "[1]", "another form"),
        ("a.json", '{"1": {"x": [1]}}', r"\[1\]"),
        ("a.json", "{", "a.json"),
        ("a.txt", "", "neither"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, name, content, pattern):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=pattern):
        columns_from_files([str(tmp_path / name)], 4)
    with pytest.raises(ConfigError, match="cannot be read"):
        columns_from_files([str(tmp_path / "gone.csv")], 4)
