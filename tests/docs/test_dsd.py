"""The table of DSD beside Diffusion Classifier in docs/users/scores.md is that of the recorded results."""

import importlib.util
from typing import Any

from tests.docs.markdown import ROOT

PAGE = (ROOT / "docs/users/scores.md").read_text("utf-8")
_SPEC = importlib.util.spec_from_file_location("record_dsd", ROOT / "docs/record_dsd.py")
assert _SPEC is not None and _SPEC.loader is not None
record_dsd: Any = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(record_dsd)


def test_the_table_is_the_recorded_one() -> None:
    lines = record_dsd.table()
    block = PAGE.partition("<!-- table: dsd -->\n")[2].partition("\n\n")[0]
    assert block.splitlines() == lines and len(lines) > 4


def test_methods_are_compared_on_the_same_choices() -> None:
    keys = ("data", "candidates", "n_timesteps", "noise_sets", "seed", "limit", "backbone")
    for of_methods in record_dsd.recorded().values():
        assert {"diffusion_classifier", "dsd"} <= set(of_methods)
        first, *others = of_methods.values()
        for other in others:
            assert [first.config[key] for key in keys] == [other.config[key] for key in keys]
            assert [record.n for record in first.metrics] == [record.n for record in other.metrics]


def test_the_text_states_what_the_table_has() -> None:
    """DSD with the published weights chooses the right caption less often than its own error term."""
    scenes = record_dsd.recorded()["scenes/dsd"]
    plain, dsd = ({r.name: r.value for r in scenes[method].metrics} for method in ("diffusion_classifier", "dsd"))
    assert all(dsd[name] <= value for name, value in plain.items())
    assert sum(dsd[name] < value for name, value in plain.items()) >= 10
