"""Media of a run that was offline, read back from what waits to be sent."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from diffprobe.config.schema import LoggerConfig
from diffprobe.training import loggers
from diffprobe.training.trainer import quiet
from diffprobe.training.wandb_media import Media, MediaTable
from tests.training.test_loggers import logged_out, read_run  # noqa: F401
from tests.training.test_wandb_run import result_of


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.usefixtures("logged_out")
def test_an_offline_run_keeps_tables_figures_and_pages(tmp_path: Path) -> None:
    media = Media(
        tables={"scores": MediaTable(columns=("tap", "value", "chance"), rows=[("mid_block", 0.5, None)])},
        figures={"accuracy label": png()},
        pages={"run": "<!doctype html><p>here</p>"},
    )
    with quiet():
        logger = loggers.make_logger(
            LoggerConfig(kind="wandb", mode="offline"), run_dir=tmp_path, experiment="e", run_name="r", job_type="j",
            tree={},
        )  # fmt: skip
        loggers.finish(logger, result_of(), media=lambda: media)
    (row,) = read_run(tmp_path)[3]
    names = ("table/scores", "figure/accuracy label", "page/run")
    found = {name: {key: row[f"{name}/{key}"] for key in ("_type", "path")} for name in names}
    (folder,) = tmp_path.glob("wandb/offline-run-*/files")
    assert {name: value["_type"] for name, value in found.items()} == {
        "table/scores": "table-file",
        "figure/accuracy label": "image-file",
        "page/run": "html-file",
    }
    table = json.loads((folder / found["table/scores"]["path"]).read_text())
    assert table == {"columns": ["tap", "value", "chance"], "data": [["mid_block", 0.5, None]]}
    assert Image.open(folder / found["figure/accuracy label"]["path"]).size == (3, 2)
    assert (folder / found["page/run"]["path"]).read_text() == "<!doctype html><p>here</p>"


def test_without_wandb_no_media_are_made(tmp_path: Path) -> None:
    def refuse() -> Media:
        raise AssertionError

    loggers.finish(None, result_of(), media=refuse)
    logger = loggers.make_logger(
        LoggerConfig(kind="csv"), run_dir=tmp_path, experiment="", run_name="r", job_type="sae", tree={}
    )
    loggers.finish(logger, result_of(), media=refuse)
