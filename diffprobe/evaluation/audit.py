"""`diffprobe audit`: measures an audit on prompt latents, and writes a result, a CSV file, a page and rates."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffprobe.analysis.audit.latents import AuditLatents
from diffprobe.analysis.audit.prompts import all_prompts
from diffprobe.analysis.audit.whitening import whitened
from diffprobe.config.parse import record_tree
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.audit_file import write_audit
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import INPUT, RESULT_FILE, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.audit_inputs import (
    PromptLatentLoader,
    RateTable,
    load_latents,
    read_latents,
    read_rates,
)
from diffprobe.evaluation.audit_measures import CellMeasures, measure_cell, measure_other_cell
from diffprobe.evaluation.audit_records import notes_of, records_of
from diffprobe.evaluation.audit_settings import Audit
from diffprobe.evaluation.audit_steering_records import steering_records
from diffprobe.report.audit_steering import render_steering_csv
from diffprobe.report.audit_table import render_csv
from diffprobe.report.pages.audit import render_audit

if TYPE_CHECKING:
    from PIL.Image import Image

KIND = "audit"
"""Kind of the results."""
CSV_FILE, PAGE_FILE, RATES_FILE = "audit.csv", "audit.html", "audit.json"
"""Files beside the result: a row per axis and subject, the page, and the rates for `diffprobe certify`."""
DOSE_FILE, GRID_FILE = "steering.csv", "steering-{}.png"
"""Files of the steering: a row per axis, steered direction, strength and measure; and the images of each axis."""
GRID_SIDE = 160
"""Largest side of a shown image, pixels."""
WORDS_CELL = "text"
"""Name of the cell of the text encoder."""
_RULES = 1
"""Raised when a measure changes, so that audits of both versions have different folders."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """Files of a finished audit."""

    result: Path
    """`result.json`."""
    rates: Path | None
    """The audit file with the rates of the main axis; None where they have no intervals."""

    @property
    def csv(self) -> Path:
        """The table."""
        return self.result.with_name(CSV_FILE)

    @property
    def steering(self) -> Path | None:
        """The table of the steering; None without steering."""
        path = self.result.with_name(DOSE_FILE)
        return path if path.is_file() else None

    @property
    def page(self) -> Path:
        """The page."""
        return self.result.with_name(PAGE_FILE)


def audit(config: Audit, *, load: PromptLatentLoader = load_latents) -> Written:
    """Measure all axes at the main cell, compare the other cells with it, and write the files.

    The folder is <output>/<experiment>/<first 12 digits of a digest>.

    Args:
        load: reads the prompt latents of a cell.

    Raises: ConfigError without `store`, or for a prompt that has no latents; the errors of the loader and of the
        measures; FileNotFoundError, ConfigError and SchemaError for tables of rates.
    """
    started_at = StartTime.now()
    if config.store is None:
        raise ConfigError(
            "store is not set: an audit reads the latents of its prompts from a folder.",
            f"it has {len(all_prompts(config)):,} prompts; write them with: "
            f"diffprobe audit experiment={config.experiment} --prompts FILE",
            fix="extract their latents, then set store=FOLDER (docs/users/audit.md)",
        )  # fmt: skip
    names = [one.name for one in config.all_subjects]
    inputs: dict[str, str] = {}
    reference = _table(config.reference.table, names, inputs, "reference")
    images = _table(config.rates, names, inputs, "rates")
    first, *others = config.cells
    raw = _latents(config.store, first, config, load, inputs, f"latents/{first}")
    latents = whitened(raw, config) if config.whiten else raw
    words = None
    if config.words_only is not None:
        cell = config.words_cell or WORDS_CELL
        words = _latents(config.words_only, cell, config, load, inputs, f"words/{cell}")
    measures = measure_cell(config, latents, words=words, images=images, reference=reference)
    steered = None
    if config.steering is not None:
        from diffprobe.evaluation.audit_steering import steer_audit  # heavy

        steered = steer_audit(config, raw, measures)
        inputs |= steered.inputs
    compared = []
    for cell in others:
        other = _latents(config.store, cell, config, load, inputs, f"latents/{cell}", whiten=config.whiten)
        compared.append((cell, measure_other_cell(config, other, measures)))
    notes = notes_of(config, measures)
    records = records_of(config, measures, compared, notes)
    if steered is not None:
        records += steering_records(config, steered)
    tree = record_tree(config)
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs, "rules": _RULES})[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    rates = _write_rates(run_dir / RATES_FILE, config, measures, names)
    grids = {} if steered is None else {one.axis: one.images for one in steered.axes}
    _write(run_dir, config, tree, records, inputs, started_at, grids)
    return Written(result=run_dir / RESULT_FILE, rates=rates)


def _latents(
    folder: str, cell: str, config: Audit, load: PromptLatentLoader, inputs: dict[str, str], name: str, *,
    whiten: bool = False,
) -> AuditLatents:  # fmt: skip
    """Read latents, check that all prompts are there, record their digest, and whiten them where that is asked."""
    import hashlib

    found = read_latents(folder, cell, load=load)
    prompts = all_prompts(config)
    rows = found.rows(prompts)
    digest = hashlib.sha256(digest_json(list(prompts)).encode())
    digest.update(np.ascontiguousarray(rows).data)
    inputs[f"{INPUT}{name}"] = digest.hexdigest()
    latents = AuditLatents(features=rows, prompts=prompts)
    return whitened(latents, config) if whiten else latents


def _table(path: str | None, subjects: list[str], inputs: dict[str, str], name: str) -> RateTable | None:
    if path is None:
        return None
    found = read_rates(path, subjects)
    file = Path(path) / RESULT_FILE if Path(path).is_dir() else Path(path)
    inputs[f"{INPUT}{name}"] = digest_file(file)
    return found


def _write(
    run_dir: Path, config: Audit, tree: dict[str, Any], records: list[MetricRecord], inputs: dict[str, str],
    started_at: StartTime, images: "Mapping[str, Mapping[float, list[Image]]]",
) -> None:  # fmt: skip
    """Write result, tables, page, and the images of each steered axis."""
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}", experiment=config.experiment, kind=KIND, config=tree,
        seeds={"resamples": config.seed, "permutations": config.seed, "clusters": config.seed}, metrics=records,
        started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    grids = {}
    for number, (axis, by_strength) in enumerate(images.items(), 1):
        from diffprobe.evaluation.steer import image_grid  # heavy

        grid = image_grid(by_strength, len(next(iter(by_strength.values()))), side=GRID_SIDE)
        with atomic_file(run_dir / GRID_FILE.format(number)) as temporary:
            grid.save(temporary, format="PNG")
        grids[axis] = (run_dir / GRID_FILE.format(number)).read_bytes()
    texts = {CSV_FILE: render_csv(result), PAGE_FILE: render_audit(result, images=grids)}
    if images:
        texts[DOSE_FILE] = render_steering_csv(result)
    for name, text in texts.items():
        with atomic_file(run_dir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    write_result(result, run_dir / RESULT_FILE)


def _write_rates(path: Path, config: Audit, measures: CellMeasures, names: list[str]) -> Path | None:
    """Write the rates of the main axis as an audit file, where they have intervals."""
    found = measures.axis(config.main_axis).rates
    if found is None or found.low is None or found.high is None:
        return None
    rows = zip(names, found.rate.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
    write_audit(
        path, {name: (rate, low, high) for name, rate, low, high in rows}, level=config.level,
        made_by=f"diffprobe audit {config.experiment}",
    )  # fmt: skip
    return path
