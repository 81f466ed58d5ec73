"""Draw the picture of the explorer, from a folder that `diffprobe explore` wrote and a latent of it.

    diffprobe extract experiment=scenes/dictionary data.limit=1000
    diffprobe train experiment=scenes/dictionary data.limit=1000 'probe.grid.seed=[0,1]'
    diffprobe explore RUN --out pages
    python docs/record_explorer.py pages 329

Headless Chromium opens the table, sorted by how far the mask IoU exceeds chance, and the page of the latent.
`explorer-latent.png` has both, one below the other, in 128 colours.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
PICTURE = DOCS / "explorer-latent.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=6000",
)  # fmt: skip
VIEWS = (("#/?sort=-mask_iou_gain", 400), ("#/latent/{latent}", 800))
"""Address and height in pixels of each part of the picture."""
WIDTH, COLOURS, MOST = 1280, 128, 250_000


def shoot(browser: str, index: Path, address: str, height: int) -> Image.Image:
    """Return a view of an explorer as a picture."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "view.png"
        command = [
            browser, *FLAGS, f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}",
            f"--screenshot={file}", index.resolve().as_uri() + address,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(file) as image:
            return image.convert("RGB")


def joined(views: list[Image.Image]) -> Image.Image:
    """Return pictures one below the other, with a line between them, in few colours."""
    whole = Image.new("RGB", (WIDTH, sum(view.height for view in views) + 6 * (len(views) - 1)), "#888888")
    top = 0
    for view in views:
        whole.paste(view, (0, top))
        top += view.height + 6
    return whole.quantize(COLOURS, dither=Image.Dither.NONE)


def main(folder: str, latent: str) -> None:
    """Write the picture."""
    import shutil

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"needed: one of {', '.join(BROWSERS)}")
    index = Path(folder) / "index.html"
    views = [shoot(browser, index, address.format(latent=int(latent)), height) for address, height in VIEWS]
    joined(views).save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    print(f"{PICTURE.name}: {size:,} bytes")
    if size > MOST:
        raise SystemExit(f"more than {MOST:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
