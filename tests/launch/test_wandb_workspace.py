"""The workspace of an experiment, as W&B would receive it."""

import builtins
import json
from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.launch.wandb_workspace import Dashboard, differing_keys, make_workspace, spec_of

GOLDEN = Path(__file__).parent / "golden" / "workspace.json"
TABLE = Dashboard(
    experiments=tuple(f"emoji/sae_table/{name}" for name in ("batch_topk", "jumprelu", "matryoshka", "topk")),
    metrics=("fvu", "dead_fraction", "l0"),
    settings=("probe.name", "probe.params.k", "probe.params.l0_weight", "probe.params.target_l0"),
    media=("figure/fvu topk empty:mean", "page/run"),
)


def spec(dashboard: Dashboard) -> dict:
    return spec_of(make_workspace(dashboard, entity="team", project="diffprobe", name="sae"))


def sections(dashboard: Dashboard) -> dict[str, list[dict]]:
    found = spec(dashboard)["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in found}


def test_equal_dashboards_give_equal_specs() -> None:
    assert spec(TABLE) == spec(TABLE)


def test_scores_settings_and_curves_are_drawn_and_the_runs_selected() -> None:
    found = sections(TABLE)
    assert list(found) == ["Scores (test, selected on val)", "Settings", "Curves", "Tables and images"]
    bars = found["Scores (test, selected on val)"]
    assert [bar["config"]["metrics"] for bar in bars] == [[f"summary_metrics.score/{name}"] for name in TABLE.metrics]
    (parallel,) = found["Settings"]
    axes = [axis["accessor"] for axis in parallel["config"]["columns"]]
    assert axes[0] == "config:probe.value.name" and axes[-1] == "summary:score/l0"
    media = [panel["config"]["mediaKeys"] for panel in found["Tables and images"]]
    assert media == [["figure/fvu topk empty:mean"], ["page/run"]]
    (run_set,) = spec(TABLE)["spec"]["section"]["runSets"]
    assert run_set["filters"]["filters"][0]["value"] == list(TABLE.experiments)
    assert "config:probe.value.name" in run_set["runFeed"]["columnPinned"]


def test_what_does_not_differ_or_is_not_measured_has_no_section() -> None:
    found = sections(Dashboard(experiments=("emoji/train_denoiser",), metrics=(), settings=("seed",)))
    assert list(found) == ["Curves"]


def test_differing_settings_are_found_those_of_the_probe_first() -> None:
    one = {"seed": 0, "probe": {"name": "topk", "params": {"k": 4}}, "data": {"path": "a"}, "experiment": "x"}
    two = {"seed": 1, "probe": {"name": "topk", "params": {"k": 8}}, "data": {"path": "a"}, "experiment": "y"}
    assert differing_keys([one, two]) == ("probe.params.k", "seed")
    assert differing_keys([one, two], limit=1) == ("probe.params.k",) and differing_keys([one]) == ()


def test_without_the_package_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object, **more: object) -> object:
        if name.startswith("wandb_workspaces"):
            raise ImportError(name)
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(RunFailed, match=r"(?s)wandb-workspaces.*pip install 'diffprobe\[wandb\]'"):
        make_workspace(TABLE, entity="e", project="p", name="n")


def test_the_workspace_of_the_table_of_autoencoders_is_the_golden_one() -> None:
    from diffprobe.runs.dashboard import dashboard_of

    made = make_workspace(dashboard_of("emoji/sae_table"), entity="ENTITY", project="diffprobe", name="emoji/sae_table")
    assert spec_of(made) == json.loads(GOLDEN.read_text())
