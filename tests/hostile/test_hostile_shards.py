"""Hostile shards: `data index`, `data verify` and `extract` refuse them by name, or read them, within bounds."""

import os
from pathlib import Path

import pytest

from tests.hostile.harness import Canary, Outcome, assert_ended, attempt_cli, canary
from tests.hostile.shards import Case, all_cases, sample, tar

__all__ = ["canary"]  # a fixture

pytestmark = pytest.mark.slow

CASES = all_cases()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a valid shard of val and of test."""
    root = tmp_path / "set"
    root.mkdir()
    for split in ("val", "test"):
        (root / f"{split}-0000.tar").write_bytes(tar(sample(f"{split}/0"), sample(f"{split}/1")))
    return root


def put(case: Case, root: Path) -> None:
    for name, content in case.files.items():
        path = Path(os.path.join(root, name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content) if isinstance(content, bytes) else content(path)


def index(root: Path, *words: str) -> Outcome:
    return attempt_cli(["data", "index", str(root), "--name", "x", "--licence", "y", *words], cwd=root.parent)


def extract(root: Path, backbone: Path, *settings: str) -> Outcome:
    words = [
        "extract", "--quiet", f"backbone.path={backbone}", "backbone.device=cpu", f"data.path={root}",
        "features.taps=[mid_block]", "features.timesteps=[20]", f"features.store={root.parent}/stores", *settings,
    ]  # fmt: skip
    return attempt_cli(words, cwd=root.parent)


def test_there_are_enough() -> None:
    assert len(CASES) >= 120


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_shard_is_refused_by_name_or_read(name: str, folder: Path, tiny_sd: Path, canary: Canary) -> None:
    case = CASES[name]
    put(case, folder)
    before = {path.name for path in folder.parent.iterdir()}
    indexed = index(folder, *case.settings)
    if case.ending == "refused":
        assert_ended(indexed, *case.names)
        assert not (folder / "index.json").exists()
    else:
        assert_ended(indexed, statuses=(0,))
        is_fault = case.ending == "fault"
        assert_ended(attempt_cli(["data", "verify", str(folder)]), *case.names, statuses=(int(is_fault),))
        assert_ended(extract(folder, tiny_sd), *case.names, statuses=(2 * is_fault,))
    assert {path.name for path in folder.parent.iterdir()} <= before | {"stores"}  # nothing unpacked


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.ending == "fault"])
def test_a_hostile_image_can_be_left_out(name: str, folder: Path, tiny_sd: Path) -> None:
    put(CASES[name], folder)
    assert_ended(index(folder), statuses=(0,))
    is_alone = "sample that is large" in name  # then the shard has no other sample
    assert_ended(extract(folder, tiny_sd, "data.on_error=skip"), statuses=(2 if is_alone else 0,))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if name.startswith("json") and case.names])
def test_a_hostile_annotation_can_be_left_out_of_an_index(name: str, folder: Path) -> None:
    put(CASES[name], folder)
    assert_ended(index(folder, "--on-error", "skip"), statuses=(0, 2))


@pytest.mark.parametrize("limit", ["sample_bytes=100", "image_pixels=100", "annotation_bytes=5", "label=1"])
def test_a_cap_is_obeyed_by_every_command(limit: str, folder: Path, tiny_sd: Path) -> None:
    put(Case({"train-0000.tar": tar(sample("a"), sample("bad", record={"label": 2}))}, "works"), folder)
    assert_ended(index(folder), statuses=(0,))
    what = limit.partition("=")[0]
    assert_ended(attempt_cli(["data", "verify", str(folder), "--cap", limit]), what, statuses=(1,))
    assert_ended(extract(folder, tiny_sd, f"data.caps.{limit}"), what)
