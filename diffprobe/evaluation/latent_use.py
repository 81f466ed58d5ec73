"""`diffprobe eval latents`: what can be read from each latent of an autoencoder, beside whether the denoiser uses it.

Reading: AUROC of the latent's best attribute value, chosen on training images and measured on held-out ones. Use: the
rise of the denoising error on held-out images with the latent ablated (`scoring/latent_ablation.py`), beside controls
of equal norm at the same places; and, of a few latents, the rate of that value in generated images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import SchemaError
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import INPUT, RESULT_FILE, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.held_out import EncodedSplit
from diffprobe.evaluation.latent_use_inputs import OpenedLatents, first_samples, open_latents
from diffprobe.evaluation.latent_use_reading import Reading, read_latents
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.analysis.latents.use import LatentUse
    from diffprobe.core.progress import Bar
    from diffprobe.scoring.latent_ablation import Ablated, TapCodes

KIND = "latent_use"
"""Kind of the results."""
ERRORS = "errors"
"""Folder beside those of runs with the rises of the error, one file per block of latents."""
NOT_RECORDED = ("experiment", "run", "backbone_path", "data_path", "device", "output")
_RULES = 1
"""Raised when rises change, so that files of an older version are not continued."""
_BLOCK = 32
"""Latents per file."""


def evaluate_latents(config: LatentUseEvaluation) -> Path:
    """Measure reading and use of latents, write `result.json` with a table and a figure, and return its path.

    The folder is <output>/<experiment>/<first 12 digits of a digest>. Rises of finished blocks of latents are kept in
    <output>/<experiment>/errors, generated latents in <output>/<experiment>/generated, and a repeated call continues
    from them, with other settings too where these do not change them.

    Raises: ConfigError for a folder that is not an sae run or holds several autoencoders, for latents out of range, a
        tap or pooling that cannot be replaced, or a backbone without a denoising error; UnknownName; WeightsMissing,
        WeightsMismatch, SchemaError for files that do not fit the run; TooFewGroups; NonFinite; the errors of opening
        shards and backbone.
    """
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.evaluation.latent_use_rates import generated_rates
    from diffprobe.evaluation.latent_use_tables import summary_records, write_tables

    keep_freed_memory()
    started_at = StartTime.now()
    opened = open_latents(config)
    trained = opened.trained
    settings = {key: value for key, value in asdict(config).items() if key not in NOT_RECORDED}
    tree = {**settings, "run": trained.result.run, "trained": trained.result.config, "cell": opened.cell.name}
    identity = {**tree, "weights": trained.result.artifacts, "rules": _RULES}
    run_dir = Path(config.output) / config.experiment / digest_json(identity)[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    held_out, reading, codes = read_latents(config, opened)
    facts = [_RULES, trained.result.artifacts, opened.name, opened.cell.name, opened.split, opened.request.plan.seed]
    kept = run_dir.parent / ERRORS / digest_json([*facts, list(config.controls), config.seed])[:12]
    measured = _Measurement(config, opened, kept, first_samples(held_out, config.limit), codes)
    found = measured.use(config.latents or _chosen(config, reading, opened.sae.n_latents))
    metrics = summary_records(found, reading, measured.context(), seed=config.seed)
    rates: Mapping[int, MetricRecord] = {}
    if config.generates:
        rates = generated_rates(config, opened, reading, run_dir.parent)
        metrics += rates.values()
    result = make_result(
        run=run_dir.name, experiment=config.experiment, kind=KIND, config=tree,
        seeds={**trained.result.seeds, "noise": opened.request.plan.seed, "use": config.seed}, metrics=metrics,
        started_at=started_at,
        artifacts={INPUT + name.removeprefix(INPUT): sha for name, sha in trained.result.artifacts.items()},
    )  # fmt: skip
    write_tables(run_dir, found, reading, rates)
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


def _chosen(config: LatentUseEvaluation, reading: Reading, n_latents: int) -> tuple[int, ...]:
    return tuple(range(n_latents)) if config.n_latents is None else reading.first(config.n_latents)


@dataclass(frozen=True)
class _Measurement:
    """The rises of the error of all latents."""

    config: LatentUseEvaluation
    opened: OpenedLatents
    folder: Path
    """Of the files of rises."""
    samples: EncodedSplit
    codes: "TapCodes"

    def context(self) -> dict[str, object]:
        """Return what all records share: cell, split, probe, n, and details."""
        opened = self.opened
        return {
            "cell": opened.cell.name, "split": opened.split, "probe": opened.trained.config.probe.name,
            "n_samples": len(self.samples), "clusters": opened.group, "sae": opened.name,
            "replaced": opened.network.splice.description, "target": opened.network.target,
            "draws": opened.request.plan.draws, "mse": float(self.codes.untouched.mean()),
        }  # fmt: skip

    def use(self, latents: Sequence[int]) -> "list[LatentUse]":
        """Measure the latents that are not on disk yet, and return the use of all."""
        from diffprobe.analysis.latents.use import with_q

        blocks = [sorted(latents)[start : start + _BLOCK] for start in range(0, len(latents), _BLOCK)]
        left = [block for block in blocks if self._unfinished(block)]
        measures = 1 + len(self.config.controls)
        total = measures * sum(self._n_pairs(latent) for block in left for latent in block)
        with ProgressDisplay(transient=True) as progress:
            title = f"{sum(map(len, left))} of {len(latents)} latents: ablation"
            with progress.bar(total, title, unit="passes", keep=False) as bar:
                for block in left:
                    self._measure(block, bar)
        return with_q([use for block in blocks for use in self._use_of_block(block)])

    def _n_pairs(self, latent: int) -> int:
        here = self.codes.of(latent)
        n = len(self.samples)
        return len(set((self.codes.draw[here] * n + self.codes.sample[here]).tolist()))

    def _measure(self, block: Sequence[int], bar: "Bar") -> None:
        """Measure a block of latents, and write its file."""
        from safetensors.torch import save_file

        from diffprobe.scoring.latent_ablation import ablated_errors

        network, cell = self.opened.network, self.opened.cell
        found = ablated_errors(
            network, self.samples.of_condition[cell.condition], cell.timestep, cell.tap, network.splice,
            self.opened.sae, self.codes, block, controls=self.config.controls, seed=self.config.seed, tick=bar.update,
        )  # fmt: skip
        with atomic_file(self._path(block)) as temporary:
            tensors = {"latent": found.latent, "sample": found.sample, "rise": found.rise}
            save_file(
                {name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=self._header(block)
            )

    def _use_of_block(self, block: Sequence[int]) -> "list[LatentUse]":
        from diffprobe.analysis.latents.use import UseSettings, use_of_latents

        config, found, n = self.config, self._read(block), len(self.samples)
        row_of = {latent: row for row, latent in enumerate(block)}
        rows = np.array([row_of[latent] for latent in found.latent.tolist()], dtype=np.int64)
        columns = found.sample.numpy()
        rises = np.zeros((1 + len(config.controls), len(block), n))
        rises[:, rows, columns] = found.rise.numpy()
        active = np.zeros((len(block), n), dtype=np.bool_)
        active[rows, columns] = True
        return use_of_latents(
            block, rises[0], dict(zip(config.controls, rises[1:], strict=True)), active,
            self.codes.untouched.mean(1).numpy(), self.samples.groups,
            UseSettings(n_resamples=config.n_resamples, n_permutations=config.n_permutations, seed=config.seed),
        )  # fmt: skip

    def _path(self, block: Sequence[int]) -> Path:
        digest = digest_json([list(block), self._keys()])[:12]
        return self.folder / f"{block[0]:06d}-{digest}.safetensors"

    def _header(self, block: Sequence[int]) -> dict[str, str]:
        return {"latents": ",".join(map(str, block)), "samples": digest_json(self._keys())}

    def _keys(self) -> list[str]:
        return list(self.samples.of_condition[self.opened.cell.condition].keys)

    def _unfinished(self, block: Sequence[int]) -> bool:
        if not self._path(block).exists():
            return True
        self._read(block)
        return False

    def _read(self, block: Sequence[int]) -> "Ablated":
        """Read the rises of a block. Raises: SchemaError for a file that is damaged, or of other samples."""
        from diffprobe.core.safetensors_file import open_safetensors
        from diffprobe.scoring.latent_ablation import Ablated

        path, fix = self._path(block), f"remove the folder '{self.folder}' and repeat the command"
        wanted = {"latent", "sample", "rise"}
        with open_safetensors(path, fix=fix) as stored:
            header, names = stored.metadata() or {}, set(stored.keys())
            found: dict[str, Tensor] = {name: stored.get_tensor(name) for name in wanted & names}
        if header != self._header(block) or names != wanted:
            raise SchemaError(f"'{path}' does not hold the rises of these latents and samples.", fix=fix)
        n = len(found["latent"])
        if found["sample"].shape != (n,) or found["rise"].shape != (1 + len(self.config.controls), n):
            raise SchemaError(f"'{path}' does not hold one rise per pair and measure.", fix=fix)
        return Ablated(**found)
