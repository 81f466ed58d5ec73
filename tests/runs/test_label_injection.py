"""Results on features whose prompt states something about the sample are marked, and no others."""

from types import SimpleNamespace

import pytest

from diffprobe.backbones.prompts import make_branches
from diffprobe.core.result import MetricRecord, read_result
from diffprobe.features.column_table import ColumnTable
from diffprobe.runs.label_injection import mark_injection, stated_by
from diffprobe.runs.train import train

TABLE = ColumnTable("t.csv", {"guess": {"a": "cat"}, "mood": {"a": "sad"}}, {"a": "zero_shot:clip"})
PLAIN = ColumnTable("t.csv", {"guess": {"a": "cat"}}, {})


def branches(condition, prompt=None, *, unconditional=False):
    return make_branches(condition, prompt, unconditional=unconditional, negative=None)


@pytest.mark.parametrize(
    ("condition", "prompt", "table", "expected"),
    [
        ("empty", None, None, ""),
        ("prompt", "a photo of a pet", None, ""),
        ("caption", None, None, "caption"),
        ("label", None, None, "label"),
        ("template", "a {class_name} by {style}", None, "class_name, style"),
        ("template", "a {guess}", TABLE, "zero_shot:clip"),
        ("template", "a {guess}, {mood}, {style}", TABLE, "zero_shot:clip, style"),
        ("template", "a {guess}", PLAIN, "table:guess"),
    ],
)
def test_what_a_prompt_states(condition, prompt, table, expected):
    assert stated_by(branches(condition, prompt)[0], table) == expected


def record(cell, **detail):
    return MetricRecord(name="accuracy", value=0.5, split="test", n=4, cell=cell, target="label", detail=detail)


def test_only_records_of_a_stating_branch_are_marked():
    request = SimpleNamespace(plan=SimpleNamespace(branches=branches("caption", unconditional=True)), columns=None)
    given = [record("mid_block@t20:caption:mean", n=1), record("mid_block@t20:empty:mean"), record(None)]
    found = mark_injection(given, request, "classifier")
    assert [one.detail for one in found] == [{"n": 1, "label_injection": "caption"}, {}, {"label_injection": "caption"}]
    assert mark_injection(given, request, "sae") == given
    assert given[0].detail == {"n": 1}
    plain = SimpleNamespace(plan=SimpleNamespace(branches=branches("empty")), columns=None)
    assert mark_injection(given, plain, "classifier") == given


@pytest.mark.slow
def test_the_result_of_a_run_is_marked(run, tmp_path):
    rows = "".join(f"tiny/{i:02d},red round,zero_shot:clip\n" for i in range(24))
    (tmp_path / "guess.csv").write_text("key,guess,source\n" + rows)
    shared = ["probe=linear", "probe.targets=[style]", "features.source=live", "trainer.max_epochs=1"]
    joined = ["features.condition=template", "features.prompt='a {guess}'", f"features.columns={tmp_path}/guess.csv"]
    for settings, expected in (([], None), (joined, "zero_shot:clip")):
        result = read_result(train(run(*shared, *settings)))
        assert {one.detail.get("label_injection") for one in result.metrics} == {expected}
        assert result.metrics
