"""Kind `sae`: a sparse autoencoder of one cell or of all timesteps of a tap, or a grid of them in one run."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from diffprobe.config.controls import has_one_cell
from diffprobe.config.schema import LATENTS, RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import probes
from diffprobe.core.result import RunResult
from diffprobe.training.kinds.types import ProbePlan, Source, of_test_split, refuse_metrics, require_one_cell

if TYPE_CHECKING:
    from diffprobe.training.module import ProbeModule

TAKES_GRID = True
WITHOUT_GRID: tuple[str, ...] = ()


def validate(config: RunConfig, params: Sequence[Any]) -> None:
    """Refuse shuffled labels, targets, a row buffer where rows are permuted already, a dense step of a batched grid.

    Raises: ConfigError.
    """
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
    if config.probe.batched and any(part.step == "dense" for part in params):
        raise ConfigError(
            "probe.batched=true with probe.params.step=dense: autoencoders are stepped together by the sparse step.",
            fix="probe.batched=false, or step=sparse",
        )
    if config.trainer.strategy == LATENTS:
        _require_shardable(config, params)
    reads = _reads(config)
    if reads == "rows":
        return
    name = config.probe.name
    if config.probe.grid:
        raise ConfigError(
            f"probe.grid: probe '{name}' reads several cells, and a member of a grid reads one.",
            fix="a run for each value, for example diffprobe submit train seed=0,1,2",
        )
    if has_one_cell(config.control):
        raise ConfigError(f"control={config.control}: its features have one cell, and probe '{name}' reads several.")
    if reads == "timesteps" and len(config.features.timesteps) + len(config.features.snr) < 2:
        raise _one_timestep(name, config.features.timesteps)
    if reads == "pairs":
        _require_pairs(config, params[0])


def _one_timestep(name: str, timesteps: Sequence[int]) -> ConfigError:
    return ConfigError(
        f"probe '{name}' learns one dictionary of several timesteps; given: {', '.join(map(str, timesteps)) or 'one'}.",
        fix="features.timesteps=[25,200,500] and probe.cell=TAP@t*, or probe=topk for one timestep",
    )


def _require_pairs(config: RunConfig, params: Any) -> None:
    """Refuse a target that the features do not have. Raises: ConfigError."""
    taps, cell, target = config.features.taps, config.probe.cell, params.target_tap
    if not any(fnmatchcase(target, tap) for tap in taps):
        raise ConfigError(
            f"probe.params.target_tap={target} is not among features.taps.", f"features.taps: {', '.join(taps)}",
            fix=f"features.taps=[{', '.join((*taps, target))}]",
        )  # fmt: skip
    if cell is not None and cell.partition("@")[0] == target:
        raise ConfigError(
            f"probe.cell={cell} is a cell of the target tap '{target}'; a transcoder maps one tap to another.",
            fix="probe=topk to reconstruct a tap from itself",
        )
    if config.features.shuffle == "rows":
        raise ConfigError(
            "features.shuffle=rows draws single rows of one tap; a transcoder needs those of two at the same place.",
            fix="features.shuffle=samples",
        )


def _reads(config: RunConfig) -> str:
    return getattr(probes("sae").load(config.probe.name), "READS", "rows")


def also_read(config: RunConfig, params: Any, cells: Sequence[str]) -> list[str]:
    """Return cells that a probe reads besides those of `probe.cell`: the targets of a transcoder."""
    if _reads(config) != "pairs":
        return []
    return [f"{params.target_tap}{cell[len(cell.partition('@')[0]) :]}" for cell in cells]


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
    """Refuse several cells that were not asked for: they have to be all timesteps of one tap. Raises: ConfigError.

    A timestep-conditioned autoencoder needs several, a transcoder those of its target tap too.
    """
    if _reads(config) == "pairs":
        cells, _ = split_pairs(config, cells)
    asked = (config.probe.cell is not None and not has_one_cell(config.control)) or "cell" in config.probe.grid
    if not asked:
        tap = cells[0].partition("@")[0]
        require_one_cell(config, cells, alternative=f", or {tap}@t* for all timesteps of it")
    if _reads(config) == "timesteps" and len(cells) < 2:
        raise _one_timestep(config.probe.name, [int(cell.partition("@t")[2].partition(":")[0]) for cell in cells])


def split_pairs(config: RunConfig, cells: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the input cells of a transcoder, and the target cell of each. Raises: ConfigError for missing ones."""
    target = config.probe.params["target_tap"]
    inputs = [cell for cell in cells if cell.partition("@")[0] != target]
    wanted = [f"{target}{cell[len(cell.partition('@')[0]) :]}" for cell in inputs]
    missing = [cell for cell in wanted if cell not in cells]
    if missing or not inputs:
        raise ConfigError(
            f"the features do not have the cell '{missing[0] if missing else 'of another tap'}' that a transcoder to "
            f"'{target}' needs.",
            f"cells: {', '.join(cells)}",
            fix="features.taps with the input and the target, at the same timesteps, condition and pooling",
        )
    return inputs, wanted


def make_module(plan: ProbePlan, source: Source) -> "ProbeModule":
    """Make one autoencoder, or the bank of a grid. Raises: ConfigError for cells that do not fit the grid."""
    from diffprobe.features.row_layout import joint_width
    from diffprobe.training.sae import SparseAutoencoderModule

    if plan.points:
        return _bank(plan, source)
    config = plan.config
    if _reads(config) == "pairs":
        return _transcoder(plan, source)
    d_in = joint_width(source.widths)
    if config.trainer.strategy == LATENTS:
        from diffprobe.training.sae_sharded import ShardedAutoencoderModule

        return ShardedAutoencoderModule(
            plan.params, cell=list(source.widths), d_in=d_in, settings=config.trainer, seed=config.seed
        )
    return SparseAutoencoderModule(
        plan.params, cell=list(source.widths), d_in=d_in, settings=config.trainer, seed=config.seed
    )


def _transcoder(plan: ProbePlan, source: Source) -> "ProbeModule":
    """Make a transcoder. Raises: ConfigError for maps of different sizes."""
    from diffprobe.features.row_layout import joint_width
    from diffprobe.training.sae_transcoder import TranscoderModule

    inputs, targets = split_pairs(plan.config, list(source.widths))
    for cell, target in zip(inputs, targets, strict=True):
        sizes = source.sizes.get(cell), source.sizes.get(target)
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"a transcoder maps each place of '{cell}' to the same place of '{target}'; their maps have "
                f"{' and '.join('x'.join(map(str, size or ())) for size in sizes)} places.",
                fix="taps of one resolution, or features.pool=mean",
            )
    d_in, d_out = (joint_width({cell: source.widths[cell] for cell in cells}) for cells in (inputs, targets))
    return TranscoderModule(
        plan.params, cell=inputs, targets=targets, d_in=d_in, d_out=d_out, settings=plan.config.trainer,
        seed=plan.config.seed,
    )  # fmt: skip


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
