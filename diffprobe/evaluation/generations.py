"""`diffprobe eval generations`: whether generated images still show what their prompt names, with a tap replaced.

Prompts are those of held-out samples. Each is sampled from the same noise by the untouched network and with one tap
replaced in a band of timesteps; a classifier of clean latents, trained on real training images, reads the attributes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.config.validators import at_least
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, SchemaError, unknown
from diffprobe.core.groups import require_groups
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import MetricRecord, StartTime
from diffprobe.evaluation.held_out import EncodedSplit, encode_split
from diffprobe.evaluation.use import OpenedTaps, UseEvaluation, measure_and_write, open_taps

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.analysis.latent_classifier import LatentClassifier
    from diffprobe.backbones.cell import Cell
    from diffprobe.core.progress import Bar
    from diffprobe.scoring.intervention_network import Change
    from diffprobe.scoring.sampling import PromptSampler
    from diffprobe.scoring.tap_interventions import TapIntervention

KIND = "generations"
"""Kind of the results."""
GENERATED = "generated"
"""Folder of a run with the generated latents, one file per cell."""
_RULES = 1
"""Raised when generated latents change, so that files of an older version are not continued."""
_PROMPTED = ("caption", "template")


@dataclass(frozen=True, kw_only=True)
class GenerationEvaluation(UseEvaluation):
    """Settings of `diffprobe eval generations` (experiment files of kind `evaluate_generations`).

    `features.timesteps` are the centres of the bands: a sampling step belongs to the nearest one.
    """

    attributes: tuple[str, ...] = ()
    """Attributes of the data whose values are read from generated images; prompts that do not name the sample's value
    are left out for that attribute."""
    sampling_steps: int = 20
    """Steps of the sampler (deterministic, evenly spaced)."""
    guidance: float = 4.0
    """Scale of classifier-free guidance; 1 is none. Interventions act on both branches."""
    classifier_limit: int = 4096
    """Training samples of the classifiers, the first ones in shard order, and at most `data.limit`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, sampling_steps=self.sampling_steps, classifier_limit=self.classifier_limit)
        if not self.attributes or len(set(self.attributes)) < len(self.attributes):
            raise ConfigError(
                f"attributes=[{', '.join(self.attributes)}]: at least one, each once.",
                "set attributes=[NAME], with names of the data's attributes",
            )
        if self.features.condition not in _PROMPTED:
            raise ConfigError(
                f"condition={self.features.condition}: images are generated from the prompts of held-out samples.",
                f"allowed: {', '.join(f'features.condition={name}' for name in _PROMPTED)}",
            )


def evaluate_generations(config: GenerationEvaluation) -> Path:
    """Generate with every tap and band, classify, write `result.json`, and return its path.

    The folder is <output>/<experiment>/<first 12 digits of a digest>. The latents of each finished cell are kept below
    `generated/`, and a repeated call continues from them.

    Raises: as `evaluate_use`; UnknownName for an attribute that the data do not have; ConfigError for one that no
        prompt names, or timesteps without a sampling step; EmptyClass for one with a single value in training.
    """
    started_at = StartTime.now()
    opened = open_taps(config)
    for name in config.attributes:
        if name not in opened.request.shard_set.attributes:
            raise unknown("attribute", name, opened.request.shard_set.attributes)
    return measure_and_write(
        config, opened, lambda folder: _Generation(config, opened, folder).records(), kind=KIND, rules=_RULES,
        noise_seed=config.seed, started_at=started_at,
    )  # fmt: skip


@dataclass(frozen=True)
class _Attribute:
    """One attribute: its classifier, and the prompts that name it."""

    name: str
    classifier: "LatentClassifier"
    rows: NDArray[np.int64]
    """Positions of the prompts."""
    prompted: NDArray[np.int64]
    """The value that each of them names."""


@dataclass(frozen=True)
class _Generation:
    """All cells of one evaluation."""

    config: GenerationEvaluation
    opened: OpenedTaps
    run_dir: Path

    def records(self) -> list[MetricRecord]:
        """Generate what is not on disk yet, classify, and return the records of all cells."""
        import torch

        from diffprobe.analysis.use_records import PromptedValues, UseContext, attribute_records
        from diffprobe.scoring.sampling import PromptSampler, bands, sampling_timesteps
        from diffprobe.scoring.tap_interventions import INTERVENTIONS

        config, opened, data = self.config, self.opened, self.config.data
        plan, network = opened.request.plan, opened.network
        condition = plan.branches[0].condition
        steps = sampling_timesteps(config.sampling_steps, plan.schedule.n_timesteps)
        band_of = bands(steps, plan.timesteps)
        limit = data.limit if config.limit is None else config.limit
        samples = encode_split(opened.request, network, opened.split, opened.group, limit=limit)
        require_groups(len(set(samples.groups)), len(samples), what="intervals over groups")
        prompts = samples.of_condition[condition]
        attributes = self._attributes(samples, [str(text) for text in prompts.inputs])
        sampler = PromptSampler(network, prompts.inputs, prompts.keys, steps, config.guidance, config.seed)
        cells = [cell for cell in plan.cells if cell.condition == condition]
        self._generate(cells, band_of, samples, sampler)
        metrics: list[MetricRecord] = []
        untouched = sampler.untouched[-1]
        for cell in cells:
            found = self._read(cell, samples)
            for one in attributes:
                rows, predict = torch.from_numpy(one.rows), one.classifier.predict
                values = PromptedValues(
                    attribute=one.name, prompted=one.prompted, untouched=predict(untouched[rows]),
                    real=predict(prompts.latents[rows]),
                )  # fmt: skip
                context = UseContext(
                    cell=cell.name,
                    split=opened.split,
                    groups=[samples.groups[row] for row in one.rows],
                    seed=config.seed,
                    detail={
                        "steps": list(band_of[cell.timestep]),
                        "sampling_steps": config.sampling_steps,
                        "guidance": config.guidance,
                        "clusters": opened.group,
                        "n_unnamed": len(samples) - len(one.rows),
                        "classifier_n_train": one.classifier.n_train,
                    },
                )
                changed = {name: predict(latents[rows]) for name, latents in found.items()}
                metrics += attribute_records(values, changed, INTERVENTIONS, context)
        return metrics

    def _attributes(self, samples: EncodedSplit, prompts: list[str]) -> list[_Attribute]:
        """Find the prompts that name each attribute, and fit its classifier. Raises: ConfigError, EmptyClass."""
        from diffprobe.analysis.latent_classifier import fit_latent_classifier

        config, opened = self.config, self.opened
        known = opened.request.shard_set.attributes
        named: dict[str, NDArray[np.int64]] = {}
        for name in config.attributes:
            ids = samples.attributes[name].tolist()
            rows = [i for i, value in enumerate(ids) if value >= 0 and names_value(prompts[i], known[name][value])]
            named[name] = np.array(rows, dtype=np.int64)
            groups = {samples.groups[row] for row in rows}
            if len(groups) < 2:
                raise ConfigError(
                    f"attribute '{name}': {len(rows)} of {len(prompts)} prompts name the sample's value, in "
                    f"{len(groups)} group(s); at least 2 groups are needed.",
                    f"values: {', '.join(known[name][:5])}; first prompt: {prompts[0]!r}",
                    fix="another attribute, more samples (limit), or features.condition=template with {" + name + "}",
                )
        limit = min(config.classifier_limit, config.data.limit or config.classifier_limit)
        train = encode_split(opened.request, opened.network, config.data.train_split, opened.group, limit=limit)
        latents = next(iter(train.of_condition.values())).latents
        found = []
        for name, positions in named.items():
            labels = train.attributes[name].numpy()
            classifier = fit_latent_classifier(latents, labels, train.groups, n_classes=len(known[name]), what=name)
            found.append(_Attribute(name, classifier, positions, samples.attributes[name].numpy()[positions]))
        return found

    def _generate(
        self,
        cells: "list[Cell]",
        band_of: Mapping[int, tuple[int, ...]],
        samples: EncodedSplit,
        sampler: "PromptSampler",
    ) -> None:
        """Write the latents of all cells without a file."""
        from diffprobe.scoring.tap_interventions import donors_of_other_groups

        config = self.config
        patching = "patching" in config.interventions
        donors = donors_of_other_groups(samples.groups, seed=config.seed) if patching else []
        left = [cell for cell in cells if not self._path(cell).exists()]
        taps = {tap.tap: tap for tap in self.opened.taps}
        with ProgressDisplay(transient=True) as progress:
            title = f"{len(left)} of {len(cells)} cells: sampling"
            total = len(left) * len(config.interventions) * len(sampler)
            means = self._means(left, band_of, progress)
            with progress.bar(total, title, unit="images", keep=False) as bar:
                for cell in left:
                    found = self._cell(taps[cell.tap], band_of[cell.timestep], sampler, donors, means, bar)
                    self._write(cell, samples, found)

    def _means(
        self, cells: "list[Cell]", band_of: Mapping[int, tuple[int, ...]], progress: ProgressDisplay
    ) -> "dict[tuple[str, int], Tensor]":
        """Return the mean feature of training samples by tap and sampling step, under their own prompts."""
        config, opened = self.config, self.opened
        splices = {tap.tap: tap.splice for tap in opened.taps if tap.needs_mean}
        wanted: dict[int, list[str]] = {}
        for cell in cells:
            for step in band_of[cell.timestep] if cell.tap in splices else ():
                wanted.setdefault(step, []).append(cell.tap)
        if not wanted:
            return {}
        limit = min(config.train_limit, config.data.limit or config.train_limit)
        train = encode_split(opened.request, opened.network, config.data.train_split, "sample", limit=limit)
        of = train.of_condition[opened.request.plan.branches[0].condition]
        means: dict[tuple[str, int], Tensor] = {}
        with progress.bar(len(wanted) * len(of), "means of training samples", unit="passes", keep=False) as bar:
            for step, names in wanted.items():
                found = opened.network.means(of, step, {name: splices[name] for name in names}, bar.update)
                means.update({(name, step): mean for name, mean in found.items()})
        return means

    def _cell(
        self,
        tap: "TapIntervention",
        band: tuple[int, ...],
        sampler: "PromptSampler",
        donors: list[int],
        means: "Mapping[tuple[str, int], Tensor]",
        bar: "Bar",
    ) -> "dict[str, Tensor]":
        found: dict[str, Tensor] = {}
        for name in tap.names:
            if name == "patching":
                found[name] = sampler.patched(tap.tap, band, donors)
            else:
                found[name] = sampler.sample(tap.tap, band, partial(_change, tap, name, means))
            bar.update(len(sampler))
        return found

    def _path(self, cell: "Cell") -> Path:
        return self.run_dir / GENERATED / f"{digest_json(cell.name)[:16]}.safetensors"

    def _header(self, cell: "Cell", samples: EncodedSplit) -> dict[str, str]:
        return {"cell": cell.name, "samples": digest_json(list(samples.of_condition[cell.condition].keys))}

    def _write(self, cell: "Cell", samples: EncodedSplit, found: "dict[str, Tensor]") -> None:
        from safetensors.torch import save_file

        with atomic_file(self._path(cell)) as temporary:
            tensors = {name: latents.contiguous() for name, latents in found.items()}
            save_file(tensors, temporary, metadata=self._header(cell, samples))

    def _read(self, cell: "Cell", samples: EncodedSplit) -> "dict[str, Tensor]":
        """Read the latents of a cell. Raises: SchemaError for a file that is damaged, or of other samples."""
        from diffprobe.core.safetensors_file import open_safetensors

        path, fix = self._path(cell), f"remove the folder '{self.run_dir / GENERATED}' and repeat the command"
        with open_safetensors(path, fix=fix) as stored:
            header, names = stored.metadata() or {}, set(stored.keys())
            found: dict[str, Tensor] = {
                name: stored.get_tensor(name) for name in self.config.interventions if name in names
            }
        shape = (len(samples), *self.opened.request.plan.spec.latent_shape)
        if header != self._header(cell, samples) or names != set(self.config.interventions):
            raise SchemaError(f"'{path}' does not hold the latents of {cell.name} for these prompts.", fix=fix)
        if any(tuple(latents.shape) != shape for latents in found.values()):
            raise SchemaError(f"'{path}' does not hold latents of shape {shape}.", fix=fix)
        return found


def _change(tap: "TapIntervention", name: str, means: "Mapping[tuple[str, int], Tensor]", step: int) -> "Change":
    return tap.change(name, means.get((tap.tap, step)))


def names_value(prompt: str, value: str) -> bool:
    """Return whether a prompt names a value: its words occur in a row, in any case.

    >>> names_value("noto emoji, woman astronaut, medium-dark skin tone", "medium-dark")
    True
    >>> names_value("woman astronaut", "man")
    False
    """
    words, wanted = (re.findall(r"\w+", text.lower()) for text in (prompt, value))
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1)) and bool(wanted)
