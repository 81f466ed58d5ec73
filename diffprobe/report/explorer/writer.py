"""Writes the explorer of one run, or of two that are compared, as a folder of files that opens without a server.

Layout and formats: docs/developers/explorer.md. A folder is complete when it has index.html, which is written last.
"""

import json
import shutil
from array import array
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from diffprobe.core.artifact import write_json_atomic
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError, DuplicateKey, RunFailed
from diffprobe.report.explorer.page_data import (
    columns_data,
    facts_data,
    image_data,
    latent_data,
    matches_data,
    texts_data,
)
from diffprobe.report.explorer.records import Column, ExplorerFacts, ImagePage, LatentMatch, LatentPage, TextColumn
from diffprobe.report.explorer.script_file import Json, ScriptRows, int32_base64, write_script
from diffprobe.report.explorer.sprites import COLUMNS, TINY_COLUMNS, SpriteSheets

MARKER = "explorer.json"
"""File by which a folder that was made here is recognised."""
SCHEMA = 2
CHUNK = 32
"""Pages per script."""
TABLE_IMAGES = 4
"""Top images of a latent that its row of the table shows."""
TABLE_NAMES = 4
"""Names of a latent by which the table finds it."""
SCRIPTS = ("data", "dom", "pictures", "charts", "grid", "table", "latent", "image", "compare", "app")
"""Files of `page/` that make up app.js, in order."""


class ExplorerWriter:
    """Writes an explorer: `run` once or twice, `compare` after two runs, then `close`."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: a new or empty folder, or one with an explorer, which the first `run` replaces.

        Raises: ConfigError if the folder holds anything else.
        """
        self._folder = Path(folder)
        self._runs: list[ExplorerFacts] = []
        self._compared = False
        self._state = "open"
        if self._folder.exists() and not self._folder.is_dir():
            raise ConfigError(f"'{folder}' is a file.", fix="choose another folder for the explorer")
        if self._folder.is_dir() and any(self._folder.iterdir()) and not _is_explorer(self._folder):
            raise ConfigError(
                f"'{folder}' has files that are not of an explorer.",
                f"allowed: a new or empty folder, or one with '{MARKER}' of an explorer",
                fix="choose another folder",
            )

    def run(
        self,
        facts: ExplorerFacts,
        columns: Sequence[Column],
        pages: Iterable[LatentPage],
        images: Iterable[ImagePage],
        texts: Sequence[TextColumn] = (),
    ) -> None:
        """Write a run: the first is run 0, the second run 1. Pages and images are read once, one at a time.

        Args:
            facts: facts of the run.
            columns: numbers of the table.
            pages: one page per latent, in order.
            images: one page per image, in order.
            texts: texts of the table.

        Raises: ConfigError for records that do not fit together, DuplicateKey for two images of one key, NonFinite,
            SampleError for a thumbnail that is not an image, RunFailed after an error or for a third run. The folder
            then stays incomplete.
        """
        if self._state != "open" or len(self._runs) == 2 or self._compared:
            raise RunFailed(
                f"the explorer in '{self._folder}' takes no further run.",
                f"written: {len(self._runs)} of at most 2; state: {self._state}",
            )
        described, packed = facts_data(facts), columns_data(columns, facts.n_latents, texts)
        packed_texts = texts_data(texts, facts.n_latents)
        self._state = "failed"  # until all of the run is written
        if not self._runs:
            self._begin()
        number = len(self._runs)
        data = self._folder / "data" / str(number)
        names, top = self._write_latents(facts, pages, data, number)
        sheets = self._write_images(facts, images, data, number)
        write_script(data / "top.js", f"{number}/top", {"perLatent": TABLE_IMAGES, "images": int32_base64(top)})
        write_script(
            data / "run.js",
            f"{number}/run",
            {
                "facts": described, "columns": packed, "texts": packed_texts, "names": names, "chunk": CHUNK,
                "pictures": sheets.n_pictures, "sides": list(sheets.sides), "sheetColumns": COLUMNS,
                "tinyColumns": TINY_COLUMNS,
            },
        )  # fmt: skip
        self._runs.append(facts)
        self._state = "open"

    def compare(self, matches: Sequence[LatentMatch]) -> None:
        """Write which latents of run 0 and run 1 match.

        Raises: RunFailed without two runs, ConfigError for latents that do not exist or are matched twice, NonFinite.
        """
        if self._state != "open" or len(self._runs) != 2:
            raise RunFailed(f"the explorer in '{self._folder}' has {len(self._runs)} runs; 2 can be compared.")
        rows = matches_data(matches, self._runs[0].n_latents, self._runs[1].n_latents)
        write_script(self._folder / "data" / "matches.js", "matches", rows)
        self._compared = True

    def close(self) -> Path:
        """Write the page itself and mark the folder as complete. Returns: path of index.html.

        Raises: RunFailed if no run was written, or the last one failed.
        """
        if self._state != "open" or not self._runs:
            raise RunFailed(
                f"the explorer in '{self._folder}' is incomplete: {len(self._runs)} runs, state: {self._state}."
            )
        source = files("diffprobe.report.explorer") / "page"
        parts = [(source / f"{name}.js").read_text("utf-8") for name in SCRIPTS]
        script = '(() => {\n"use strict";\n' + "\n".join(parts) + "\n})();\n"
        self._write_contents()
        (self._folder / "app.js").write_bytes(script.encode())
        (self._folder / "app.css").write_bytes((source / "app.css").read_bytes())
        with atomic_file(self._folder / "index.html") as temporary:  # last: without it nothing can be opened
            temporary.write_bytes((source / "index.html").read_bytes())
        write_json_atomic(self._folder / MARKER, _marker(complete=True))
        self._state = "closed"
        return self._folder / "index.html"

    def _begin(self) -> None:
        """Remove what an earlier explorer left, and mark the folder as incomplete."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "index.html").unlink(missing_ok=True)
        write_json_atomic(self._folder / MARKER, _marker(complete=False))
        for name in ("app.js", "app.css"):
            (self._folder / name).unlink(missing_ok=True)
        data = self._folder / "data"
        if data.is_symlink():
            data.unlink()
        elif data.exists():
            shutil.rmtree(data)

    def _write_contents(self) -> None:
        contents: Json = {
            "schema": SCHEMA,
            "runs": [{"run": facts.run, "experiment": facts.experiment} for facts in self._runs],
            "compared": self._compared,
        }
        write_script(self._folder / "data" / "contents.js", "contents", contents)

    def _write_latents(
        self, facts: ExplorerFacts, pages: Iterable[LatentPage], data: Path, number: int
    ) -> "tuple[list[Json], array[int]]":
        """Write the pages in chunks. Returns: names that the table shows, and top images, -1 for a missing one."""
        names: list[Json] = []
        top = array("i")
        chunk: list[Json] = []
        for page in pages:
            if page.latent != len(names) or page.latent >= facts.n_latents:
                raise ConfigError(
                    f"the page of latent {page.latent} comes where that of latent {len(names)} is expected.",
                    f"latents of '{facts.run}': {facts.n_latents}, one page each, in order",
                )
            chunk.append(latent_data(page, facts))
            names.append([name.text for name in page.names if name.shown][:TABLE_NAMES])
            best = [image.image for image in page.top[:TABLE_IMAGES]]
            top.extend(best + [-1] * (TABLE_IMAGES - len(best)))
            if len(chunk) == CHUNK:
                _write_chunk(data, number, "latents", len(names), chunk)
        if len(names) != facts.n_latents:
            raise ConfigError(f"'{facts.run}' has {facts.n_latents} latents and {len(names)} pages of them.")
        _write_chunk(data, number, "latents", len(names), chunk)
        return names, top

    def _write_images(self, facts: ExplorerFacts, images: Iterable[ImagePage], data: Path, number: int) -> SpriteSheets:
        """Write pages in chunks, the list by which images are found, and the sheets."""
        sheets = SpriteSheets(data)
        keys: set[str] = set()
        chunk: list[Json] = []
        rows = ScriptRows(data / "images.js", f"{number}/images")
        complete = False
        try:
            for image in images:
                if image.key in keys:
                    raise DuplicateKey(f"two images of '{facts.run}' have the key '{image.key}'.")
                keys.add(image.key)
                if len(keys) > facts.n_images:
                    raise ConfigError(f"'{facts.run}' has {facts.n_images} images and more pages of them.")
                chunk.append(image_data(image, facts))
                rows.append([image.key, image.caption, image.label])
                sheets.add(image.key, image.thumbnail)
                if len(chunk) == CHUNK:
                    _write_chunk(data, number, "images", len(keys), chunk)
            if len(keys) != facts.n_images:
                raise ConfigError(f"'{facts.run}' has {facts.n_images} images and {len(keys)} pages of them.")
            _write_chunk(data, number, "images", len(keys), chunk)
            complete = True
        finally:
            rows.close(complete=complete)
        sheets.close()
        return sheets


def _write_chunk(data: Path, number: int, kind: str, n_written: int, chunk: list[Json]) -> None:
    """Write the last pages of `n_written` and empty the chunk."""
    if chunk:
        name = f"{(n_written - 1) // CHUNK:04d}"
        write_script(data / kind / f"{name}.js", f"{number}/{kind}/{name}", chunk)
        chunk.clear()


def _marker(*, complete: bool) -> dict[str, object]:
    return {"kind": "explorer", "schema": SCHEMA, "complete": complete}


def _is_explorer(folder: Path) -> bool:
    """Return whether the folder has the marker, of any schema and also of an interrupted write."""
    try:
        marker = json.loads((folder / MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(marker, dict) and marker.get("kind") == "explorer"
