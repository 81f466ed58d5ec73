"""Sprite sheets: thumbnails of many images in one file, so that a page loads tens of files and not thousands.

There are two kinds: sheets of 10 x 10 images for pages, and sheets of 32 x 32 tiny ones for the rows of the table.
Images have white behind transparent parts. A cell of an image that is not at hand is grey.
"""

import io
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.core.errors import SampleError

if TYPE_CHECKING:
    from PIL import Image

COLUMNS = 10
"""Images per row of a sheet, and rows per sheet."""
LARGEST_SIDE = 96
"""Largest side of a cell in pixels; larger thumbnails are reduced."""
TINY_COLUMNS = 32
TINY_SIDE = 28
_MAX_PIXELS = 4096 * 4096
_GREY = (222, 221, 217)


class SpriteSheets:
    """Writes the sheets of a run while its images come, one sheet of each kind in memory."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: where `sprites/` and `tiny/` are written."""
        self._folder = folder
        self._cells: list[Image.Image | None] = []
        self._tiny: list[Image.Image | None] = []
        self.sides: list[int] = []
        """Side of the cells of each sheet in pixels."""
        self.n_pictures = 0
        """Images that have a thumbnail."""
        self._n_sheets = 0
        self._n_tiny = 0

    def add(self, key: str, thumbnail: bytes | None) -> None:
        """Add the next image. Raises: SampleError, with its key, if it is not a PNG or JPEG image."""
        picture = None if thumbnail is None else decode(key, thumbnail)
        self.n_pictures += picture is not None
        self._cells.append(picture)
        self._tiny.append(None if picture is None else _fit(picture, TINY_SIDE))
        if len(self._cells) == COLUMNS**2:
            self._write_sheet()
        if len(self._tiny) == TINY_COLUMNS**2:
            self._write_tiny()

    def close(self) -> None:
        """Write the last sheets, which may have fewer rows. Without any picture, no sheet is left."""
        if self._cells:
            self._write_sheet()
        if self._tiny:
            self._write_tiny()
        if not self.n_pictures:
            for name in ("sprites", "tiny"):
                shutil.rmtree(self._folder / name, ignore_errors=True)
            self.sides = []

    def _write_sheet(self) -> None:
        side = max((max(cell.size) for cell in self._cells if cell is not None), default=1)
        self.sides.append(side)
        self._save(self._cells, COLUMNS, side, f"sprites/{self._n_sheets:04d}.jpg", 92)
        self._cells = []
        self._n_sheets += 1

    def _write_tiny(self) -> None:
        self._save(self._tiny, TINY_COLUMNS, TINY_SIDE, f"tiny/{self._n_tiny:04d}.jpg", 80)
        self._tiny = []
        self._n_tiny += 1

    def _save(self, cells: "list[Image.Image | None]", columns: int, side: int, name: str, quality: int) -> None:
        from PIL import Image

        rows = -(-len(cells) // columns)
        sheet = Image.new("RGB", (columns * side, rows * side), "white")
        for i, cell in enumerate(cells):
            left, top = i % columns * side, i // columns * side
            if cell is None:
                sheet.paste(_GREY, (left, top, left + side, top + side))
            else:
                fitted = _fit(cell, side)
                sheet.paste(fitted, (left + (side - fitted.width) // 2, top + (side - fitted.height) // 2))
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(file, "JPEG", quality=quality, subsampling=0, optimize=True)


def decode(key: str, encoded: bytes) -> "Image.Image":
    """Decode a thumbnail. Returns: an RGB image of sides up to `LARGEST_SIDE`, white behind transparent parts.

    Raises: SampleError if it is not a PNG or JPEG image, or a huge one.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded), formats=("PNG", "JPEG")) as opened:
            if opened.width * opened.height > _MAX_PIXELS:
                raise SampleError(f"the thumbnail of image '{key}' has {opened.width} x {opened.height} pixels.")
            picture = opened.convert("RGBA")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, SampleError):
            raise
        raise SampleError(
            f"the thumbnail of image '{key}' cannot be decoded: {error}.", "allowed: the bytes of a PNG or JPEG file"
        ) from error
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return _fit(white.convert("RGB"), min(LARGEST_SIDE, max(picture.size)))


def _fit(picture: "Image.Image", side: int) -> "Image.Image":
    """Scale a picture so that its larger side is `side`."""
    from PIL import Image

    scale = side / max(picture.size)
    if scale == 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)
