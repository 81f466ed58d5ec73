"""A result of `diffprobe eval directions` as Markdown tables: factors and taps in rows, timesteps in columns."""

from collections.abc import Callable, Mapping, Sequence

from diffprobe.backbones.cell import Cell
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.evaluation.direction_records import CONDITIONAL_READING, DENOISER_READINGS, REREAD_READING
from diffprobe.report.markdown_table import markdown_table

TABLES_FILE = "tables.md"
"""Name of the file in the folder of a run that has the tables."""

_Key = tuple[str, str, str, int, str]
"""Factor, reading, tap, timestep, name of the metric."""
_Show = Callable[[str, str, int], str]
"""Takes factor, tap and timestep."""


def direction_tables(result: RunResult) -> str:
    """Return the tables of one evaluation: counts of cells, agreement and AUROC of both readings, split halves, seeds.

    Args:
        result: a record of kind "directions_eval".
    """
    found = _Found(result)
    summary = found.summary()
    return "\n\n".join([
        f"Directions from prompts against counterfactual truth, {result.config['model']}.",
        markdown_table(summary[0], summary[1:]),
        found.notes(),
        *(
            text
            for reading in DENOISER_READINGS
            for text in (
                f"Agreement, {reading}: cosine with the counterfactual direction, relative to its ceiling. In "
                "parentheses: two halves of the pairs do not agree, so there is no direction to agree with. *: q above "
                f"{result.config['alpha']:g}.",
                found.by_cell(lambda *place, r=reading: found.agreement(r, *place)),  # type: ignore[misc]
            )
        ),
        "AUROC of the members of counterfactual pairs, which the directions were not made from: conditional / re-read.",
        found.by_cell(found.both("auroc")),
        "Split halves: cosine of two halves of the counterfactual pairs; of disjoint halves of contexts and seeds, "
        "conditional / re-read.",
        found.by_cell(found.halves),
        f"Agreement of each seed alone, conditional / re-read. A seed varies {found.seeds_vary}.",
        found.by_cell(found.seeds),
    ]) + "\n"  # fmt: skip


def summary_lines(result: RunResult) -> list[str]:
    """Return the counts of cells by factor and reading as aligned lines, and what is not applicable."""
    from diffprobe.core.columns import aligned

    found = _Found(result)
    rows = found.summary()
    return [*aligned(rows, [False, False, *[True] * (len(rows[0]) - 2)]), *found.notes().splitlines()]


class _Found:
    """The records of a result by place."""

    def __init__(self, result: RunResult) -> None:
        self.config = result.config
        self.counts = [record for record in result.metrics if record.name == "agreeing_cells"]
        (self.about,) = (record.detail for record in result.metrics if record.name == "captioned_factors")
        self.of: dict[_Key, MetricRecord] = {}
        for record in result.metrics:
            if record.cell is not None and record.target is not None:
                cell = Cell.parse(record.cell)
                self.of[record.target, record.detail["reading"], cell.tap, cell.timestep, record.name] = record
        places = [key for key in self.of if key[1] == REREAD_READING]
        self.rows = list(dict.fromkeys((factor, tap) for factor, _, tap, _, _ in places))
        self.timesteps = sorted({timestep for _, _, _, timestep, _ in places})

    @property
    def seeds_vary(self) -> str:
        """What the directions by seed differ in."""
        return str(self.about["seeds_vary"])

    def summary(self) -> list[list[str]]:
        """Return counts of cells by factor and reading, with the baselines; the heads are the first row."""
        rows = []
        for record in self.counts:
            detail, factor = record.detail, str(record.target)
            rows.append([
                f"{factor}: {detail['positive']} against {detail['negative']}", detail["reading"],
                f"{detail['agreeing']} of {record.n}", str(detail["cells"] - record.n),
                *(_number(detail[name]) for name in ("median_agreement", "median_auroc")),
                *(self._control(factor, name) for name in ("vae_latents", "raw_pixels")),
            ])  # fmt: skip
        heads = ["factor", "reading", f"cells that agree (at least {self.config['least_agreement']:g})",
                 "cells without direction", "median agreement", "median AUROC", "generated VAE latents",
                 "generated pixels"]  # fmt: skip
        return [heads, *rows]

    def notes(self) -> str:
        """Return what has no direction from prompts, and why."""
        reasons: Mapping[str, str] = self.about["not_applicable"]
        by_reason: dict[str, list[str]] = {}
        for name, reason in reasons.items():
            by_reason.setdefault(reason, []).append(name)
        return "\n".join(f"Not applicable: {', '.join(names)}: {reason}." for reason, names in by_reason.items())

    def _control(self, factor: str, reading: str) -> str:
        for key, record in self.of.items():
            if (key[0], key[1], key[4]) == (factor, reading, "agreement") and record.detail["defined"]:
                halves = self.of[factor, reading, key[2], key[3], "split_half_truth"].value
                text = _with_interval(record)
                return text if halves >= self.config["least_split_half"] else f"({text})"
        return "not defined"

    def by_cell(self, show: _Show) -> str:
        """Return a table of factors and taps by timestep."""
        rows = [[factor, tap, *(show(factor, tap, t) for t in self.timesteps)] for factor, tap in self.rows]
        return markdown_table(["factor", "tap", *(f"t = {t}" for t in self.timesteps)], rows)

    def agreement(self, reading: str, factor: str, tap: str, timestep: int) -> str:
        """Return the agreement of a cell with its interval and marks."""
        record = self.of[factor, reading, tap, timestep, "agreement"]
        if not record.detail["defined"]:
            return "not defined"
        text = _with_interval(record) + ("*" if record.detail["q"] > self.config["alpha"] else "")
        halves = self.of[factor, reading, tap, timestep, "split_half_truth"].value
        return text if halves >= self.config["least_split_half"] else f"({text})"

    def both(self, name: str) -> _Show:
        """Return what shows one number of both readings."""
        return lambda factor, tap, t: " / ".join(
            f"{self.of[factor, reading, tap, t, name].value:.2f}" for reading in DENOISER_READINGS
        )

    def halves(self, factor: str, tap: str, timestep: int) -> str:
        """Return the split halves of pairs and of prompts."""
        truth = self.of[factor, CONDITIONAL_READING, tap, timestep, "split_half_truth"].value
        return f"{truth:.2f}; {self.both('split_half_prompts')(factor, tap, timestep)}"

    def seeds(self, factor: str, tap: str, timestep: int) -> str:
        """Return the agreement of each seed, of both readings."""
        found: list[Sequence[float]] = [
            self.of[factor, reading, tap, timestep, "agreement"].detail.get("by_seed", ())
            for reading in DENOISER_READINGS
        ]
        return " / ".join(", ".join(f"{value:.2f}" for value in values) or "not defined" for values in found)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _with_interval(record: MetricRecord) -> str:
    ends = record.detail.get("interval")
    return f"{record.value:.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")
