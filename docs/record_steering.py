"""Record `eval steering` with its choice, for docs/users/steer.md: python docs/record_steering.py RESULT_FOLDER...

Of each folder, a result of one factor or several, the result and its table go to docs/results/<model>/steering, named
by the factors; the tables of the page, one per model, are made from all that were recorded.
"""

import argparse
import shutil
from pathlib import Path

from diffprobe.core.result import RESULT_FILE, RunResult, read_result
from diffprobe.evaluation.steering_tables import TABLE_FILE, matched_table

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "users" / "steer.md"
FOLDER = "steering"
MODELS = ("scenes-sd", "scenes-flow")
END = "<!-- end of tables -->"


def recorded(model: str) -> dict[str, RunResult]:
    """Return the recorded results of a model by their factors."""
    return {path.stem: read_result(path) for path in sorted((DOCS / "results" / model / FOLDER).glob("*.json"))}


def table(model: str) -> str:
    """Return the table of a model: the rows of all its results below one heading."""
    lines: list[str] = []
    for result in recorded(model).values():
        made = matched_table(result).splitlines()
        lines += made if not lines else made[2:]
    return "\n".join(lines)


def with_tables(text: str) -> str:
    """Return a page with its tables made again."""
    for model in MODELS:
        start = f"<!-- tables: {model}/steering-chosen -->"
        before, _, rest = text.partition(start)
        text = f"{before}{start}\n{table(model)}\n{END}{rest.partition(END)[2]}"
    return text


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
