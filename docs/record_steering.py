"""Record `eval steering` with its choice, for docs/users/steer.md: python docs/record_steering.py RESULT_FOLDER...

Of each folder, a result of one factor or several, the result and its table go to docs/results/<model>/steering, named
by the factors; the table of the page is made from all that were recorded.
"""

import argparse
import shutil
from pathlib import Path

from diffprobe.core.result import RESULT_FILE, RunResult, read_result
from diffprobe.evaluation.steering_tables import TABLE_FILE, matched_table

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "users" / "steer.md"
FOLDER = "steering"
START, END = "<!-- tables: scenes-sd/steering-chosen -->", "<!-- end of tables -->"


def recorded() -> dict[str, RunResult]:
    """Return the recorded results by their factors."""
    return {path.stem: read_result(path) for path in sorted((DOCS / "results").glob(f"*/{FOLDER}/*.json"))}


def table() -> str:
    """Return the table of the page: the rows of all results below one heading."""
    lines: list[str] = []
    for result in recorded().values():
        made = matched_table(result).splitlines()
        lines += made if not lines else made[2:]
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """Return a page with its table made again."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{table()}\n{END}{rest.partition(END)[2]}"


def record(folder: Path) -> None:
    """Copy a result and its table."""
    result = read_result(folder / RESULT_FILE)
    target = DOCS / "results" / Path(result.config["model"]).name / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    name = "-".join(sorted(result.config["ends"]))
    shutil.copyfile(folder / RESULT_FILE, target / f"{name}.json")
    shutil.copyfile(folder / TABLE_FILE, target / f"{name}.csv")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="folders of results of `eval steering`")
    for given in parser.parse_args().folders:
        record(given)
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), encoding="utf-8")
