"""The table of `diffprobe score` in the terminal, from its result alone."""

from diffprobe.core.columns import aligned
from diffprobe.core.result import MetricRecord, RunResult

_HEADER = ("metric", "images", "value", "sd over noise", "interval", "passes per image", "controls")


def terminal_lines(result: RunResult) -> list[str]:
    """Return the table of accuracies, and of each question the accuracy against denoiser passes."""
    lines = aligned([list(_HEADER), *(_row(record) for record in result.metrics)])
    for record in result.metrics:
        if points := record.detail.get("curve"):
            lines.append("")
            lines.append(f"{record.name} against denoiser passes per image (without controls):")
            rows = [[f"{p['n_timesteps']:g} timesteps", f"{p['passes']:,.1f}", f"{p['accuracy']:.3f}"] for p in points]
            lines += aligned([["first", "passes", "accuracy"], *rows])
    return lines


def _row(record: MetricRecord) -> list[str]:
    detail = record.detail
    missing = "" if "classes" in detail else "(one group)"  # the overlap of classes is not a mean over groups
    interval = " to ".join(f"{end:.3f}" for end in detail["interval"]) if "interval" in detail else missing
    if "p" in detail:
        interval += f" (p {detail['p']:.3f})"
    controls = ", ".join(f"{name} {value:.3f}" for name, value in record.controls.items())
    spread = f"{record.spread:.3f}" if record.spread is not None else ""
    return [
        record.name, f"{record.n:,}", f"{record.value:.3f}", spread, interval,
        f"{detail['passes_per_image']:,.1f}", controls,
    ]  # fmt: skip
