"""Two processes write the bytes of one."""

from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.evaluation import explore_processes
from diffprobe.evaluation.explore import explore
from diffprobe.evaluation.explore_codes import stream_codes
from diffprobe.evaluation.explore_pass import LatentPass, joined, locate, located
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.report.explorer.writer import ExplorerWriter
from tests.evaluation.planted_run import CLASSES, SPATIAL, STYLES, planted_run, planted_tables


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(spatial_sae, tmp_path):
    for n in (1, 2):
        config = ExploreConfig(device="cpu", split="train", n_top=4, processes=n)  # three shards
        explore([str(spatial_sae)], config, ExplorerWriter(tmp_path / str(n)))
    one, two = files(tmp_path / "1"), files(tmp_path / "2")
    assert one == two and len(one) > 8


def test_parts_of_a_split_have_the_top_images_of_the_whole():
    tables = planted_tables(50, cells=SPATIAL, n_shards=5)
    run = planted_run(tables, SPATIAL)
    found = LatentPass(run.sae.n_latents, {"class": CLASSES, "style": STYLES}, [20], 4)
    found.read(stream_codes(run.sae, tables, SPATIAL))
    whole = locate(found, stream_codes(run.sae, tables, SPATIAL))
    for n in (2, 3, 7):
        parts = [located(found, stream_codes(run.sae, tables, SPATIAL, part=(i, n))) for i in range(n)]
        assert joined(parts) == whole
    firsts = [codes.first for codes in stream_codes(run.sae, tables, SPATIAL, part=(1, 2))]
    assert firsts == [10, 30]  # the second and the fourth of five shards of 10


@pytest.mark.slow
def test_a_process_that_is_killed_is_named(monkeypatch):
    run = planted_run(planted_tables(12))
    with (
        pytest.raises(RunFailed, match="fewer processes"),
        explore_processes.passes(run, ExploreConfig(device="cpu", processes=2)) as reading,
    ):  # its processes cannot open the folder of a planted run
        reading.find()
