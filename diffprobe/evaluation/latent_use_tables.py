"""What `diffprobe eval latents` writes beside its record: a row per latent as CSV, a figure, lines for the console."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.columns import aligned
from diffprobe.core.result import MetricRecord, read_result
from diffprobe.report.table import csv_value

if TYPE_CHECKING:
    from diffprobe.analysis.latents.use import LatentUse
    from diffprobe.evaluation.latent_use_reading import Reading

TABLE_FILE, FIGURE_FILE = "latents.csv", "read-and-use.png"
"""Files in the folder of a run: a row per latent, and its AUROC against its rise."""
USED, READ, CORRELATION = "used_share", "read_share", "read_use_correlation"
USED_OF_READ, USED_OF_OTHERS = "used_share_of_read", "used_share_of_others"
TYPICAL = "median_relative_delta_mse"
"""Names of the records."""
RATE_CHANGE = "rate_change"
"""Name of the records of generated images."""
_SHOWN = 10
"""Latents of the console."""


def summary_records(
    found: "Sequence[LatentUse]", reading: "Reading", context: Mapping[str, Any], *, seed: int
) -> list[MetricRecord]:
    """Return records over all latents: how many are used, how many can be read, and how both go together.

    Args:
        found: the use of each latent.
        reading: the reading of each latent of the dictionary.
        context: cell, split, probe and n_samples of the records; the rest becomes details.
        seed: seed of the interval of the correlation.
    """
    import numpy as np

    from diffprobe.analysis.latents.use import RATE, agreement

    shared = dict(context)
    cell, split, probe, n = (shared.pop(name) for name in ("cell", "split", "probe", "n_samples"))
    fires = [use for use in found if use.delta is not None]
    counts = {"n_latents": len(found), "n_never_active": len(found) - len(fires), "rate": RATE}

    def record(name: str, value: float, **more: Any) -> MetricRecord:
        controls = more.pop("controls", {})
        return MetricRecord(
            name=name, value=float(value), split=split, n=more.pop("n", n), cell=cell, probe=probe,
            controls=controls, detail={**shared, **counts, **more},
        )  # fmt: skip

    if not fires:
        return [record("n_never_active", len(found))]
    n_used = sum(use.used for use in fires)
    mse = float(shared["mse"])
    typical = {
        name: float(np.median([use.controls[name] for use in fires]) / mse) for name in sorted(fires[0].controls)
    }
    relative = [use.relative.estimate for use in fires if use.relative is not None]
    records = [
        record(USED, n_used / len(fires), n_used=n_used),
        record(TYPICAL, np.median(relative), controls=typical),
    ]
    read = reading.passes(RATE)
    measured = [use for use in fires if reading.auroc[use.latent] is not None]
    if len(measured) < 3:
        return records
    both = agreement(found, reading.auroc, read, seed=seed)
    records.append(record(READ, both.n_read / both.n, n_read=both.n_read, n=reading.n))
    if both.correlation is not None:
        detail: dict[str, Any] = {} if both.interval is None else {"interval": list(both.interval)}
        records.append(record(CORRELATION, both.correlation, n_compared=both.n, **detail))
    for name, of, used in (
        (USED_OF_READ, both.n_read, both.n_used_of_read),
        (USED_OF_OTHERS, both.n - both.n_read, both.n_used_of_others),
    ):
        if of:
            records.append(record(name, used / of, n_used=used, n_of=of))
    return records


def write_tables(
    folder: Path, found: "Sequence[LatentUse]", reading: "Reading", rates: Mapping[int, MetricRecord]
) -> None:
    """Write the table and, where a latent has both numbers, the figure."""
    from diffprobe.report.figure_file import save_figures
    from diffprobe.report.scatter_plot import scatter_plot

    with atomic_file(folder / TABLE_FILE) as temporary:
        temporary.write_text(latents_csv(found, reading, rates), encoding="utf-8")
    shown = [
        (value, use.relative.estimate, use.used)
        for use in found
        if use.relative is not None and (value := reading.auroc[use.latent]) is not None
    ]
    if shown:
        x, y, used = zip(*shown, strict=True)
        figure = scatter_plot(
            x, y, used, x_title="read: held-out AUROC of the best value",
            y_title="used: relative rise of the denoising error", marked_title="above its control",
            other_title="not", heading="Latents, read and used",
        )  # fmt: skip
        save_figures([figure], folder / FIGURE_FILE)


def latents_csv(
    found: "Sequence[LatentUse]", reading: "Reading", rates: Mapping[int, MetricRecord] | None = None
) -> str:
    """Return the table as CSV, a row per latent; cells are empty where nothing was measured.

    The value that was chosen on train is one of them: it is empty for a latent without an AUROC on held-out samples.

    Args:
        rates: latent -> its record of generated images.
    """
    rates = rates or {}
    controls = next((list(use.controls) for use in found if use.controls), [])
    head = [
        "latent", "reads", "read_auroc", "read_q", "active_images", "active_groups", "delta_mse", "delta_mse_low",
        "delta_mse_high", "relative_delta_mse", "relative_low", "relative_high", "delta_mse_where_active",
    ]  # fmt: skip
    for name in controls:
        head += [name, f"above_{name}", f"above_{name}_low", f"above_{name}_high"]
    head += ["use_p", "use_q", "used"]
    of_rates = ["rate_of", "rate_untouched", "rate_change", "rate_change_low", "rate_change_high"]
    of_controls = [f"rate_change_{name}" for name in controls]
    head += [*of_rates, *of_controls] if rates else []
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    for use in found:
        area = reading.auroc[use.latent]
        line: list[object] = [use.latent, "" if area is None else reading.best_values[use.latent], area]
        line += [reading.auroc_q[use.latent], use.n_active, use.n_groups]
        for interval in (use.delta, use.relative):
            line += [None] * 3 if interval is None else [interval.estimate, interval.low, interval.high]
        line.append(use.delta_active)
        for name in controls:
            above = use.above.get(name)
            line += [None] * 4 if above is None else [use.controls[name], above.estimate, above.low, above.high]
        line += [use.p, use.q, int(use.used) if use.p is not None else None]
        if rates:
            record = rates.get(use.latent)
            line += [None] * (len(of_rates) + len(of_controls)) if record is None else _rate_cells(record, controls)
        writer.writerow([csv_value(cell) for cell in line])
    return buffer.getvalue()


def _rate_cells(record: MetricRecord, controls: Sequence[str]) -> list[object]:
    low, high = record.detail["interval"]
    cells: list[object] = [record.target, record.controls["untouched"], record.value, low, high]
    return cells + [record.controls.get(name) for name in controls]


def summary_lines(path: Path) -> list[str]:
    """Return the records of a result, and its most used latents, as lines of the console.

    Args:
        path: the result, beside its table.
    """
    from diffprobe.report.entry import format_record

    result = read_result(path)
    lines = []
    for record in result.metrics:
        prefix = f"latent {record.detail['latent']}: " if record.name == RATE_CHANGE else ""
        lines.append(prefix + format_record(record))
    first = result.metrics[0].detail
    if first["n_never_active"]:
        lines.append(
            f"{first['n_never_active']} of {first['n_latents']} latents are never active on these samples: not measured"
        )
    for reason in dict.fromkeys(record.detail.get("not_valid") for record in result.metrics):
        if reason:
            lines.append(f"not valid: {reason}")
    with (path.parent / TABLE_FILE).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["relative_delta_mse"]]
    rows.sort(key=lambda row: -float(row["relative_delta_mse"]))
    table = [["latent", "reads", "AUROC", "images", "relative rise", "interval", "control", "q", "used"]]
    control = next((name.removeprefix("above_") for name in (rows[0] if rows else {}) if name.startswith("above_")), "")
    for row in rows[:_SHOWN]:
        table.append([
            row["latent"], row["reads"] or "-", _number(row["read_auroc"], ".3f"), row["active_images"],
            _number(row["relative_delta_mse"], "+.2e"),
            f"[{_number(row['relative_low'], '+.2e')}, {_number(row['relative_high'], '+.2e')}]",
            format(float(row[control]) / first["mse"], "+.2e"), _number(row["use_q"], ".4f"),
            "yes" if row["used"] == "1" else "no",
        ])  # fmt: skip
    if rows:
        lines += ["", f"largest rises of the denoising error, relative to {first['mse']:.4g}; control: {control}"]
        lines += aligned(table, [True, False, *[True] * 6, False])
    return lines


def _number(text: str, form: str) -> str:
    return format(float(text), form) if text else "-"
