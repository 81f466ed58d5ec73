"""The notes under a table: samples, seeds, controls, marks. Text, LaTeX and the report page print the same notes."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffprobe.core.failure import Failure
from diffprobe.report.aggregation import seed_words
from diffprobe.report.entry import FAILED
from diffprobe.report.filled_table import ChosenCell, Entry, TableData
from diffprobe.report.mark_notes import BELOW, INJECTED, injection_line, mark_line
from diffprobe.report.query import CELL_FIELDS
from diffprobe.report.table_spec import TableSpec

OUTSIDE: str = "!"
"""Mark of a value outside the tolerance of a published value."""
EXPLORATORY = "Exploratory: many cells are read on test, which is then no new data for a choice among them."
"""Legend of the word "exploratory"."""
_MEANS_OVER_CLASSES = ("balanced_accuracy",)
"""Metrics that are a mean over the classes with samples in the split."""
_PICK = {"max": "largest", "min": "smallest", "mean": "mean"}


@dataclass(frozen=True, kw_only=True)
class Note:
    """One note under a table."""

    text: str
    """The sentence, without its mark."""
    mark: str = ""
    """The mark that entries bear: ‡, †, !, or the letter of a source; empty for a note on the whole table."""

    @property
    def line(self) -> str:
        """The note with its mark, as text."""
        if not self.mark:
            return self.text
        return f"{self.mark} {self.text}" if self.mark in (BELOW, INJECTED, OUTSIDE) else f"[{self.mark}] {self.text}"


@dataclass(frozen=True, kw_only=True)
class Notes:
    """The notes of one table."""

    notes: tuple[Note, ...]
    """In order: what is printed, then one for each mark that an entry bears."""
    marks: dict[str, str]
    """Source and provenance of a published number -> its letter."""

    @property
    def lines(self) -> tuple[str, ...]:
        """Sentences, ready to print."""
        return tuple(note.line for note in self.notes)


def table_notes(table: TableData) -> Notes:
    """Return the notes that a table needs, and no others."""
    spec, entries = table.spec, table.entries()
    measured = [entry for entry in entries if entry.value is not None]
    notes = [Note(text=_what(table, measured))]
    if spec.controls and len(table.columns) > 1:
        notes.append(Note(text=f"Control columns, over the columns of the row: {_picks(spec)}."))
    failed = [entry.failure for entry in entries if entry.failure is not None]
    for failure in sorted(set(map(_failed, failed))):
        notes.append(Note(text=failure))
    n_missing = len(entries) - len(measured) - len(failed)
    if n_missing:
        notes.append(Note(text=f"{spec.missing}: no result ({n_missing} of {len(entries)} entries)."))
    n_far = sum(entry.is_far for entry in measured)
    if n_far:
        which = "all entries" if n_far == len(measured) else f"{n_far} of {len(measured)} entries"
        text = f"Training of {which} stopped far from convergence: they measure it as well as the features."
        notes.append(Note(text=text))
    comparisons = [entry.comparison for entry in entries if entry.comparison is not None]
    marks = {note: _letter(i) for i, note in enumerate(dict.fromkeys(found.note for found in comparisons))}
    if marks:
        notes.append(Note(text="In brackets: the published value with its source, and measured - published."))
    below = mark_line(table, measured)
    if below:
        notes.append(Note(mark=BELOW, text=below))
    injected = injection_line(measured)
    if injected:
        notes.append(Note(mark=INJECTED, text=injected))
    if any(found.within is False for found in comparisons):
        notes.append(Note(mark=OUTSIDE, text="is outside the tolerance of the published value."))
    notes += [Note(mark=mark, text=source) for source, mark in marks.items()]
    if spec.is_exploratory:
        notes.append(Note(text=EXPLORATORY))
    notes += map(_choice, [table] * len(table.chosen), table.chosen)
    return Notes(notes=tuple(notes), marks=marks)


def _failed(failure: Failure) -> str:
    """Return the line of a failed run."""
    what = f"{failure.error}: {failure.message}".rstrip(".")
    return f"{FAILED}: {failure.experiment or 'a run'} ({failure.run}) ended with {what}."


def _choice(table: TableData, chosen: ChosenCell) -> Note:
    """Return the line of a chosen cell: where it is, its score on test with an interval, and how it was chosen."""
    spec, number = table.spec, table.spec.number
    axes = [axis for axis in (*spec.rows, spec.columns) if axis.field in ("cell", *CELL_FIELDS)]
    place = ", ".join(axis.label(chosen.val.where[axis.field]) for axis in axes) or str(chosen.val.cell)
    of = f" for {chosen.of}" if chosen.of else ""
    n = len(chosen.candidates)
    head = f"Chosen on val{of}: {place} ({_value(spec, chosen.val)} there, the best of {n})"
    if chosen.test is None or chosen.test.value is None:
        return Note(text=f"{head}; not measured on test.")
    text = f"{head}; on test {_value(spec, chosen.test)}"
    found = chosen.interval
    if found is not None:
        text += f" [{number.show(found.low)}, {number.show(found.high)}]"
    if chosen.test.compared:
        pick = max if spec.higher_is_better else min
        name, control = pick(chosen.test.compared.items(), key=lambda item: item[1])
        titles = {one.name: one.title for one in spec.controls}
        text += f", strongest control {number.show(control)} ({titles.get(name, name.replace('_', ' '))})"
        differences = () if chosen.test.tests is None else chosen.test.tests.differences
        for one in (difference for difference in differences if difference.control == name):
            text += (
                f", difference {number.show(one.value, signed=True)} [{number.show(one.low)}, {number.show(one.high)}]"
            )
    if found is None:
        return Note(text=f"{text}. No interval: {chosen.no_interval}.")
    return Note(
        text=f"{text}. {found.level:.0%} interval, chosen again in each of {found.n_resamples:,} resamples of "
        f"{found.n_groups:,} {found.unit}, {found.share:.0%} of which choose this cell; the best on val is too good by "
        f"about {number.show(found.optimism)}."
    )


def _value(spec: TableSpec, entry: Entry) -> str:
    spread = "" if entry.spread is None else f" ± {spec.number.show(entry.spread)}"
    return "" if entry.value is None else spec.number.show(entry.value) + spread


def over_what(spec: TableSpec, entries: Sequence[Entry]) -> str:
    """Return the phrase that names the classes a metric averages over; empty for other metrics.

    A split need not contain all classes. Their number, which fixes the chance level, is given where all results record
    it.
    """
    if spec.metric not in _MEANS_OVER_CLASSES:
        return ""
    counts = {entry.n_classes for entry in entries}
    known = {count for count in counts if count is not None}
    number = f"{_span(known)} " if known and known == counts else ""
    return f" over the {number}classes that the split holds"


def _picks(spec: TableSpec) -> str:
    """Return which control of a row is printed; the columns are named only where they differ."""
    picks = dict.fromkeys(control.pick for control in spec.controls)
    if len(picks) == 1:
        return f"the {_PICK[next(iter(picks))]} control"
    parts = [(pick, ", ".join(control.title for control in spec.controls if control.pick == pick)) for pick in picks]
    return "; ".join(f"the {_PICK[pick]} of {titles}" for pick, titles in parts)


def _what(table: TableData, measured: list[Entry]) -> str:
    spec = table.spec
    unit = f" in {spec.number.unit}" if spec.number.unit else ""
    split = spec.filter.get("split")
    on = f" on {split}" if isinstance(split, str) else ""
    samples = _span({entry.n for entry in measured})
    seeds = _span({entry.n_seeds for entry in measured})
    seeds += " seed" if seeds == "1" else " seeds"
    text = f"{spec.metric.replace('_', ' ')}{unit}{on}{over_what(spec, measured)}; {samples} samples per entry, {seeds}"
    if any(entry.spread is not None for entry in measured):
        names = dict.fromkeys(name for entry in measured for name in entry.varied)
        text += ", ± standard deviation over seeds" + (f" (they vary: {seed_words(names)})" if names else "")
    if any(entry.spread is None and entry.n_seeds > 1 for entry in measured):
        text += ", no ± where they change nothing (all give one value)"
    if not spec.ranked:
        return f"{text}."
    return f"{text}; {'higher' if spec.higher_is_better else 'lower'} is better, best of each block in bold."


def _span(numbers: set[int]) -> str:
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _letter(i: int) -> str:
    return chr(ord("a") + i) if i < 26 else f"s{i + 1}"
