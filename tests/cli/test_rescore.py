"""`diffprobe rescore` from the command line to the printed numbers."""

import csv
import json
import shutil

import pytest
import torch

from diffprobe.cli.main import main
from diffprobe.core.digest import digest_file
from diffprobe.core.result import MetricRecord, StartTime, make_result, write_result
from diffprobe.probes.predictions import KeptHead, Predictions, class_scores, save_predictions

EVIL = "up\x1b[2J\x1b]0;title\x07"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Two runs of a classifier of two cells, one of which has a hostile name."""
    ids = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1], [0, 2], [1, 2]])
    heads = [KeptHead(kind="classes", probe="linear", cell=cell, target="label") for cell in ("mid_block@t20", EVIL)]
    for run, wrong in (("one", 1), ("two", 3)):
        tensors = {"ids": ids}
        for i in range(2):
            logits = torch.nn.functional.one_hot(ids[:, 0], 2).float()
            logits[: wrong + i] = logits[: wrong + i].flip(1)
            tensors |= {f"{name}.{i}": part for name, part in class_scores(logits, ids[:, 0]).items()}
        values = {"label": ("cat", "dog"), "family": ("a", "b", "=c")}
        keys = tuple(f"k{i}" for i in range(6))
        path = tmp_path / run / "predictions-test.safetensors"
        found = Predictions(split="test", keys=keys, values=values, heads=tuple(heads), tensors=tensors)
        save_predictions(found, path)
        record = MetricRecord(name="accuracy", value=0.5, split="test", n=6, cell=heads[0].cell, target="label")
        result = make_result(
            run=run, experiment="", kind="classifier", config={}, seeds={}, metrics=[record],
            started_at=StartTime.now(), artifacts={path.name: digest_file(path)},
        )  # fmt: skip
        write_result(result, tmp_path / run / "result.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_prints_a_table_without_control_characters(project, capsys):
    assert main(["rescore", "one"]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["split", "metric", "cell", "target", "probe", "n", "value", "control_chance"]
    assert first.split() == ["test", "accuracy", "mid_block@t20", "label", "linear", "6", "0.8333", "0.5000"]
    assert "\x1b" not in second and "\x07" not in second and r"up\x1b[2J" in second


def test_other_formats_and_metrics(project, capsys):
    assert main(["rescore", "one/result.json", "--metric", "macro_f1", "--per", "family", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(rows) == 6 and rows[2]["family"] == "'=c" and float(rows[2]["value"]) == 1
    where = ["--where", "cell=mid_block@t20"]
    assert main(["rescore", "one", *where, "--interval", "bootstrap", "--group-by", "family", "--format", "json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["detail"]["bootstrap"] == {
        "group_by": "family", "n_groups": 3, "resamples": 1000, "undefined": 0, "level": 0.95, "seed": 0,
    }  # fmt: skip
    assert record["detail"]["interval"] == [0.5, 1.0]


def test_an_interval_says_what_was_resampled(project, capsys):
    options = ["--interval", "bootstrap", "--resamples", "50", "--seed", "3"]
    assert main(["rescore", "one", *options]) == 0
    out = capsys.readouterr().out
    assert "50 resamples of single samples, seed 3" in out and "--group-by ATTRIBUTE" in out
    assert main(["rescore", "one", *options, "--group-by", "family"]) == 0
    assert "50 resamples of values of 'family'" in capsys.readouterr().out


def test_paired_differences(project, capsys):
    assert main(["rescore", "one", "--against", "two", "--where", "tap=mid_block"]) == 0
    head, line = (text.split() for text in capsys.readouterr().out.splitlines())
    found = dict(zip(head, line, strict=True))
    assert (found["value"], found["against_value"], found["difference"]) == ("0.8333", "0.5000", "0.3333")
    assert found["against_run"] == "two"
    assert main(["rescore", "one", "--where", "tap=mid_block", "--against-where", f"cell={EVIL}"]) == 0
    assert "0.1667" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "1"], "--seed without an interval"),
        (["--per", "family", "--against", "two"], "--per with a comparison"),
        (["--metric", "acuracy"], "accuracy"),
        (["--against", "three"], "'three' has no result.json"),
        (["--split", "val"], "kept no predictions of split 'val'"),
        (["--interval", "bootstrap", "--group-by", "familie"], "family"),
        (["--interval", "bootstrap", "--level", "2"], "level=2"),
    ],
)
def test_errors_print_no_numbers(project, capsys, options, message):
    assert main(["rescore", "one", *options]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err


def test_a_changed_file_is_refused(project, capsys):
    shutil.copy(project / "two/predictions-test.safetensors", project / "one/predictions-test.safetensors")
    assert main(["rescore", "one"]) == 2
    assert "digest" in capsys.readouterr().err


def test_null_distributions_say_what_was_permuted_and_how_many_tests(project, capsys):
    assert main(["rescore", "one", "--null", "permutation", "--permutations", "99", "--group-by", "family"]) == 0
    head, first, _, *notes = capsys.readouterr().out.splitlines()
    found = dict(zip(head.split(), first.split(), strict=True))
    assert found["value"] == "0.8333" and found["smallest_p"] == "0.1250" and float(found["p"]) >= 0.125  # 2 ** 3
    assert float(found["p_adjusted"]) >= float(found["p"])
    text = "\n".join(notes)
    assert "99 permutations of the labels by values of 'family', seed 0" in text and "for 2 tests" in text
    assert "a single one of 2 tests cannot reach 0.05" in text
    assert main(["rescore", "one", "--null", "permutation", "--interval", "expanded", "--seed", "4"]) == 0
    text = capsys.readouterr().out
    assert "95% expanded bootstrap" in text and "single samples, seed 4" in text and "are few" not in text
    assert main(["rescore", "one", "--interval", "bootstrap"]) == 0
    assert "6 groups are few" in capsys.readouterr().out
    for options in (["--permutations", "9"], ["--null", "permutation", "--resamples", "9"]):
        assert main(["rescore", "one", *options]) != 0
        assert "without a" in capsys.readouterr().err
    assert main(["rescore", "one", "--against", "two", "--null", "permutation"]) != 0
    assert "excludes 0" in capsys.readouterr().err
