"""The table and the statements of docs/users/emergence.md are those of the recorded run."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from diffprobe.config.compose import load
from diffprobe.config.parse import record_tree
from diffprobe.core.json_file import parse_json
from diffprobe.core.result import MetricRecord, StartTime, make_result, write_result
from tests.docs.markdown import ROOT
from tests.docs.test_numbers import script

PAGE = (ROOT / "docs/users/emergence.md").read_text("utf-8")
TEXT = " ".join(PAGE.split())
SCRIPT = script("record_emergence")
FOUND: dict[str, Any] = dict(parse_json(SCRIPT.RESULTS.read_text("utf-8"), where="emergence.json"))


def test_the_table_is_the_recorded_one() -> None:
    block = PAGE.partition("<!-- table: emergence -->\n")[2].partition("\n\n")[0]
    assert block.splitlines() == SCRIPT.table_lines(FOUND["probes"])
    block = PAGE.partition("<!-- table: emergence-counts -->\n")[2].partition("\n\n")[0]
    assert block.splitlines() == SCRIPT.counts_lines(FOUND["probes"])


def test_the_statements_are_those_of_the_recorded_run() -> None:
    of = {name: [probe for probe in FOUND["probes"] if probe["target"] == name] for name in
          FOUND["config"]["probes"]["attributes"]}  # fmt: skip
    sides = [probe["curve"][probe["steps"].index(60)] for probe in of["side"] if probe["cell"].startswith("mid_block")]
    assert len(sides) == 2 and min(sides) >= 0.98 and "at least 98 % of the images after 60 steps" in TEXT
    for name in ("role", "hat", "tool", "colour", "size"):
        assert all(probe["curve"][-1] < probe["controls"]["raw_pixels"] for probe in of[name])
    rise = {name: statistics.mean(p["curve"][-1] - p["curve"][0] for p in found) for name, found in of.items()}
    flat = ("texture", "background")
    risen = {name for name, found in of.items() if all(probe["rise"][-1][0] > 0 for probe in found)}
    assert risen == {"role", "hat", "tool", "colour", "size", "side"}
    assert max(rise[name] for name in flat) < 0.04 < min(rise[name] for name in rise if name not in flat)
    early, late = ({name: statistics.mean(p["curve"][i] for p in of[name]) for name in of} for i in (3, 5))
    assert all(late[name] > early[name] for name in ("size", "colour", "hat"))


def test_the_recorded_run_is_that_of_the_experiment() -> None:
    config = load("scenes/emergence", [])
    tree = json.loads(json.dumps({key: value for key, value in record_tree(config).items() if key != "output"}))
    assert FOUND["config"]["probes"] == tree["probes"]
    for key in ("model", "data", "objective", "noise", "seed", "ema_decay", "autoencoder", "warmup_steps"):
        assert FOUND["config"][key] == tree[key], key
    assert FOUND["config"]["trainer"]["max_steps"] == tree["trainer"]["max_steps"] == 240
    probes, steps = FOUND["probes"], [0, *config.probes.steps, 240]
    assert len(probes) == len(config.probes.attributes) * len(config.probes.taps) * len(config.probes.timesteps)
    assert all(probe["steps"] == steps and len(probe["curve"]) == len(steps) for probe in probes)
    assert all(probe["controls"]["random_weights"] == probe["curve"][0] for probe in probes)


def test_the_stated_sizes_are_those_of_the_run() -> None:
    config, n = FOUND["config"], FOUND["probes"][0]["n"]
    assert f"for {config['trainer']['max_steps']} steps of {config['data']['batch_size']} images" in TEXT
    assert f"on {config['data']['limit']:,} images" in TEXT
    assert f"fitted to {config['probes']['n_train']:,} images and classify {n}" in TEXT
    assert f"at most ± {1.96 * (0.25 / n) ** 0.5:.3f}" in TEXT


def test_a_run_is_recorded_into_results_and_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = MetricRecord(
        name="accuracy", value=0.5, split="val", n=4, cell="mid_block@t100:empty:mean", target="role", probe="ridge",
        controls={"random_weights": 0.25, "raw_pixels": 0.75, "chance": 0.125},
        detail={"steps": [0, 3], "curve": [0.25, 0.5], "rise": [[0, 0], [0.1, 0.4]],
                "differences": {"raw_pixels": [-0.5, 0.1]}},
    )  # fmt: skip
    other = dataclasses.replace(record, name="mse", probe=None)
    result = make_result(
        run="x", experiment="scenes/emergence", kind="train_backbone", config={"seed": 0, "output": "elsewhere"},
        seeds={"seed": 0}, metrics=[other, record], started_at=StartTime.now(),
    )  # fmt: skip
    write_result(result, tmp_path / "result.json")
    (tmp_path / "page.md").write_text(
        "before\n<!-- table: emergence -->\n| old |\n\n<!-- table: emergence-counts -->\n\nafter\n"
    )
    monkeypatch.setattr(SCRIPT, "RESULTS", tmp_path / "found.json")
    monkeypatch.setattr(SCRIPT, "PAGE", tmp_path / "page.md")
    SCRIPT.main([str(tmp_path)])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["config"] == {"seed": 0} and len(found["probes"]) == 1
    assert (tmp_path / "page.md").read_text() == (
        "before\n<!-- table: emergence -->\n"
        "| attribute | cell | step 0 | step 3 | raw pixels | chance |\n"
        "| :-- | :-- | --: | --: | --: | --: |\n"
        "| role | `mid_block@t100` | 0.25 | 0.50 | 0.75 | 0.12 |\n\n"
        "<!-- table: emergence-counts -->\n"
        "| attribute | step 0, mean | step 3, mean | risen | fallen | above raw pixels | below raw pixels |\n"
        "| :-- | --: | --: | --: | --: | --: | --: |\n"
        "| role | 0.25 | 0.50 | 1 of 1 | 0 of 1 | 0 of 1 | 0 of 1 |\n\nafter\n"
    )
