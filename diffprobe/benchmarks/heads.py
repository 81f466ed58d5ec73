"""`diffprobe bench heads`: all classifiers of an experiment in one run, beside runs of one classifier each.

Both sides are the same `train` on the same feature store. Of the single runs a sample is timed, spread evenly over the
grid, and their mean is multiplied by the number of heads. The floor is the reading alone: as many passes over the
training split as the run makes, without a head. What a head scores in both is compared. Times are those of a clock
and those of the processor: the second do not count what other programs take, so their ratio also holds on a busy
machine.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from diffprobe.benchmarks.machine import machine, seconds
from diffprobe.config.schema import LoggerConfig, RunConfig
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.result import MEMBERS, RESULT_FILE, read_result
from diffprobe.features.cell_selection import choose_cells
from diffprobe.probes.classifier.inputs import CELLS, MAPS, reads
from diffprobe.report.markdown_table import markdown_table
from diffprobe.runs.plan import plan
from diffprobe.runs.train import make_source, train

KIND = "classifier"


@dataclass(frozen=True, kw_only=True)
class SingleHead:
    """One classifier of a grid, as a run of its own."""

    cell: str
    target: str
    member: str
    """Name of the point of the grid; "" without a grid."""
    config: RunConfig


@dataclass(frozen=True, kw_only=True)
class HeadsReport:
    """The measurement, and the machine it was made on."""

    machine: str
    experiment: str
    heads: int
    """Classifiers of the run; those of its controls are not counted."""
    cells: int
    singles: int
    """Single runs that were timed."""
    together_s: float
    """Seconds of the run that trains all."""
    single_s: float
    """Mean seconds of a run of one."""
    single_fastest_s: float
    single_slowest_s: float
    together_cpu_s: float
    """Seconds of the processor for the run that trains all."""
    single_cpu_s: float
    """Mean seconds of the processor for a run of one."""
    floor_s: float
    """Seconds of reading the training split as often as the run does."""
    passes: int
    """How often that is."""
    largest_difference: float
    """Largest difference of a metric of the timed heads between both."""

    @property
    def one_by_one_s(self) -> float:
        """Seconds of all heads as runs of their own, from the timed ones."""
        return self.single_s * self.heads

    @property
    def speed_up(self) -> float:
        """Seconds one by one over seconds together."""
        return self.one_by_one_s / self.together_s

    @property
    def cpu_speed_up(self) -> float:
        """`speed_up` in seconds of the processor."""
        return self.single_cpu_s * self.heads / self.together_cpu_s

    def to_json(self) -> str:
        """Return all measurements as JSON."""
        made = {name: getattr(self, name) for name in ("one_by_one_s", "speed_up", "cpu_speed_up")}
        return json.dumps({**asdict(self), **made}, indent=2)


def bench_heads(
    config: RunConfig, *, singles: int = 8, progress: Callable[[str], None] = lambda line: None
) -> HeadsReport:
    """Train all heads of a run together, and some of them alone, into a temporary folder.

    Args:
        config: a run of classifiers on a finished feature store.
        singles: heads that are trained alone; all of them if there are fewer.
        progress: called with a line of text before each step.
    Raises: ConfigError for another kind of probe, live features, a head on several cells, or no single; and what
        `train` raises.
    """
    at_least(1, singles=singles)
    _require_bank(config)
    keep_freed_memory()
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory(prefix="diffprobe-bench-") as scratch:
        quiet = replace(config.trainer, enable_progress_bar=False)
        config = replace(config, output=scratch, logger=LoggerConfig(kind="none"), trainer=quiet)
        heads = single_heads(config)
        chosen = [
            heads[round(i * (len(heads) - 1) / max(1, min(singles, len(heads)) - 1))]
            for i in range(min(singles, len(heads)))
        ]
        progress("warming up: one head")
        train(replace(chosen[0].config, output=str(Path(scratch) / "warm")))
        progress(f"{len(heads):,} heads together")
        folder, together_s, together_cpu_s = _timed(config)
        times, cpu_times, largest = [], [], 0.0
        for number, head in enumerate(chosen, 1):
            progress(f"alone, {number} of {len(chosen)}: {head.cell}, {head.target} {head.member}".rstrip())
            alone, clock_s, cpu_s = _timed(replace(head.config, output=str(Path(scratch) / "alone")))
            times.append(clock_s)
            cpu_times.append(cpu_s)
            largest = max(largest, _difference(folder, alone, head))
        passes = _passes(config)
        progress("floor: reading alone")
        floor_s = seconds(lambda: _read(config, passes), device)
    return HeadsReport(
        machine=machine(), experiment=config.experiment, heads=len(heads), cells=len({head.cell for head in heads}),
        singles=len(chosen), together_s=together_s, single_s=sum(times) / len(times), single_fastest_s=min(times),
        single_slowest_s=max(times), together_cpu_s=together_cpu_s, single_cpu_s=sum(cpu_times) / len(cpu_times),
        floor_s=floor_s, passes=passes, largest_difference=largest,
    )  # fmt: skip


def _timed(config: RunConfig) -> tuple[Path, float, float]:
    """Return the folder of a run, its seconds by the clock and those of the processor."""
    start, cpu_start = time.perf_counter(), time.process_time()
    folder = train(config).parent
    return folder, time.perf_counter() - start, time.process_time() - cpu_start


def single_heads(config: RunConfig) -> list[SingleHead]:
    """List the heads of a run, each with the run that trains it alone: by member, cell and target."""
    widths = list(make_source(config).widths)
    found = []
    for point in plan(config).points or (None,):
        asked = config.probe.cell if point is None else point.cell
        probe = replace(config.probe, batched=False) if point is None else replace(
            config.probe,
            params=point.tree["probe"]["params"],
            grid={key: tuple(values) for key, values in point.tree["probe"].get("grid", {}).items()},
            batched=False,
        )  # fmt: skip
        for cell in choose_cells(None if asked is None else [asked], widths):
            for target in config.probe.targets:
                alone = replace(config, probe=replace(probe, cell=cell, targets=(target,)))
                name = "" if point is None else point.name
                found.append(SingleHead(cell=cell, target=target, member=name, config=alone))
    return found


def render(report: HeadsReport) -> str:
    """Return the measurement as Markdown."""
    rows = [
        ["all in one run", str(report.heads), f"{report.together_s:.1f}", "1", f"{report.together_cpu_s:.1f}", "1"],
        [
            f"one by one (from {report.singles}: {report.single_s:.2f} s each, "
            f"{report.single_fastest_s:.2f} to {report.single_slowest_s:.2f})",
            str(report.heads), f"{report.one_by_one_s:.0f}", f"{report.speed_up:.1f}",
            f"{report.single_cpu_s * report.heads:.0f}", f"{report.cpu_speed_up:.1f}",
        ],
        [f"floor: {report.passes} passes over the training split, no head", "0", f"{report.floor_s:.1f}",
         f"{report.floor_s / report.together_s:.2f}", "", ""],
    ]  # fmt: skip
    return "\n".join(
        [
            f"{report.machine}; {report.experiment}: {report.heads:,} heads on {report.cells:,} cells",
            "",
            markdown_table(["", "heads", "seconds", "x all in one run", "processor, s", "x"], rows),
            "",
            f"largest difference of a metric between both: {report.largest_difference:.1e}",
        ]
    )


def _require_bank(config: RunConfig) -> None:
    if config.probe.kind != KIND:
        raise ConfigError(
            f"bench heads: a probe of kind '{config.probe.kind}' has no bank of heads.", f"allowed: {KIND}"
        )
    if config.features.source != "stored":
        raise ConfigError(
            "bench heads: features.source=live would run the backbone for every single head.",
            fix="features.source=stored, after diffprobe extract",
        )
    if reads(config.probe.name) in (CELLS, MAPS):
        raise ConfigError(f"bench heads: '{config.probe.name}' is one head on all cells, so there is no grid of heads.")


def _passes(config: RunConfig) -> int:
    """Return how often a run reads the training split: in epochs, and once before and after them."""
    from diffprobe.training.kinds.classifier import WITHOUT_GRID

    return 1 if config.probe.name in WITHOUT_GRID else config.trainer.max_epochs + 2


def _read(config: RunConfig, passes: int) -> None:
    source = make_source(config)
    for epoch in range(passes):
        for batch in source.loader(config.data.train_split, shuffle=True, epoch=epoch):
            del batch


def _difference(together: Path, alone: Path, head: SingleHead) -> float:
    """Return the largest difference of the metrics of one head. Raises: ConfigError if a metric is in one alone."""
    of_all = _values(together / MEMBERS / head.member if head.member else together, head)
    members = sorted((alone / MEMBERS).iterdir()) if (alone / MEMBERS).is_dir() else [alone]
    of_one = _values(members[0], head)
    if set(of_all) != set(of_one):
        raise ConfigError(
            f"{head.cell}, {head.target}: both runs have other metrics: {sorted(set(of_all) ^ set(of_one))}"
        )
    return max((abs(of_all[key] - of_one[key]) for key in of_all), default=0.0)


def _values(folder: Path, head: SingleHead) -> dict[tuple[str, str], float]:
    records = read_result(folder / RESULT_FILE).metrics
    own = [record for record in records if (record.cell, record.target) == (head.cell, head.target)]
    return {(record.name, record.split): record.value for record in own}
