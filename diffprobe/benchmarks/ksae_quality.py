"""`diffprobe bench ksae --quality`: held-out error of k-sparse autoencoders against time, ours and other libraries'.

All start from the same weights and train on the same rows in the same order (`row_order`), with one schedule, by each
library's own scheduler; `ksae_peers.py` describes what each library runs. Each length of training is a run of its own,
with its own schedule. Rates, and further settings of ours, are chosen on validation rows only: for each library and
length the trial with the lowest fvu there. Its fvu on test rows is reported, and beside it ours with default settings.

Seconds are those of the steps alone: reading, the statistics of the training rows, and scaling, which our steps contain
and the others' do not, come before.

Finished trainings can be kept in a file of lines, from which a call that was stopped continues.
"""

import hashlib
import itertools
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from diffprobe import __version__
from diffprobe.benchmarks.kept_lines import KeptLines
from diffprobe.benchmarks.ksae_peers import (
    PEERS,
    Plan,
    Trainee,
    Unusable,
    as_ours,
    prepare,
    row_order,
    version,
    weights_of,
)
from diffprobe.benchmarks.ksae_rows import Rows, load_rows
from diffprobe.benchmarks.machine import machine
from diffprobe.benchmarks.timed_dictionaries import plain_step
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.progress import Countdown
from diffprobe.metrics.dead_latents import DeadLatents
from diffprobe.probes.sae import topk
from diffprobe.probes.sae.topk import TopK
from diffprobe.training.sae import RISE, step_size_factor

OURS, DEFAULT = "ours", "ours, defaults"
CHECKED = 32_768
"""Training rows on which a latent has to be active once not to count as dead."""
CLOSE = 1.01
"""Target at equal steps: our fvu is at most this multiple of the best other library's."""
_BLOCK = 4096
NOTHING = KeptLines(None, {})
"""Keeps no trial."""


@dataclass(frozen=True, kw_only=True)
class QualitySetting:
    """What is trained."""

    k: int = 16
    n_latents: int | None = None
    """Latents; None for 8 times the width."""
    batch: int = 4096
    lengths: tuple[int, ...] = (150, 600)
    """Steps of a training; each length is trained from the start."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Learning rates from which each library's is chosen."""
    params: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Further `probe.params` of ours -> values, of which all combinations are tried."""
    seed: int = 0

    def __post_init__(self) -> None:
        known = {f.name for f in fields(topk.Config)} - {"k", "n_latents", "expansion", "learning_rate"}
        for name in self.params:
            if name not in known:
                raise unknown("setting of ours to try", name, known)
        parts = {"lengths": self.lengths, "rates": self.rates, **self.params}
        empty = [name for name, values in parts.items() if not values or len(set(values)) < len(values)]
        if empty:
            raise ConfigError(f"bench ksae --quality: {', '.join(empty)} need at least one value, and each once.")
        if self.k < 1 or self.batch < 1 or min(self.lengths) < 1 or not min(self.rates) > 0:
            raise ConfigError(
                f"bench ksae --quality: k={self.k}, batch={self.batch}, lengths={self.lengths}, rates={self.rates}.",
                "allowed: whole numbers of at least 1, positive rates",
            )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training."""

    contender: str
    steps: int
    learning_rate: float
    params: Mapping[str, float]
    """Further settings of ours that are not the defaults."""
    seconds: float
    """Wall time of all steps."""
    cpu_s: float
    """CPU time of all steps, over all threads."""
    val_fvu: float
    test_fvu: float
    dead: float
    """Share of the latents that are active on none of the checked training rows."""


@dataclass(frozen=True, kw_only=True)
class QualityReport:
    """All trainings on one set of rows."""

    machine: str
    threads: int
    name: str
    """Name of the rows."""
    rows: tuple[int, int, int]
    """Rows for training, validation and test."""
    d_in: int
    n_latents: int
    setting: QualitySetting
    trials: tuple[Trial, ...]
    versions: dict[str, str]
    absent: dict[str, str]
    """Libraries that were not trained -> reason."""

    def chosen(self) -> list[Trial]:
        """Return for each contender and length the trial with the lowest fvu on validation rows."""
        groups: dict[tuple[str, int], list[Trial]] = {}
        for trial in self.trials:
            groups.setdefault((trial.contender, trial.steps), []).append(trial)
        return [min(group, key=_val_fvu) for group in groups.values()]

    def ratio(self, contender: str, steps: int) -> float | None:
        """Return the test fvu of a contender as a multiple of the best other library's; None without one."""
        chosen = self.chosen()
        theirs = [trial.test_fvu for trial in chosen if trial.contender in PEERS and trial.steps == steps]
        own = [trial.test_fvu for trial in chosen if trial.contender == contender and trial.steps == steps]
        return own[0] / min(theirs) if theirs and own else None

    def behind(self, contender: str) -> list[Trial]:
        """Return the chosen trials of other libraries that were better than all of a contender that took no longer."""
        chosen = self.chosen()
        own = [trial for trial in chosen if trial.contender == contender]
        return [
            trial
            for trial in chosen
            if trial.contender in PEERS
            and not any(mine.cpu_s <= trial.cpu_s and mine.test_fvu <= trial.test_fvu for mine in own)
        ]

    def to_json(self) -> str:
        """Return all trials as JSON text, one per line; the fvu of a diverged training is null."""
        tree = asdict(self)
        tree.pop("trials")
        trials = [json.dumps(_tree(trial)) for trial in self.trials]
        head = json.dumps(tree, indent=1).removesuffix("\n}")
        return head + ',\n "trials": [\n  ' + ",\n  ".join(trials) + "\n ]\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "QualityReport":
        """Return what `to_json` wrote."""
        tree = json.loads(text)
        setting = tree["setting"] | {name: tuple(tree["setting"][name]) for name in ("lengths", "rates")}
        setting["params"] = {name: tuple(values) for name, values in setting["params"].items()}
        trials = tuple(map(_trial, tree["trials"]))
        return cls(**{**tree, "rows": tuple(tree["rows"]), "setting": QualitySetting(**setting), "trials": trials})


def _tree(trial: Trial) -> dict[str, Any]:
    """Return a trial as JSON can hold it; the fvu of a diverged training is None."""
    return {name: None if value != value else value for name, value in asdict(trial).items()}


def _trial(tree: Mapping[str, Any]) -> Trial:
    """Return what `_tree` made."""
    whole: dict[str, Any] = {name: float("nan") if value is None else value for name, value in tree.items()}
    return Trial(**whole)


def _val_fvu(trial: Trial) -> float:
    return trial.val_fvu if trial.val_fvu == trial.val_fvu else float("inf")  # a diverged training has NaN


def bench_quality(
    rows: Rows,
    setting: QualitySetting,
    *,
    peers: Sequence[str] = tuple(PEERS),
    kept: Path | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> QualityReport:
    """Train ours and other libraries, each in its own process, one after the other.

    Args:
        rows: what is trained on.
        setting: what is trained.
        peers: other libraries, by name.
        kept: a file to which each finished training is added as a line, and in which it is looked for first; lines of
            other rows, settings, versions, numbers of threads or machines do not count. None to keep nothing.
        progress: called with a line of text before each library.

    Raises: ConfigError for a batch beyond the training rows and for k beyond the latents; UnknownName for a library.
    """
    for name in peers:
        if name not in PEERS:
            raise unknown("library", name, PEERS)
    n_latents = setting.n_latents or 8 * rows.train.shape[1]
    setting = replace(setting, n_latents=n_latents)
    next(row_order(len(rows.train), setting.batch, seed=setting.seed))
    topk.make(topk.Config(k=setting.k, n_latents=n_latents), rows.train.shape[1], seed=0)
    absent = {name: "not installed" for name in peers if version(name) is None}
    names = [DEFAULT, OURS, *(name for name in peers if name not in absent)]
    digest = _digest(rows) if kept is not None else ""
    step, trials = Countdown(len(names), progress), list[Trial]()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.safetensors"
        save_file({"train": rows.train, "val": rows.val, "test": rows.test}, file)
        for name in names:
            step(f"{rows.name}: {name}")
            try:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    trials += pool.apply(_in_process, (name, file, setting, torch.get_num_threads(), kept, digest))
            except Unusable as error:
                absent[name] = str(error)
    return QualityReport(
        machine=machine(), threads=torch.get_num_threads(), name=rows.name, d_in=rows.train.shape[1],
        rows=(len(rows.train), len(rows.val), len(rows.test)), n_latents=n_latents, setting=setting,
        trials=tuple(trials), versions={name: str(version(name)) for name in peers if name not in absent},
        absent=absent,
    )  # fmt: skip


def _digest(rows: Rows) -> str:
    """Return the digest of the numbers of all rows."""
    found = hashlib.sha256()
    for part in (rows.train, rows.val, rows.test):
        found.update(f"{tuple(part.shape)} {part.dtype}".encode())
        found.update(part.contiguous().numpy().tobytes())
    return found.hexdigest()


def _in_process(
    name: str, file: Path, setting: QualitySetting, threads: int, kept: Path | None, digest: str
) -> list[Trial]:
    keep_freed_memory()
    if name in PEERS:
        prepare(name)
    torch.set_num_threads(threads)
    identity = {
        "rows": digest, "contender": name, "k": setting.k, "n_latents": setting.n_latents, "batch": setting.batch,
        "seed": setting.seed, "threads": threads, "machine": machine(),
        "version": version(name) if name in PEERS else __version__,
    }  # fmt: skip
    return train_contender(name, load_rows(file), setting, KeptLines(kept, identity))


def train_contender(name: str, rows: Rows, setting: QualitySetting, kept: KeptLines = NOTHING) -> list[Trial]:
    """Return the trials of one contender: all lengths and rates, and of ours all combinations of further settings.

    Args:
        kept: finished trials, which are not trained again, and to which new ones are added.
    """
    combinations = [
        dict(zip(setting.params, values, strict=True)) for values in itertools.product(*setting.params.values())
    ]
    if name == DEFAULT:
        return [_kept_or_trained(name, rows, setting, steps, None, {}, kept) for steps in setting.lengths]
    return [
        _kept_or_trained(name, rows, setting, steps, rate, params, kept)
        for steps in setting.lengths
        for rate in setting.rates
        for params in (combinations if name == OURS else [{}])
    ]


def _kept_or_trained(
    name: str, rows: Rows, setting: QualitySetting, steps: int, rate: float | None, params: Mapping[str, float],
    kept: KeptLines,
) -> Trial:  # fmt: skip
    given: dict[str, object] = {} if rate is None else {"learning_rate": rate}
    config = topk.Config(k=setting.k, n_latents=setting.n_latents, **given, **params)  # type: ignore[arg-type]
    key = {"steps": steps, "config": asdict(config), "params": dict(params)}
    found = kept.find(key)
    if found is not None:
        return _trial(found)
    trial = _train(name, rows, setting, steps, config, params)
    kept.add(key, _tree(trial))
    return trial


def _train(
    name: str, rows: Rows, setting: QualitySetting, steps: int, config: topk.Config, params: Mapping[str, float]
) -> Trial:
    sae = topk.make(config, rows.train.shape[1], seed=setting.seed)
    sae.initialise(rows.train.mean(0), rows.train.var(0, correction=0))
    x, learning_rate = rows.train, config.rate(sae.n_latents)
    if name in PEERS:
        warmup = min(RISE, 1 - config.decay)
        plan = Plan(
            batch=setting.batch, steps=steps, learning_rate=learning_rate, warmup=warmup, decay=config.decay, aux=True
        )
        scale = sae.scale
        x, trainee = x * scale, PEERS[name].make(sae, plan)
    else:
        trainee = ours(sae, steps=steps, batch=setting.batch)
    order = row_order(len(x), setting.batch, seed=setting.seed)
    wall = cpu = 0.0
    for _ in range(steps):
        batch = x[next(order)]
        started = time.perf_counter(), time.process_time()
        trainee.step(batch)
        wall, cpu = wall + time.perf_counter() - started[0], cpu + time.process_time() - started[1]
    trained = as_ours(trainee, sae.scale)
    return Trial(
        contender=name, steps=steps, learning_rate=learning_rate, params=dict(params), seconds=wall, cpu_s=cpu,
        val_fvu=fvu(trained, rows.val), test_fvu=fvu(trained, rows.test), dead=dead_share(trained, rows.train),
    )  # fmt: skip


def ours(sae: TopK, *, steps: int, batch: int) -> Trainee:
    """Return our autoencoder in training as `training/sae.py` trains it: AdamW, its schedule, AuxK, unit norm.

    Args:
        sae: initialised autoencoder with its settings.
        steps, batch: of the run; the schedule depends on the steps, and the default window of dead latents on both.
    """
    config = sae.config
    optimiser = torch.optim.AdamW(
        sae.parameters(), lr=config.rate(sae.n_latents), weight_decay=0.0, eps=config.adam_eps,
        betas=(0.9, config.adam_beta2), fused=True,
    )  # fmt: skip
    factor = step_size_factor(config, steps)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: factor(step / steps))
    dead = DeadLatents(sae.n_latents, config.dead_window, sync_on_compute=False)

    def step(x: Tensor) -> None:
        plain_step(sae, optimiser, dead, x)
        scheduler.step()

    return Trainee(step, lambda x: sae(x)[0], lambda: weights_of(sae))


@torch.no_grad()
def fvu(sae: TopK, x: Float[Tensor, "rows d_in"]) -> float:
    """Return the squared error as a share of the variance about the mean of these rows."""
    error = sum((part - sae(part)[0]).double().square().sum() for part in x.split(_BLOCK))
    return float(error / (x.double() - x.double().mean(0)).square().sum())


@torch.no_grad()
def dead_share(sae: TopK, x: Float[Tensor, "rows d_in"]) -> float:
    """Return the share of the latents that are active on none of at most CHECKED rows, evenly spaced."""
    checked = x[:: -(-len(x) // CHECKED)]
    active = torch.zeros(sae.n_latents, dtype=torch.bool)
    for part in checked.split(_BLOCK):
        code = sae.encode(part)
        active[code.indices[code.values > 0]] = True
    return float((~active).double().mean())


def render(report: QualityReport) -> str:
    """Return the chosen trials as text with a Markdown table, and what misses the target."""
    setting = report.setting
    lines = [
        f"{report.machine}, {report.threads} threads; {report.name}: {report.rows[0]:,} training rows of width "
        f"{report.d_in}, {report.n_latents:,} latents, k = {setting.k}, batch {setting.batch:,}",
        "",
        "| steps | library | rate | CPU s | wall s | test fvu | dead |",
        "|---|---|---|---|---|---|---|",
    ]
    for trial in sorted(report.chosen(), key=lambda trial: (trial.steps, trial.test_fvu)):
        more = "".join(f", {name} {value:g}" for name, value in trial.params.items())
        lines.append(
            f"| {trial.steps} | {trial.contender} | {trial.learning_rate:.2g}{more} | {trial.cpu_s:.1f} "
            f"| {trial.seconds:.1f} | {trial.test_fvu:.4f} | {trial.dead:.1%} |"
        )
    lines.append("")
    for name in (DEFAULT, OURS):
        for steps in setting.lengths:
            ratio = report.ratio(name, steps)
            if ratio is not None:
                word = "within" if ratio <= CLOSE else "misses"
                lines.append(
                    f"{name}, {steps} steps: {ratio:.3f} x the best other library; {word} the target of {CLOSE}"
                )
        better = [f"{trial.contender} at {trial.cpu_s:.1f} s" for trial in report.behind(name)]
        if report.versions:
            lines.append(f"{name}: lower at every time except {', '.join(better) or 'none'}")
    lines += [f"{name}: {reason}" for name, reason in report.absent.items()]
    return "\n".join(lines)
