"""Kind `sae`: a sparse autoencoder of one cell or of all timesteps of a tap, or a grid of them in one run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffprobe.config.controls import has_one_cell
from diffprobe.config.schema import LATENTS, RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import RunResult
from diffprobe.training.kinds.types import ProbePlan, Source, of_test_split, refuse_metrics, require_one_cell

if TYPE_CHECKING:
    from diffprobe.training.module import ProbeModule

TAKES_GRID = True
WITHOUT_GRID: tuple[str, ...] = ()


def validate(config: RunConfig, params: Sequence[Any]) -> None:
    """Refuse shuffled labels, targets, and a row buffer where rows are permuted already. Raises: ConfigError."""
    if config.control == "shuffled_labels":
        raise ConfigError("control=shuffled_labels: a sparse autoencoder is trained without labels.")
    refuse_metrics(config)
    if config.probe.targets not in ((), ("label",)):
        raise ConfigError(
            f"probe.targets={list(config.probe.targets)}: a sparse autoencoder has no targets.", fix="leave it unset"
        )
    if config.features.shuffle == "rows" and any(part.row_buffer for part in params):
        raise ConfigError(
            "features.shuffle=rows with probe.params.row_buffer: a permutation of all rows leaves nothing to mix.",
            fix="probe.params.row_buffer=0",
        )
    if config.trainer.strategy == LATENTS:
        _require_shardable(config, params)


def _require_shardable(config: RunConfig, params: Sequence[Any]) -> None:
    from diffprobe.probes.sae.sharded import require_shardable

    if config.probe.grid:
        raise ConfigError(
            f"trainer.strategy={LATENTS} with probe.grid: processes share the latents of one autoencoder.",
            fix="a run for each value, for example diffprobe submit train probe.params.k=16,32",
        )
    for part in params:
        require_shardable(part)


def check_cells(config: RunConfig, cells: Sequence[str]) -> None:
    """Refuse several cells that were not asked for: they have to be all timesteps of one tap. Raises: ConfigError."""
    asked = (config.probe.cell is not None and not has_one_cell(config.control)) or "cell" in config.probe.grid
    if not asked:
        tap = cells[0].partition("@")[0]
        require_one_cell(config, cells, alternative=f", or {tap}@t* for all timesteps of it")


def make_module(plan: ProbePlan, source: Source) -> "ProbeModule":
    """Make one autoencoder, or the bank of a grid. Raises: ConfigError for cells that do not fit the grid."""
    from diffprobe.features.row_layout import joint_width
    from diffprobe.training.sae import SparseAutoencoderModule

    if plan.points:
        return _bank(plan, source)
    config, d_in = plan.config, joint_width(source.widths)
    if config.trainer.strategy == LATENTS:
        from diffprobe.training.sae_sharded import ShardedAutoencoderModule

        return ShardedAutoencoderModule(
            plan.params, cell=list(source.widths), d_in=d_in, settings=config.trainer, seed=config.seed
        )
    return SparseAutoencoderModule(
        plan.params, cell=list(source.widths), d_in=d_in, settings=config.trainer, seed=config.seed
    )


def _bank(plan: ProbePlan, source: Source) -> "ProbeModule":
    from diffprobe.features.cell_selection import choose_cells
    from diffprobe.training.sae_bank import MemberSpec, SparseAutoencoderBankModule

    config = plan.config
    specs: list[MemberSpec] = []
    asked: dict[str, str | None] = {}
    for point in plan.points:
        wanted = [point.cell] if "cell" in config.probe.grid and point.cell else None
        found = choose_cells(wanted, list(source.widths))
        if len(found) > 1:
            raise ConfigError(
                f"'{point.name}' has {len(found)} cells; a member of a grid reads one.", f"given: {', '.join(found)}"
            )
        cell = found[0]
        if asked.setdefault(cell, point.cell) != point.cell:
            raise ConfigError(f"probe.grid.cell names '{cell}' twice: {asked[cell]}, {point.cell}.")
        d_in = source.widths[cell]
        specs.append(MemberSpec(name=point.name, config=point.params, cell=cell, d_in=d_in, seed=point.seed))
    return SparseAutoencoderBankModule(specs, settings=config.trainer, seed=config.seed, batched=config.probe.batched)


def summary(result: RunResult) -> str:
    """Return the number of latents and the fraction of variance unexplained on the test split."""
    fvu = next((record for record in of_test_split(result) if record.name == "fvu"), None)
    if fvu is None:  # the numbers of a grid are in the results of its members
        return "a result per member"
    n_latents = fvu.detail.get("n_latents")
    return f"{'' if n_latents is None else f'{n_latents:,} latents, '}fvu {fvu.value:.3f}"
