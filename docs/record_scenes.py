"""Record what the twins of `scenes` were measured to do, for their cards: python docs/record_scenes.py RUNS, the folder
of the runs of scenes/evaluate and scenes/rates with both twins, and of scenes/steering with one.

Result files go to docs/results/scenes-sd and docs/results/scenes-sd-permuted, the tables into the cards, each between
its markers, and the figures of the rates into docs. With runs of scenes/layers the table of layers is made again; their
result files are too large to keep, so it is kept as it is printed and as CSV; so is the first table of eval directions.
`--certificate NAME=FOLDER` records a certificate as well, for the table of docs/users/certify.md, which has all that
were recorded.
"""

import argparse
import shutil
from itertools import takewhile
from pathlib import Path

from diffprobe.core.result import RESULT_FILE, RunResult, read_result
from diffprobe.evaluation.backbone_tables import backbone_tables
from diffprobe.evaluation.certificate_tables import certificate_tables
from diffprobe.evaluation.rate_tables import rate_tables
from diffprobe.evaluation.steering_tables import TABLE_FILE, matched_table
from diffprobe.runs.tables import build_table

DOCS = Path(__file__).resolve().parent
TWINS = ("scenes-sd", "scenes-sd-permuted")
DIRECTIONS = {**dict.fromkeys(TWINS, "scenes"), "scenes-flow": "scenes_flow"}
"""Model with an evaluation of directions -> folder of its experiment."""
KINDS = {"backbone_eval": "evaluation", "rates_eval": "rates", "steering_eval": "steering"}
"""Kind of a result -> name of its file below docs/results/<twin>."""
END = "<!-- end of tables -->"
LAYERS = DOCS / "results" / "scenes-sd" / "layers.txt"
CERTIFICATES = DOCS / "results" / "scenes-sd" / "certificates"
PAGES = (DOCS / "users" / "certify.md", DOCS / "users" / "directions.md", DOCS / "users" / "steer.md")
"""Pages with tables, besides the cards."""


def card(name: str) -> Path:
    """Return the card of a twin."""
    return DOCS.parent / "diffprobe" / "assets" / name / "README.md"


def directions_of(name: str) -> Path:
    """Return the file of the first table of `eval directions` of a model."""
    return DOCS / "results" / name / "directions.txt"


def recorded(name: str, kind: str) -> RunResult:
    """Return a recorded result of a twin."""
    return read_result(DOCS / "results" / name / f"{kind}.json")


def tables() -> dict[str, str]:
    """Return the tables of the cards by their markers, made from the recorded results."""
    found = {f"{name}/evaluation": backbone_tables(recorded(name, "evaluation")) for name in TWINS}
    certificates = [(path.stem.replace("-", " "), read_result(path)) for path in sorted(CERTIFICATES.glob("*.json"))]
    rates = rate_tables([recorded(name, "rates") for name in TWINS])
    kept = {"layers": LAYERS, **{f"{name}/directions": directions_of(name) for name in DIRECTIONS}}
    found |= {name: path.read_text("utf-8") for name, path in kept.items()}
    found |= steered()
    return {**found, "rates": rates, "certificates": certificate_tables(certificates)}


def steered() -> dict[str, str]:
    """Return the tables of the comparison of ways to steer, as far as one is recorded."""
    found = {}
    for name in TWINS:
        for path in sorted((DOCS / "results" / name).glob("steering*.json")):
            found[f"{name}/{path.stem}"] = matched_table(recorded(name, path.stem))
    return found


def with_tables(text: str, marker: str, content: str) -> str:
    """Replace what is between a marker and the next end; a page without the marker stays as it is."""
    before, start, after = text.partition(f"<!-- tables: {marker} -->\n")
    if not start:
        return text
    _, end, rest = after.partition(END)
    return f"{before}{start}{content.strip()}\n{end}{rest}"


def record(runs: Path) -> None:
    """Copy the results, and write their tables into the cards."""
    if (runs / "scenes" / "layers").is_dir():
        record_layers(runs)
    record_directions(runs)
    for path in sorted(runs.rglob(RESULT_FILE), key=lambda path: path.stat().st_mtime):
        result = read_result(path)
        name = result.config.get("model")
        if result.kind not in KINDS or name not in TWINS:
            continue
        level = result.config.get("collateral")
        file = KINDS[result.kind] + ("" if level is None else f"-at-{level:g}")
        copy = DOCS / "results" / str(name) / f"{file}.json"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        if result.kind == "steering_eval" and level is None:
            shutil.copyfile(path.with_name(TABLE_FILE), copy.with_suffix(".csv"))
        elif result.kind == "rates_eval":
            shutil.copyfile(path.parent / "rates" / "rates.png", DOCS / f"{name}-rates.png")
        elif (path.parent / "samples.png").exists():
            shutil.copyfile(path.parent / "samples.png", DOCS / f"{name}-samples.png")
    found = tables()
    for page in (*map(card, TWINS), *PAGES):
        for marker, content in found.items():
            page.write_text(with_tables(page.read_text("utf-8"), marker, content), encoding="utf-8")


def record_layers(runs: Path) -> None:
    """Keep the table of layers as it is printed, without title and caption, and as CSV."""
    table = build_table("scenes", runs)
    lines = table.render("markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    notes = lines[next(number for number, line in enumerate(lines) if line.startswith("- ")) :]
    LAYERS.write_text("\n".join([*rows, "", *notes]) + "\n", encoding="utf-8")
    LAYERS.with_suffix(".csv").write_text(table.render("csv"), encoding="utf-8")


def record_directions(runs: Path) -> None:
    """Keep the first table of each evaluation of directions."""
    found = {path for folder in DIRECTIONS.values() for path in (runs / folder / "directions").glob("*/tables.md")}
    for path in sorted(found):
        lines = path.read_text("utf-8").splitlines()
        first = next(number for number, line in enumerate(lines) if line.startswith("|"))
        rows = list(takewhile(lambda line: line.startswith("|"), lines[first:]))
        name = str(read_result(path.with_name(RESULT_FILE)).config["model"])
        directions_of(name).write_text("\n".join(rows) + "\n", encoding="utf-8")


def record_certificate(name: str, folder: Path) -> None:
    """Copy a certificate under the name that its method has in the table."""
    CERTIFICATES.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / RESULT_FILE, CERTIFICATES / f"{name.replace(' ', '-')}.json")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder of the runs, for example runs")
    parser.add_argument("--certificate", action="append", default=[], metavar="NAME=FOLDER")
    given = parser.parse_args()
    for certificate in given.certificate:
        called, _, where = certificate.partition("=")
        record_certificate(called, Path(where))
    record(given.runs)
