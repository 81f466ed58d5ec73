"""The tables of docs/users/correspondence.md are those of the recorded results."""

import importlib.util

from diffprobe.core.result import read_result
from tests.docs.markdown import ROOT


def test_the_tables_are_the_recorded_ones() -> None:
    spec = importlib.util.spec_from_file_location("record_correspondence", ROOT / "docs/record_correspondence.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    results = {name: read_result(script.RESULTS / f"{name}.json") for name in script.RUNS}
    assert {name: script.name_of(result) for name, result in results.items()} == {name: name for name in script.RUNS}
    page = script.PAGE.read_text("utf-8").partition(script.START)[2].partition(script.END)[0]
    assert page.strip() == "\n".join(script.lines_of(results)).strip()
    for result in results.values():
        record = script.chosen(result)
        assert record.n == 150 * len(script.POINTS) and record.detail["n_clusters"] == 150
