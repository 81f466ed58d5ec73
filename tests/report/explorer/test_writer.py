"""The folder of an explorer: its files, their bytes, what is refused, and that records are not held."""

import json
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffprobe.core.errors import ConfigError, DuplicateKey, NonFinite, RunFailed
from diffprobe.report.explorer.records import ImagePage, LatentMatch, LatentPage, TopImage
from diffprobe.report.explorer.writer import CHUNK, SCRIPTS, ExplorerWriter
from tests.report.explorer.example import HOSTILE, columns, facts, images, page, pages, write


def read(file: Path) -> Any:
    """Return the value that a data script gives."""
    found = re.fullmatch(r'explorer\.put\("([^"]+)",(.*)\);\n', file.read_text("ascii"), re.DOTALL)
    assert found and str(file.with_suffix("")).endswith(found[1])
    return json.loads(found[2])


def content(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }


def test_the_files_of_an_explorer_of_two_runs(tmp_path: Path) -> None:
    index = write(tmp_path / "out", runs=2)
    assert index == tmp_path / "out" / "index.html"
    of_run = ["images.js", "images/0000.js", "images/0001.js", "latents/0000.js", "latents/0001.js", "run.js"]
    of_run += ["sprites/0000.jpg", "tiny/0000.jpg", "top.js"]
    expected = [f"data/{run}/{name}" for run in (0, 1) for name in of_run]
    expected += ["app.css", "app.js", "data/contents.js", "data/matches.js", "explorer.json", "index.html"]
    assert sorted(content(tmp_path / "out")) == sorted(expected)
    assert read(tmp_path / "out/data/contents.js") == {
        "schema": 2,
        "runs": [{"run": "emoji/sae", "experiment": "emoji/sae"}, {"run": "emoji/other", "experiment": "emoji/sae"}],
        "compared": True,
    }
    assert read(tmp_path / "out/data/matches.js")[:2] == [[0, 39, 0], [1, 38, 0.025]]


def test_the_data_of_a_run(tmp_path: Path) -> None:
    data = write(tmp_path).parent / "data" / "0"
    run = read(data / "run.js")
    assert (run["chunk"], run["pictures"], run["sides"]) == (CHUNK, 35, [16])
    assert run["names"][:4] == [[], ["night 1"], ["star 2"], []] and len(run["names"]) == 40
    assert [column["key"] for column in run["columns"]] == ["frequency", "auroc", "q", "active"]
    assert [(text["key"], text["values"]) for text in run["texts"]] == [("about", ["class = a", "style = <b>"])]
    first, second = read(data / "latents/0000.js"), read(data / "latents/0001.js")
    assert (len(first), len(second)) == (32, 8) and first[1]["names"][0][0] == "night 1"
    assert second[7]["top"] == []  # never active
    assert read(data / "images.js")[34] == ["key-34", "picture 34 of a star", "b"]
    assert read(data / "images/0001.js")[2]["key"] == "key-34"


def test_the_scripts_are_those_that_were_reviewed(tmp_path: Path) -> None:
    """To renew them after a change of the format, which is then a new schema: copy the files that differ."""
    data = write(tmp_path, n_latents=3, n_images=2, caption=HOSTILE).parent / "data" / "0"
    for name in ("run.js", "top.js", "images.js", "latents/0000.js", "images/0000.js"):
        golden = Path(__file__).parent / "golden" / name
        assert (data / name).read_text() == golden.read_text(), name


def test_equal_records_give_equal_bytes_also_over_an_older_explorer(tmp_path: Path) -> None:
    write(tmp_path / "a", n_latents=70, runs=2)
    write(tmp_path / "b", n_latents=40)
    write(tmp_path / "a", n_latents=40)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_page_allows_no_network_and_no_inline_script(tmp_path: Path) -> None:
    folder = write(tmp_path).parent
    html = (folder / "index.html").read_text("utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert not re.search(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=|https?://", html)
    script = (folder / "app.js").read_text("utf-8")
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttp"):
        assert forbidden not in script
    assert set(re.findall(r"https?://\S+?\"", script)) == {'http://www.w3.org/2000/svg"'}
    assert "url(" not in (folder / "app.css").read_text("utf-8")


def test_every_script_of_the_page_is_a_part_of_the_app() -> None:
    from importlib.resources import files

    found = {file.name for file in (files("diffprobe.report.explorer") / "page").iterdir()}
    assert found == {f"{name}.js" for name in SCRIPTS} | {"app.css", "index.html"}


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    writer = ExplorerWriter(tmp_path)
    described = replace(facts(2, 2, HOSTILE), notes=(HOSTILE,), cells=(HOSTILE,), model=HOSTILE)
    writer.run(described, [replace(c, title=HOSTILE) for c in columns(2)], pages(2, 2), images(2, 2, caption=HOSTILE))
    folder = writer.close().parent
    for name, held in content(folder).items():
        if name.startswith("data/") and name.endswith(".js"):
            assert held.isascii() and not set(held) & set(b"<>&\0"), name
    assert HOSTILE.encode() not in (folder / "index.html").read_bytes()
    assert read(folder / "data/0/images.js")[1][1] == HOSTILE
    assert read(folder / "data/contents.js")["runs"][0]["run"] == HOSTILE


def test_neither_pages_nor_images_are_held(tmp_path: Path) -> None:
    alive = most = 0

    def released() -> None:
        nonlocal alive
        alive -= 1

    def counted(records: Iterator[Any]) -> Iterator[Any]:
        nonlocal alive, most
        for record in records:
            weakref.finalize(record, released)
            alive += 1
            most = max(most, alive)
            yield record
            del record

    n = 5000
    ExplorerWriter(tmp_path).run(
        facts(n, 300), columns(n), counted(pages(n, 300)), counted(images(300, n, with_pictures=True))
    )
    assert 1 <= most <= 3 and alive <= 2  # the one that is written, and the next


def test_without_pictures_no_sheet_is_needed(tmp_path: Path) -> None:
    data = write(tmp_path, with_pictures=False).parent / "data" / "0"
    assert read(data / "run.js")["pictures"] == 0 and not read(data / "images/0000.js")[0]["picture"]
    assert not (data / "sprites").exists() and not (data / "tiny").exists()


def test_a_run_without_images(tmp_path: Path) -> None:
    writer = ExplorerWriter(tmp_path)
    none = (replace(page(i, 3, 1), top=[]) for i in range(3))
    writer.run(facts(3, 0), columns(3), none, [])
    assert read(writer.close().parent / "data/0/images.js") == []


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        ExplorerWriter(tmp_path)
    (tmp_path / "explorer.json").write_text('{"kind": "other"}')
    with pytest.raises(ConfigError, match="explorer.json"):
        ExplorerWriter(tmp_path)
    assert (tmp_path / "index.html").read_text() == "mine"
    with pytest.raises(ConfigError, match="is a file"):
        ExplorerWriter(tmp_path / "index.html")


def test_other_files_next_to_an_explorer_stay(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_linked_data_folder_is_not_emptied(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "out" / "data").rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "data").symlink_to(tmp_path / "elsewhere")
    before = content(tmp_path / "elsewhere")
    write(tmp_path / "out", n_latents=5)
    assert content(tmp_path / "elsewhere") == before and not (tmp_path / "out" / "data").is_symlink()


def test_an_interrupted_write_is_recognised_and_written_again(tmp_path: Path) -> None:
    write(tmp_path)

    def broken() -> Iterator[LatentPage]:
        yield page(0, 40, 35)
        raise KeyboardInterrupt

    writer = ExplorerWriter(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        writer.run(facts(40, 35), columns(40), broken(), images(35, 40))
    assert not (tmp_path / "index.html").exists()  # nothing of the old explorer can be taken for the new one
    assert json.loads((tmp_path / "explorer.json").read_text())["complete"] is False
    with pytest.raises(RunFailed, match="incomplete"):
        writer.close()
    with pytest.raises(RunFailed, match="failed"):
        writer.run(facts(40, 35), columns(40), pages(40, 35), images(35, 40))
    write(tmp_path)
    assert json.loads((tmp_path / "explorer.json").read_text())["complete"] is True


def test_wrong_columns_are_refused_before_anything_is_removed(tmp_path: Path) -> None:
    before = content(write(tmp_path).parent)
    with pytest.raises(ConfigError, match="39 values for 40"):
        ExplorerWriter(tmp_path).run(facts(40, 35), columns(39), pages(40, 35), images(35, 40))
    assert content(tmp_path) == before


def twice(n: int) -> Iterator[ImagePage]:
    return (replace(image, key="same") for image in images(n, 8))


@pytest.mark.parametrize(
    ("latents", "shown", "error", "message"),
    [
        (lambda: pages(7, 5), lambda: images(5, 8), ConfigError, "8 latents and 7 pages"),
        (lambda: (page(i, 8, 5) for i in range(9)), lambda: images(5, 8), ConfigError, "latent 8"),
        (lambda: reversed(list(pages(8, 5))), lambda: images(5, 8), ConfigError, "latent 7 .* latent 0"),
        (lambda: pages(8, 5), lambda: images(4, 8), ConfigError, "5 images and 4 pages"),
        (lambda: pages(8, 5), lambda: images(6, 8), ConfigError, "5 images and more"),
        (lambda: pages(8, 6), lambda: images(5, 8), ConfigError, "image 5 does not exist"),
        (lambda: pages(8, 5), lambda: twice(5), DuplicateKey, "'same'"),
        (
            lambda: (replace(p, top=[TopImage(image=0, activation=float("nan"))]) for p in pages(8, 5)),
            lambda: images(5, 8),
            NonFinite,
            "latent 0, top image 0",
        ),
    ],
)
def test_records_that_do_not_fit_are_refused(
    tmp_path: Path, latents: Any, shown: Any, error: type[Exception], message: str
) -> None:
    writer = ExplorerWriter(tmp_path)
    with pytest.raises(error, match=message):
        writer.run(facts(8, 5), columns(8), latents(), shown())
    with pytest.raises(RunFailed):
        writer.close()


def test_the_order_of_calls_is_checked(tmp_path: Path) -> None:
    writer = ExplorerWriter(tmp_path)
    with pytest.raises(RunFailed, match="0 runs"):
        writer.close()
    for _ in range(2):
        with pytest.raises(RunFailed, match="can be compared"):
            writer.compare([])
        writer.run(facts(2, 2), columns(2), pages(2, 2), images(2, 2))
    with pytest.raises(RunFailed, match="2 of at most 2"):
        writer.run(facts(2, 2), columns(2), pages(2, 2), images(2, 2))
    writer.compare([LatentMatch(latent=0, other=1, similarity=0.5)])
    writer.close()
    with pytest.raises(RunFailed, match="closed"):
        writer.close()
