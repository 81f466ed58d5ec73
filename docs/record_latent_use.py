"""Record what `eval latents` measured, for docs/users/latent-use.md: python docs/record_latent_use.py RESULT_FOLDER...

Of each folder, the result and its table go to docs/results/<model>/latent-use.json and .csv; the tables of the page are
made from all that were recorded.
"""

import argparse
import csv
import shutil
from pathlib import Path

from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult, read_result
from diffprobe.evaluation.latent_use_tables import (
    CORRELATION,
    RATE_CHANGE,
    READ,
    TABLE_FILE,
    TYPICAL,
    USED,
    USED_OF_OTHERS,
    USED_OF_READ,
)
from diffprobe.report.markdown_table import markdown_table

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "users" / "latent-use.md"
NAME = "latent-use"
START, END = "<!-- tables: latent-use -->", "<!-- end of tables -->"
N_SHOWN = 5
"""Latents of each model in the second table, those of the largest rise."""


def recorded() -> dict[str, tuple[RunResult, list[dict[str, str]]]]:
    """Return the recorded results by model, with the rows of their tables."""
    found = {}
    for path in sorted((DOCS / "results").glob(f"*/{NAME}.json")):
        with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
            found[path.parent.name] = (read_result(path), list(csv.DictReader(file)))
    return found


def tables() -> str:
    """Return the tables of the page."""
    summary, largest, rates = [], [], []
    for model, (result, rows) in recorded().items():
        of = {record.name: record for record in result.metrics if record.name != RATE_CHANGE}
        control = next(iter(result.config["controls"]))
        summary.append([
            model, str(of[USED].cell), f"{of[USED].n}", f"{of[USED].detail['n_latents']}",
            f"{of[USED].detail['n_never_active']}", *_shares(of),
            f"{100 * of[TYPICAL].value:.2g} ({100 * of[TYPICAL].controls[control]:.2g})", _correlation(of),
        ])  # fmt: skip
        for row in sorted(rows, key=lambda row: -float(row["relative_delta_mse"] or "-inf"))[:N_SHOWN]:
            low, high = (100 * float(row[f"relative_{end}"]) for end in ("low", "high"))
            largest.append([
                model, row["latent"], *_reads(row), row["active_images"],
                f"{100 * float(row['relative_delta_mse']):.2g} [{low:.2g}, {high:.2g}]",
                f"{100 * float(row[control]) / of[USED].detail['mse']:.2g}", f"{float(row['use_q']):.3f}",
                "yes" if row["used"] == "1" else "no",
            ])  # fmt: skip
        for record in result.metrics:
            if record.name == RATE_CHANGE:
                rates.append([model, *_rate(record, control)])
    return "\n\n".join([
        markdown_table(
            ["model", "cell", "images", "latents", "never active", "read", "used", "used of read", "used of others",
             "median rise, % (control)", "rank correlation"], summary,
        ),
        markdown_table(
            ["model", "latent", "reads", "AUROC", "images", "rise, %", "control, %", "q", "used"], largest
        ),
        markdown_table(["model", "latent", "reads", "prompts", "untouched", "change", "change by control"], rates),
    ])  # fmt: skip


def _shares(of: dict[str, MetricRecord]) -> list[str]:
    """Return what is read and used, as counts; "-" where there is none."""
    used, read = of[USED].detail, of[READ].detail if READ in of else {}
    counts = [f"{read['n_read']}" if read else "-", f"{used['n_used']}"]
    for name in (USED_OF_READ, USED_OF_OTHERS):
        counts.append(f"{of[name].detail['n_used']} of {of[name].detail['n_of']}" if name in of else "-")
    return counts


def _correlation(of: dict[str, MetricRecord]) -> str:
    if CORRELATION not in of:
        return "-"
    low, high = of[CORRELATION].detail["interval"]
    return f"{of[CORRELATION].value:.2f} [{low:.2f}, {high:.2f}]"


def _reads(row: dict[str, str]) -> list[str]:
    """Return the value that a latent reads and its AUROC; "-" for both where held-out images do not measure it."""
    return [row["reads"], f"{float(row['read_auroc']):.3f}"] if row["read_auroc"] else ["-", "-"]


def _rate(record: MetricRecord, control: str) -> list[str]:
    low, high = record.detail["interval"]
    invalid = " (reader not valid)" if "not_valid" in record.detail else ""
    return [
        f"{record.detail['latent']}", f"{record.target}{invalid}", f"{record.n}", f"{record.controls['untouched']:.2f}",
        f"{record.value:+.2f} [{low:+.2f}, {high:+.2f}]", f"{record.controls[control]:+.2f}",
    ]  # fmt: skip


def with_tables(text: str) -> str:
    """Return a page with its tables made again."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{tables()}\n{END}{rest.partition(END)[2]}"


def record(folder: Path) -> None:
    """Copy a result and its table."""
    result = read_result(folder / RESULT_FILE)
    target = DOCS / "results" / Path(result.config["trained"]["backbone"]["path"]).name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / RESULT_FILE, target / f"{NAME}.json")
    shutil.copyfile(folder / TABLE_FILE, target / f"{NAME}.csv")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="folders of results of `eval latents`")
    for given in parser.parse_args().folders:
        record(given)
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), encoding="utf-8")
