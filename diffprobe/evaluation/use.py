"""`diffprobe eval use`: how much a backbone uses each cell of a probe experiment when it denoises.

A readout shows that something can be read from a tap; here the tap's map is replaced (ablated, or patched with that of
another sample), and the rise of the denoising error is measured on held-out samples. `scoring/tap_interventions.py`
replaces, `analysis/use_records.py` makes the records.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from diffprobe.config.parse import parse, record_tree, to_tree
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig, RunConfig
from diffprobe.config.validators import at_least
from diffprobe.config.views import ViewsConfig
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.core.groups import SINGLE_SAMPLES, require_groups
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE, RESULT_FILE, SHARDS, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.held_out import EncodedSplit, encode_split, group_of
from diffprobe.runs.extract import backbone_and_features
from diffprobe.runs.provenance import backbone_digest

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.backbones.cell import Cell
    from diffprobe.core.progress import Bar
    from diffprobe.features.request import Request
    from diffprobe.scoring.intervention_network import InterventionNetwork
    from diffprobe.scoring.tap_interventions import TapIntervention

KIND = "use"
"""Kind of the results."""
ERRORS = "errors"
"""Folder of a run with the errors of each sample, one file per cell."""
_RULES = 1
"""Raised when the errors of a cell change, so that files of an older version are not continued."""
_UNTOUCHED = "untouched"


@dataclass(frozen=True, kw_only=True)
class UseEvaluation:
    """Settings of `diffprobe eval use` (experiment files of kind `evaluate_use`)."""

    experiment: str = ""
    """Name of the experiment."""
    backbone: BackboneConfig
    """The model whose taps are replaced."""
    data: DataConfig
    """The images: `train_split` gives the means, one of the other splits is denoised."""
    features: FeaturesConfig
    """The cells, as a probe reads them: taps, timesteps, condition, pooling, draws and seed of the noise."""
    interventions: tuple[Literal["mean_ablation", "whole_map_ablation", "zero_ablation", "patching"], ...] = (
        "mean_ablation", "whole_map_ablation", "zero_ablation", "patching",
    )  # fmt: skip
    """What replaces the map of a tap: its pooled part or all of it by the mean of training samples, zero, or the map of
    a sample of another group."""
    split: str | None = None
    """Split that is denoised; None for the validation split, on which cells are compared."""
    limit: int | None = None
    """Number of samples that are denoised, the first ones in shard order; None for `data.limit`."""
    train_limit: int = 512
    """Number of training samples of the means, the first ones in shard order, and at most `data.limit`."""
    group_attribute: str | None = None
    """Attribute whose values are the groups of intervals and patching; None for the group that the data set names.
    Samples without a value, and all if it is "sample" or the data set names none, are groups of their own."""
    seed: int = 0
    """Seed of the bootstrap and of the donors of patching. The seed of the noise is features.seed."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(1, limit=self.limit, train_limit=self.train_limit)
        if self.features.views.active:
            raise ConfigError("features.views: an evaluation reads the images themselves.", fix="remove the views")
        if self.features.massive.active:
            raise ConfigError(
                "features.massive: an evaluation changes the network's own maps.", fix="remove features.massive"
            )
        names = self.interventions
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"interventions=[{', '.join(names)}]: at least one, each once.")


E = TypeVar("E", bound=UseEvaluation)
PARTS = ("backbone", "data", "features")
"""Keys that an evaluation shares with a probe run."""


def own_keys(cls: type[UseEvaluation]) -> tuple[str, ...]:
    """Return the keys of an evaluation itself, which a probe run does not have, or means otherwise."""
    return tuple(field.name for field in fields(cls) if field.name not in (*PARTS, "experiment"))


def use_of_run(run: RunConfig, settings: Mapping[str, Any], cls: type[E]) -> E:
    """Return the evaluation of the cells that a probe run reads.

    Args:
        run: the probe run; of a control, the backbone of the control.
        settings: keys of the evaluation itself, which take precedence.
        cls: `UseEvaluation`, or a class of more keys.
    Raises: ConfigError for unknown keys or wrong values.
    """
    return parse(cls, {"experiment": run.experiment, "output": run.output, **shared_parts(run), **settings})


def shared_parts(run: RunConfig) -> dict[str, Any]:
    """Return what an evaluation shares with a probe run: backbone, data, and features without views."""
    backbone, features = backbone_and_features(run)
    features = replace(features, views=ViewsConfig())
    return {"backbone": to_tree(backbone), "data": to_tree(run.data), "features": to_tree(features)}


def evaluate_use(config: UseEvaluation) -> Path:
    """Measure every cell, write `result.json`, and return its path.

    The folder is <output>/<experiment>/<first 12 digits of a digest>. The errors of each finished cell are kept below
    `errors/`, and a repeated call continues from them.

    Raises: UnknownTap, BadTimestep; ConfigError for taps or poolings that cannot be replaced, a backbone without a
        denoising error, or groups that leave no donor; TooFewGroups; EmptyClass for a split without samples; NonFinite;
        the errors of opening shards and backbone.
    """
    started_at = StartTime.now()
    opened = open_taps(config)
    return measure_and_write(
        config, opened, lambda folder: _Measurement(config, opened, folder).records(), kind=KIND, rules=_RULES,
        noise_seed=opened.request.plan.seed, started_at=started_at,
    )  # fmt: skip


def measure_and_write(
    config: UseEvaluation,
    opened: "OpenedTaps",
    measure: Callable[[Path], list[MetricRecord]],
    *,
    kind: str,
    rules: int,
    noise_seed: int,
    started_at: StartTime,
) -> Path:
    """Create the folder of an evaluation, measure, and write `result.json`; return its path.

    Args:
        measure: takes the folder, and returns the records.
        kind: kind of the result.
        rules: number that is raised when the measured numbers change; it is part of the folder's digest.
        noise_seed: seed of the noise.
    """
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    del tree["features"]["views"]  # there are none
    digest = digest_json({**tree, "inputs": opened.inputs, kind: rules})[:12]
    run_dir = Path(config.output) / (config.experiment or kind) / digest
    run_dir.mkdir(parents=True, exist_ok=True)
    result = make_result(
        run=run_dir.name,
        experiment=config.experiment,
        kind=kind,
        config=tree,
        seeds={"noise": noise_seed, "bootstrap": config.seed, "patching": config.seed},
        metrics=measure(run_dir),
        started_at=started_at,
        artifacts=opened.inputs,
    )
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


@dataclass(frozen=True)
class OpenedTaps:
    """A network whose taps can be replaced, and the data of an evaluation."""

    request: "Request"
    """Data and plan."""
    network: "InterventionNetwork"
    """The loaded backbone."""
    taps: "list[TapIntervention]"
    """The taps of the plan."""
    split: str
    """Split that is held out."""
    group: str
    """Attribute whose values are the groups, or "sample"."""
    inputs: dict[str, str]
    """Digests of shards and backbone, as results record them."""


def open_taps(config: UseEvaluation) -> OpenedTaps:
    """Open the data and the backbone of an evaluation, after all checks that need neither images nor weights.

    Raises: see `evaluate_use`.
    """
    from diffprobe.backbones.library_logging import quiet_libraries
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.features.request import Request
    from diffprobe.scoring.intervention_network import InterventionNetwork, require_replaceable
    from diffprobe.scoring.tap_interventions import TapIntervention

    keep_freed_memory()
    split = config.split or config.data.val_split
    request = Request(config.backbone, config.data, config.features, (config.data.train_split, split))
    _require_splits(request, split)
    group = group_of(request.shard_set, config.group_attribute)
    request.check_values()
    plan = request.plan
    require_replaceable(plan)
    taps = [TapIntervention(tap.path, tap.size, plan.pool, config.interventions) for tap in plan.taps]
    with quiet_libraries():
        network = InterventionNetwork(plan, device=config.backbone.device, rows=config.backbone.max_rows_per_pass)
    inputs = {SHARDS: request.shard_set.digest, BACKBONE: backbone_digest(plan.fingerprint)}
    return OpenedTaps(request, network, taps, split, group, inputs)


def _require_splits(request: "Request", split: str) -> None:
    """Refuse means of the samples that are denoised. Raises: UnknownName, ConfigError."""
    from diffprobe.runs.provenance import require_splits

    data = request.data
    if split == data.train_split:
        raise ConfigError(
            f"split={split} is the training split, which gives the means: it is not held out.",
            fix=f"split={data.val_split}, or split={data.test_split}",
        )
    named = split not in (data.val_split, data.test_split)
    require_splits(replace(data, test_split=split) if named else data, request.shard_set)


@dataclass(frozen=True)
class _Inputs:
    """What replaces the maps of the taps at one timestep."""

    means: "Mapping[str, Tensor]"
    n_train: int
    donors: Sequence[int]


@dataclass(frozen=True)
class _Measurement:
    """All cells of one evaluation."""

    config: UseEvaluation
    opened: OpenedTaps
    run_dir: Path

    @property
    def request(self) -> "Request":
        """Data and plan."""
        return self.opened.request

    @property
    def network(self) -> "InterventionNetwork":
        """The loaded backbone."""
        return self.opened.network

    def records(self) -> list[MetricRecord]:
        """Measure what is not on disk yet, and return the records of all cells."""
        from diffprobe.analysis.use_records import UseContext, use_records
        from diffprobe.scoring.tap_interventions import INTERVENTIONS, donors_of_other_groups

        config, data = self.config, self.config.data
        limit = data.limit if config.limit is None else config.limit
        samples = encode_split(self.request, self.network, self.opened.split, self.opened.group, limit=limit)
        require_groups(len(set(samples.groups)), len(samples), what="intervals over groups")
        patching = "patching" in config.interventions
        donors = donors_of_other_groups(samples.groups, seed=config.seed) if patching else []
        self._measure(samples, donors)
        metrics: list[MetricRecord] = []
        for cell in self.request.plan.cells:
            found, n_train = self._read(cell, samples)
            errors = {name: values.numpy() for name, values in found.items()}
            detail = {
                "target": self.network.target,
                "draws": self.request.plan.draws,
                "clusters": self.opened.group,
                **({"mean_of": f"{n_train} training samples"} if n_train else {}),
            }
            context = UseContext(
                cell=cell.name, split=self.opened.split, groups=samples.groups, seed=config.seed, detail=detail
            )
            metrics += use_records(errors.pop(_UNTOUCHED), errors, INTERVENTIONS, context)
        return metrics

    def _measure(self, samples: EncodedSplit, donors: Sequence[int]) -> None:
        """Write the errors of all cells without a file."""
        config, plan = self.config, self.request.plan
        left = [cell for cell in plan.cells if self._unfinished(cell, samples)]
        by_tap = {tap.tap: tap for tap in self.opened.taps}
        splices = {tap.tap: tap.splice for tap in self.opened.taps if tap.needs_mean}
        train: EncodedSplit | None = None
        if left and splices:
            limit = min(config.train_limit, config.data.limit or config.train_limit)
            split = config.data.train_split
            train = encode_split(self.request, self.network, split, SINGLE_SAMPLES, limit=limit)
        batches: dict[tuple[str, int], list[Cell]] = {}
        for cell in left:
            batches.setdefault((cell.condition, cell.timestep), []).append(cell)
        total = len(left) * len(config.interventions) * len(samples)
        total += len(batches) * (len(samples) + (0 if train is None else len(train)))
        with ProgressDisplay(transient=True) as progress:
            title = f"{len(left)} of {len(plan.cells)} cells: ablation and patching"
            with progress.bar(total, title, unit="passes", keep=False) as bar:
                for (condition, t), cells in batches.items():
                    here = {cell.tap: splices[cell.tap] for cell in cells if cell.tap in splices}
                    means: dict[str, Tensor] = {}
                    if train is not None:
                        means = self.network.means(train.of_condition[condition], t, here, bar.update)
                    n_train = 0 if train is None else len(train)
                    self._write_all(cells, samples, by_tap, _Inputs(means, n_train, donors), bar)

    def _write_all(
        self,
        cells: "list[Cell]",
        samples: EncodedSplit,
        taps: "Mapping[str, TapIntervention]",
        inputs: "_Inputs",
        bar: "Bar",
    ) -> None:
        """Measure the cells of one timestep and condition, and write the file of each as soon as it is finished."""
        from safetensors.torch import save_file

        t, held_out = cells[0].timestep, samples.of_condition[cells[0].condition]
        untouched = self.network.errors(held_out, t, tick=bar.update)
        for cell in cells:
            mean = inputs.means.get(cell.tap)
            found = taps[cell.tap].measure(self.network, held_out, t, mean=mean, donors=inputs.donors, tick=bar.update)
            header = {**self._header(cell, samples), "n_train": str(inputs.n_train)}
            with atomic_file(self._path(cell)) as temporary:
                save_file({_UNTOUCHED: untouched, **found}, temporary, metadata=header)

    def _path(self, cell: "Cell") -> Path:
        return self.run_dir / ERRORS / f"{digest_json(cell.name)[:16]}.safetensors"

    def _header(self, cell: "Cell", samples: EncodedSplit) -> dict[str, str]:
        held_out = samples.of_condition[cell.condition]
        return {"cell": cell.name, "samples": digest_json(list(held_out.keys))}

    def _unfinished(self, cell: "Cell", samples: EncodedSplit) -> bool:
        if not self._path(cell).exists():
            return True
        self._read(cell, samples)
        return False

    def _read(self, cell: "Cell", samples: EncodedSplit) -> "tuple[dict[str, Tensor], int]":
        """Read the errors of a cell, and the number of training samples behind its means.

        Raises: SchemaError for a file that is damaged, or of other samples.
        """
        from diffprobe.core.safetensors_file import open_safetensors

        path, fix = self._path(cell), f"remove the folder '{self.run_dir / ERRORS}' and repeat the command"
        with open_safetensors(path, fix=fix) as stored:
            header, names = stored.metadata() or {}, set(stored.keys())
            found = {
                name: stored.get_tensor(name) for name in (_UNTOUCHED, *self.config.interventions) if name in names
            }
        expected = {_UNTOUCHED, *self.config.interventions}
        n_train = header.pop("n_train", "")
        if header != self._header(cell, samples) or names != expected or not n_train.isdecimal():
            raise SchemaError(f"'{path}' does not hold the errors of {cell.name} for these samples.", fix=fix)
        if any(values.shape != (len(samples),) for values in found.values()):
            raise SchemaError(f"'{path}' does not hold one error per sample.", fix=fix)
        return found, int(n_train)
