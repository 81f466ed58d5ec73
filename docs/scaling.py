"""Write the measured and computed parts of docs/users/scaling.md from docs/results/scaling.json.

diffprobe bench scaling --json docs/results/scaling.json
python docs/scaling.py
"""

import json
import re
from pathlib import Path

from diffprobe.benchmarks.scaling import rate_rows
from diffprobe.benchmarks.scaling_plan import Work, plan_extraction, read_rates, render_plan

RATES = Path(__file__).parent / "results" / "scaling.json"
PAGE = Path(__file__).parent / "users" / "scaling.md"
GRID_BYTES = 4 * 5 * (1280 + 1280 + 1280 + 640)
"""`mid_block`, `up_blocks.0`, `up_blocks.1` and `up_blocks.2` of Stable Diffusion 1.5 at 5 timesteps, float32."""
_COMMON = {
    "gpus": 64, "images": 10**9, "image_bytes": 100_000.0,
    "storage_read_mb_s": 20_000.0, "storage_write_mb_s": 5_000.0,
}  # fmt: skip
WORKS = {
    "one cell": Work(gpu_images_s=109.0, feature_bytes=4 * 1280.0, **_COMMON),
    "twenty cells": Work(gpu_images_s=53.8, feature_bytes=float(GRID_BYTES), **_COMMON),
    "twenty cells, verify=false": Work(gpu_images_s=53.8, feature_bytes=float(GRID_BYTES), verify=False, **_COMMON),
}
"""Plans of the page. Images/s of one H200: docs/benchmarks.md, 1 / 0.00918 s and 1 / 0.0186 s."""


def parts() -> dict[str, str]:
    """Return the generated parts of the page by name."""
    report, rates = json.loads(RATES.read_text("utf-8")), read_rates(RATES)
    setting, rows = report["setting"], report["rows"]
    measured = [
        f"{report['machine']}, {report['cores']} cores; {setting['images']:,} images of {setting['side']} px, "
        f"{report['image_bytes'] / 1e3:,.0f} kB each." + (f" {report['note']}" if "note" in report else ""),
        "",
        *rate_rows(rates),
        *(
            f"| extraction without a network, {row['processes']} processes | {row['images_s']:,.0f} images/s |"
            for row in rows
        ),
    ]
    plans = {name: render_plan(work, plan_extraction(rates, work)) for name, work in WORKS.items()}
    return {"measured": "\n".join(measured), **plans}


def filled(text: str) -> str:
    """Return the page with its generated parts made again."""
    for name, part in parts().items():
        mark = rf"(<!-- scaling: {re.escape(name)} -->\n).*?(<!-- end -->)"
        text, n = re.subn(mark, lambda found: f"{found[1]}{part}\n{found[2]}", text, flags=re.DOTALL)  # noqa: B023
        if n != 1:
            raise SystemExit(f"{PAGE}: the part '{name}' occurs {n} times, expected once")
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), encoding="utf-8")
