"""Time until the table of 20,000 latents and 10,000 images is there: python -m tests.report.explorer.first_view.

The page itself measures it, from the start of its loading; the first of the three loads is that of a new browser.
"""

import tempfile
from pathlib import Path

from tests.report.explorer.chromium import Chromium
from tests.report.explorer.example import write

N_LATENTS, N_IMAGES, LOADS = 20_000, 10_000, 3


def main() -> None:
    """Print the milliseconds of each load."""
    with tempfile.TemporaryDirectory() as name:
        index = write(Path(name) / "out", n_latents=N_LATENTS, n_images=N_IMAGES)
        browser = Chromium(Path(name) / "profile")
        try:
            for _ in range(LOADS):
                browser.open(index)
                shown = browser.run("document.documentElement.dataset.firstView")
                print(f"{N_LATENTS} latents, {N_IMAGES} images: {shown} ms")
        finally:
            browser.close()


if __name__ == "__main__":
    main()
