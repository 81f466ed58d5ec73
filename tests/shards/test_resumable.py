"""A build that was interrupted: what is kept, what is written again, and what is refused."""

import io
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from diffprobe.core.errors import ShardError
from diffprobe.core.progress import Bar
from diffprobe.shards import resumable
from diffprobe.shards.reader import read_shard
from diffprobe.shards.resumable import JOURNAL, PlannedSample, write_planned

SETTINGS = {"val": 0.1}


def image(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (6, 6), grey).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, list[PlannedSample]]:
    (tmp_path / "in").mkdir()
    found: dict[str, list[PlannedSample]] = {}
    for number in range(6):
        path = tmp_path / "in" / f"{number}.png"
        path.write_bytes(image(number))
        sample = PlannedSample(key=f"k{number}", path=path, name=path.name, field="png", record='{"label": 0}')
        found.setdefault(f"train-{number // 2:04d}.tar", []).append(sample)
    return found


Plan = dict[str, list[PlannedSample]]


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_an_interrupted_build_continues_to_the_same_bytes(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_planned(tmp_path / "whole", plan, settings=SETTINGS)
    write = resumable._write
    calls: list[str] = []

    def dying(out: Path, shard: str, *rest: object) -> object:
        calls.append(shard)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(out, shard, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(resumable, "_write", dying)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write_planned(out, plan, settings=SETTINGS)
    with open(out / JOURNAL, "a") as journal:
        journal.write('{"shard": "train-00')  # cut short by a kill
    (out / "train-0002.tar").write_bytes(b"renamed, but not yet in the journal")
    done = []

    @contextmanager
    def bar(total: int) -> Iterator[Bar]:
        class Counter:
            def update(self, n: int, /) -> None:
                done.append(n)

        assert total == 2
        yield Counter()

    notes: list[str] = []
    write_planned(out, plan, settings=SETTINGS, make_bar=bar, announce=notes.append)
    assert calls[3:] == ["train-0002.tar"] and done == [2]
    assert notes == ["2 of 3 shards are finished already and kept"]
    assert shards(out) == shards(tmp_path / "whole")
    calls.clear()
    write_planned(out, plan, settings=SETTINGS)
    assert calls == []


def test_processes_write_the_same_bytes(plan: Plan, tmp_path: Path) -> None:
    write_planned(tmp_path / "one", plan, settings=SETTINGS)
    write_planned(tmp_path / "two", plan, settings=SETTINGS, jobs=2)
    assert shards(tmp_path / "one") == shards(tmp_path / "two")
    assert not multiprocessing.active_children()


def test_other_inputs_are_refused_with_what_differs(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_planned(out, plan, settings=SETTINGS)
    before = shards(out)
    with pytest.raises(ShardError, match="other settings(?s:.*)val: 0.1 there, 0.2 here"):
        write_planned(out, plan, settings={"val": 0.2})
    first = plan["train-0000.tar"]
    other = PlannedSample(key="k0", path=first[0].path, name=first[0].name, field="png", record="{}")
    with pytest.raises(ShardError, match="0.png: its annotation differs"):
        write_planned(out, {**plan, "train-0000.tar": [other, first[1]]}, settings=SETTINGS)
    with pytest.raises(ShardError, match="2 differ(?s:.*)0.png: no longer there(?s:.*)1.png: no longer there"):
        write_planned(out, {name: plan[name] for name in list(plan)[1:]}, settings=SETTINGS)
    first[0].path.write_bytes(image(200) + b" ")
    with pytest.raises(ShardError, match="1 differ(?s:.*)0.png: changed(?s:.*)empty --out"):
        write_planned(out, plan, settings=SETTINGS)
    assert shards(out) == before


def test_shards_of_someone_else_are_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/train-0000.tar").write_bytes(b"precious")
    with pytest.raises(ShardError, match="did not write(?s:.*)train-0000.tar"):
        write_planned(tmp_path / "out", plan, settings=SETTINGS)
    assert (tmp_path / "out/train-0000.tar").read_bytes() == b"precious"


def test_a_damaged_journal_and_a_second_builder_are_refused(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_planned(out, plan, settings=SETTINGS)
    with resumable.open_journal(out), pytest.raises(ShardError, match="another process builds"):
        write_planned(out, plan, settings=SETTINGS)
    (out / JOURNAL).write_text('{"settings": 3}\n')
    with pytest.raises(ShardError, match="line 1 is not a line of a build"):
        write_planned(out, plan, settings=SETTINGS)


def test_faulty_images_are_listed_and_repaired_ones_are_written(plan: Plan, tmp_path: Path) -> None:
    out, bad = tmp_path / "out", plan["train-0001.tar"][0].path
    bad.write_bytes(image(3)[:30])
    with pytest.raises(ShardError, match="1 of 6 images cannot be read(?s:.*)2.png, sample 'k2'"):
        write_planned(out, plan, settings=SETTINGS)
    assert sorted(path.name for path in out.glob("*.tar")) == ["train-0000.tar", "train-0002.tar"]
    left_out = write_planned(out, plan, settings=SETTINGS, on_error="skip")
    assert list(left_out) == ["2.png"]
    assert [raw.key for raw in read_shard(out / "train-0001.tar")] == ["k3"]
    for still_bad in (image(3)[:30], image(3)[:31]):
        bad.write_bytes(still_bad)
        with pytest.raises(ShardError, match="1 of 6 images"):
            write_planned(out, plan, settings=SETTINGS)
        assert (out / "train-0001.tar").exists()
    bad.write_bytes(image(2))
    assert write_planned(out, plan, settings=SETTINGS) == {}
    assert [raw.key for raw in read_shard(out / "train-0001.tar")] == ["k2", "k3"]


def test_a_shard_without_a_readable_image_is_not_written(plan: Plan, tmp_path: Path) -> None:
    for sample in plan["train-0000.tar"]:
        sample.path.unlink()
    left_out = write_planned(tmp_path / "out", plan, settings=SETTINGS, on_error="skip")
    assert sorted(left_out) == ["0.png", "1.png"] and not (tmp_path / "out/train-0000.tar").exists()
    assert write_planned(tmp_path / "out", plan, settings=SETTINGS, on_error="skip") == left_out
