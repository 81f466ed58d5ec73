"""Figures of tables as files for papers: PDF (several pages), SVG and PNG (numbered files)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ConfigError
from diffprobe.report.figure import table_heat_map
from diffprobe.report.filled_table import TableData
from diffprobe.report.line_plot import line_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Plot = Literal["heat-map", "line"]
PLOTS: tuple[Plot, ...] = get_args(Plot)
ENDINGS = (".pdf", ".svg", ".png")
"""Endings of figure files."""


def figures_of(tables: Sequence[TableData], plot: Plot = "heat-map") -> "list[Figure]":
    """Draw tables as matplotlib figures: one for each block of rows, with its title."""
    figures = []
    for table in tables:
        for value, rows in table.blocks():
            title = table.spec.heading
            heading = title if value is None else f"{title}: {table.spec.rows[0].label(value)}"
            draw = table_heat_map if plot == "heat-map" else line_plot
            figures.append(draw(table, rows, heading=heading))
    return figures


def check_ending(path: Path | str) -> str:
    """Return the ending of a figure file. Raises: ConfigError for one that is not written, with those that are."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(
            f"'{path}' has no ending of a figure.", f"allowed: {', '.join(ENDINGS)}",
            fix=f"--figure {Path(path).with_suffix('.pdf')}",
        )  # fmt: skip
    return ending


def save_figures(figures: "Sequence[Figure]", path: Path | str) -> list[Path]:
    """Write figures: one PDF with a page for each, or one SVG or PNG for each, numbered if there are several.

    The same figures give the same bytes with one version of matplotlib. Files of these names are replaced.

    Returns: the files.
    Raises: ConfigError for another ending.
    """
    import matplotlib as mpl

    ending, path = check_ending(path), Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    settings: Any = {"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": path.stem}  # text stays text
    with mpl.rc_context(settings):
        if ending == ".pdf":
            _save_pdf(figures, path)
            return [path]
        several = len(figures) > 1
        paths = [path.with_stem(f"{path.stem}-{i}") if several else path for i in range(1, len(figures) + 1)]
        metadata: Any = {"Date": None, "Creator": None} if ending == ".svg" else {"Software": None}
        for figure, file in zip(figures, paths, strict=True):
            with atomic_file(file) as temporary:
                figure.savefig(temporary, format=ending[1:], dpi=200, facecolor="white", metadata=metadata)
    return paths


def _save_pdf(figures: "Sequence[Figure]", path: Path) -> None:
    from matplotlib.backends.backend_pdf import PdfPages

    metadata: Any = {"CreationDate": None, "Creator": None, "Producer": None}
    with atomic_file(path) as temporary, PdfPages(temporary, metadata=metadata) as pages:
        for figure in figures:
            pages.savefig(figure)
