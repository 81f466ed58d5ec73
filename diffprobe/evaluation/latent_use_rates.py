"""Generated rates of `diffprobe eval latents`: how often images show what a latent reads, with the latent ablated.

Images are sampled from the captions of held-out samples, always from the same noise: untouched, with the latent
ablated, and with each control in its place. A reader counts the attribute value that the latent reads best.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Int64

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, SchemaError, WeightsMismatch
from diffprobe.core.groups import require_groups
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.held_out import EncodedSplit, encode_split
from diffprobe.evaluation.latent_codes import CLASS
from diffprobe.evaluation.latent_use_inputs import OpenedLatents
from diffprobe.evaluation.latent_use_reading import Reading
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation
from diffprobe.evaluation.latent_use_tables import RATE_CHANGE

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.scoring.sampling import PromptSampler

GENERATED = "generated"
"""Folder beside those of runs with generated latents, one file per latent."""
_RULES = 1
"""Raised when generated latents change, so that files of an older version are not continued."""
_CAPTION = "caption"
_ABLATED = "ablated"
_AT_ONCE = 64
"""Latents of images that are decoded at once."""


class ValueReader(Protocol):
    """Reads the values of attributes from latents of images."""

    name: str
    """What reads."""

    def read(self, latents: "Tensor", target: str) -> Int64[np.ndarray, " image"]:
        """Return the value of each image, by the numbers of the data set; -1 for one that the data set lacks."""


def generated_rates(
    config: LatentUseEvaluation, opened: OpenedLatents, reading: Reading, folder: Path
) -> dict[int, MetricRecord]:
    """Return a record per latent: the change of the rate of the value that it reads best, by ablating it.

    Args:
        reading: best values of the latents, and which of them are read best.
        folder: generated latents are kept below it.
    Raises: ConfigError for a latent without a best value, data without captions, a window without a sampling step, or a
        value that the reader does not read; TooFewGroups; EmptyClass; the errors of a reader.
    """
    from diffprobe.scoring.sampling import sampling_timesteps

    latents = config.generate or reading.first(config.n_generate, _readable(config, opened))
    if not latents:
        raise ConfigError("no latent has a best value that can be read from generated images.", fix="n_generate=0")
    targets = {latent: _target(reading, latent) for latent in latents}
    steps = sampling_timesteps(config.sampling_steps, opened.request.plan.schedule.n_timesteps)
    low, high = config.window or (0, steps[0])
    band = [step for step in steps if low <= step <= high]
    if not band:
        raise ConfigError(f"no sampling step is within window=[{low},{high}].", f"steps: {', '.join(map(str, steps))}")
    prompts = _prompts(config, opened)
    reader = _open_reader(config, opened, sorted({target for target, _ in targets.values()}))
    generation = _Generation(config, opened, prompts, steps, tuple(band), folder)
    images = generation.sample(latents)
    return {
        latent: _record(config, opened, prompts, reader, latent, targets[latent], images[latent], images[None], band)
        for latent in latents
    }


def _readable(config: LatentUseEvaluation, opened: OpenedLatents) -> set[str]:
    """Return the targets that are read from generated images."""
    from diffprobe.shards.scenes.spec import FACTORS

    shard_set = opened.request.shard_set
    targets = {CLASS, *shard_set.attributes}
    return targets if config.reader is None else {name for name in targets if _factor(name) in FACTORS}


def _factor(target: str) -> str:
    """Return the factor of scenes that a target is: their class is the role."""
    return "role" if target == CLASS else target


def _target(reading: Reading, latent: int) -> tuple[str, str]:
    target, _, value = reading.best_values[latent].partition("=")
    if not value:
        raise ConfigError(
            f"latent {latent} has no best value on the training samples, so no rate of generated images is its own.",
            fix="another latent, or more samples (read_limit)",
        )
    return target, value


def _prompts(config: LatentUseEvaluation, opened: OpenedLatents) -> EncodedSplit:
    """Return the held-out samples whose captions are the prompts. Raises: ConfigError, TooFewGroups."""
    from diffprobe.features.request import Request

    request = opened.request
    features = replace(request.features, condition="caption", prompt=None, negative_prompt=None, unconditional=False)
    captioned = Request(request.backbone, request.data, features)
    captioned.check_values()
    found = encode_split(captioned, opened.network, opened.split, opened.group, limit=config.n_prompts)
    require_groups(len(set(found.groups)), len(found), what="intervals over groups of prompts")
    return found


def _ids(split: EncodedSplit, target: str) -> Int64[np.ndarray, " sample"]:
    return (split.labels if target == CLASS else split.attributes[target]).numpy().astype(np.int64)


def _values(opened: OpenedLatents, target: str) -> Sequence[str]:
    shard_set = opened.request.shard_set
    return tuple(shard_set.classes) if target == CLASS else tuple(shard_set.attributes[target])


def _open_reader(config: LatentUseEvaluation, opened: OpenedLatents, targets: Sequence[str]) -> ValueReader:
    if config.reader is not None:
        return _SceneValues(config, opened, targets)
    return _ClassifiedValues(config, opened, targets)


class _ClassifiedValues:
    """Linear classifiers of clean latents, fitted to the training samples."""

    def __init__(self, config: LatentUseEvaluation, opened: OpenedLatents, targets: Sequence[str]) -> None:
        from diffprobe.analysis.latent_classifier import fit_latent_classifier

        data = opened.trained.config.data
        limit = config.read_limit if data.limit is None else min(config.read_limit, data.limit)
        train = encode_split(opened.request, opened.network, data.train_split, opened.group, limit=limit)
        latents = next(iter(train.of_condition.values())).latents
        self.name = f"linear classifier of clean latents, fitted to {len(train):,} training samples"
        self._of = {
            target: fit_latent_classifier(
                latents, _ids(train, target), train.groups, n_classes=len(_values(opened, target)), what=target
            )
            for target in targets
        }

    def read(self, latents: "Tensor", target: str) -> Int64[np.ndarray, " image"]:
        return self._of[target].predict(latents)


class _SceneValues:
    """A reader of the factors of scenes, which looks at decoded images."""

    def __init__(self, config: LatentUseEvaluation, opened: OpenedLatents, targets: Sequence[str]) -> None:
        from diffprobe.backbones.library_logging import quiet_libraries
        from diffprobe.backbones.vae import VaeDecoder
        from diffprobe.generative.scene_reader import WEIGHTS_FILE, find_reader, load_reader
        from diffprobe.shards.scenes.spec import FACTORS
        from diffprobe.shards.scenes.world import SHIPPED, load_world

        assert config.reader is not None
        spec, plan = load_world(SHIPPED), opened.request.plan
        self._reader = load_reader(config.reader, spec)
        if self._reader.resolution != plan.resolution:
            raise WeightsMismatch(
                f"the backbone draws images of {plan.resolution} pixels, reader '{config.reader}' reads "
                f"{self._reader.resolution}."
            )
        factor_of = {target: _factor(target) for target in targets}
        unknown = [target for target, factor in factor_of.items() if factor not in FACTORS]
        if unknown:
            raise ConfigError(
                f"reader '{config.reader}' does not read {', '.join(unknown)}.", f"it reads: {', '.join(FACTORS)}",
                fix="generate other latents, or remove reader",
            )  # fmt: skip
        self.name = f"{config.reader} ({digest_file(find_reader(config.reader) / WEIGHTS_FILE)[:12]})"
        self._factor_of = factor_of
        self._number: dict[str, Int64[np.ndarray, " value"]] = {}
        for target, factor in factor_of.items():
            place = {value: number for number, value in enumerate(_values(opened, target))}
            self._number[target] = np.array([place.get(value, -1) for value in spec.names(factor)], dtype=np.int64)
        with quiet_libraries():
            self._decode = VaeDecoder.from_folder(plan.checkpoint.part("vae"))

    def read(self, latents: "Tensor", target: str) -> Int64[np.ndarray, " image"]:
        found = []
        for part in latents.split(_AT_ONCE):
            pixels = (self._decode(part) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            found.append(self._reader.read(pixels)[self._factor_of[target]].argmax(1))
        return self._number[target][np.concatenate(found)]


@dataclass(frozen=True)
class _Generation:
    """Generated latents of all latents of a dictionary that are asked for."""

    config: LatentUseEvaluation
    opened: OpenedLatents
    prompts: EncodedSplit
    steps: tuple[int, ...]
    band: tuple[int, ...]
    folder: Path

    def sample(self, latents: Sequence[int]) -> "dict[int | None, dict[str, Tensor]]":
        """Sample what is not on disk yet; None has the untouched images."""
        wanted: list[int | None] = [None, *latents]
        left = [latent for latent in wanted if not self._path(latent).exists()]
        n = len(self.prompts) * len(left) * (1 + len(self.config.controls))
        with ProgressDisplay(transient=True) as progress:
            with progress.bar(n, f"{len(left)} of {len(wanted)} latents: sampling", unit="images", keep=False) as bar:
                for latent in left:
                    self._write(latent, self._sampled(latent, bar.update))
        return {latent: self._read(latent) for latent in wanted}

    def _sampled(self, latent: int | None, tick: Callable[[int], object]) -> "dict[str, Tensor]":
        import torch

        parts: dict[str, list[Tensor]] = {name: [] for name in self._names(latent)}
        of = self.prompts.of_condition[_CAPTION]
        for rows in torch.arange(len(of)).split(self.opened.network.rows):
            first, last = int(rows[0]), int(rows[-1]) + 1
            sampler = self._sampler(first, last)
            for name, found in parts.items():
                if latent is None:
                    found.append(sampler.untouched[-1])
                else:
                    found.append(self._changed(sampler, latent, name))
                tick(last - first)
        return {name: torch.cat(found) for name, found in parts.items()}

    def _sampler(self, first: int, last: int) -> "PromptSampler":
        """Return a sampler of a part of the prompts, all of which go through the network in one pass."""
        from diffprobe.scoring.sampling import PromptSampler

        of, config = self.prompts.of_condition[_CAPTION], self.config
        return PromptSampler(
            self.opened.network, of.inputs[first:last], of.keys[first:last], self.steps, 1.0 + config.guidance,
            config.seed,
        )  # fmt: skip

    def _changed(self, sampler: "PromptSampler", latent: int, name: str) -> "Tensor":
        """Return finished latents with a latent ablated, or a control in its place, at the steps of the window."""
        import torch

        from diffprobe.scoring.latent_ablation import CONTROLS, ablation, control_ablation, control_direction

        sae, splice, tap = self.opened.sae, self.opened.network.splice, self.opened.cell.tap
        if name == _ABLATED:
            change = ablation(splice, sae, latent)
        else:
            control = CONTROLS[[str(one) for one in CONTROLS].index(name)]
            drawn = [
                control_direction(sae, latent, control, key=f"generated:{key}", draw=0, seed=self.config.seed)
                for key in sampler.keys
            ]
            change = control_ablation(splice, sae, latent, torch.stack(drawn))
        return sampler.sample(tap, self.band, lambda step: change)

    def _names(self, latent: int | None) -> tuple[str, ...]:
        return ("untouched",) if latent is None else (_ABLATED, *self.config.controls)

    def _facts(self, latent: int | None) -> dict[str, str]:
        config, opened = self.config, self.opened
        of = self.prompts.of_condition[_CAPTION]
        facts = {
            "rules": _RULES, "weights": opened.trained.result.artifacts, "sae": opened.name, "keys": list(of.keys),
            "prompts": [str(text) for text in of.inputs], "steps": self.steps, "guidance": config.guidance,
            "seed": config.seed, "band": () if latent is None else self.band, "tap": opened.cell.tap,
            "names": self._names(latent),
        }  # fmt: skip
        return {"latent": str(latent), "facts": digest_json(facts)}

    def _path(self, latent: int | None) -> Path:
        return self.folder / GENERATED / f"{digest_json(self._facts(latent))[:16]}.safetensors"

    def _write(self, latent: int | None, found: "dict[str, Tensor]") -> None:
        from safetensors.torch import save_file

        self._path(latent).parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self._path(latent)) as temporary:
            tensors = {name: tensor.contiguous() for name, tensor in found.items()}
            save_file(tensors, temporary, metadata=self._facts(latent))

    def _read(self, latent: int | None) -> "dict[str, Tensor]":
        """Read generated latents. Raises: SchemaError for a file that is damaged, or of other prompts."""
        from diffprobe.core.safetensors_file import open_safetensors

        path, fix = self._path(latent), f"remove '{self._path(latent)}' and repeat the command"
        with open_safetensors(path, fix=fix) as stored:
            header, names = stored.metadata() or {}, set(stored.keys())
            found: dict[str, Tensor] = {name: stored.get_tensor(name) for name in names}
        shape = (len(self.prompts), *self.opened.request.plan.spec.latent_shape)
        if header != self._facts(latent) or names != set(self._names(latent)):
            raise SchemaError(f"'{path}' does not hold the images of latent {latent} for these prompts.", fix=fix)
        if any(tuple(latents.shape) != shape for latents in found.values()):
            raise SchemaError(f"'{path}' does not hold latents of shape {shape}.", fix=fix)
        return found


def _record(
    config: LatentUseEvaluation,
    opened: OpenedLatents,
    prompts: EncodedSplit,
    reader: ValueReader,
    latent: int,
    target: tuple[str, str],
    images: "Mapping[str, Tensor]",
    untouched: "Mapping[str, Tensor]",
    band: Sequence[int],
) -> MetricRecord:
    name, value = target
    number = list(_values(opened, name)).index(value)

    def shows(latents: "Tensor") -> np.ndarray:
        return np.asarray(reader.read(latents, name) == number, dtype=np.float64)

    return rate_record(
        shows(untouched["untouched"]),
        {kind: shows(latents) for kind, latents in images.items()},
        real=shows(prompts.of_condition[_CAPTION].latents),
        true=np.asarray(_ids(prompts, name) == number),
        groups=prompts.groups,
        config=config,
        about={
            "latent": latent, "cell": opened.cell.name, "split": opened.split, "target": f"{name}={value}",
            "probe": opened.trained.config.probe.name, "reader": reader.name, "steps": list(band),
            "clusters": opened.group,
        },
    )  # fmt: skip


def rate_record(
    untouched: np.ndarray,
    changed: Mapping[str, np.ndarray],
    *,
    real: np.ndarray,
    true: np.ndarray,
    groups: Sequence[object],
    config: LatentUseEvaluation,
    about: Mapping[str, object],
) -> MetricRecord:
    """Return the change of a rate, paired over prompts, with intervals over groups of prompts.

    Args:
        untouched: 1 where the untouched image of a prompt shows the value, else 0, shape (prompts,).
        changed: the same with the latent `ablated`, and with each control.
        real: the same of the real image of each prompt.
        true: whether the real image has the value.
        config: resamples and seed.
        about: cell, split, target and probe of the record; the rest becomes details.
    """
    from diffprobe.analysis.statistics import bootstrap_interval, mean_of

    detail = dict(about)
    cell, split, target, probe = (str(detail.pop(key)) for key in ("cell", "split", "target", "probe"))
    names = [str(group) for group in groups]

    def interval(values: np.ndarray) -> tuple[float, float]:
        found = bootstrap_interval(mean_of(values), names, n_resamples=config.n_resamples, seed=config.seed)
        return found.low, found.high

    change = changed[_ABLATED] - untouched
    controls = {kind: shown - untouched for kind, shown in changed.items() if kind != _ABLATED}
    right = float((real == true).mean())
    constant = float(max(true.mean(), 1 - true.mean()))
    detail |= {
        "interval": list(interval(change)),
        "above": {kind: list(interval(change - other)) for kind, other in controls.items()},
        "changed_images": float((change != 0).mean()),
        "reader_accuracy": right,
        "constant_answer": constant,
    }
    if right <= constant:
        detail["not_valid"] = (
            f"the reader of '{target}' is right on {right:.3f} of the real images, a constant answer on {constant:.3f}"
        )
    return MetricRecord(
        name=RATE_CHANGE, value=float(change.mean()), split=split, n=len(change), cell=cell, target=target, probe=probe,
        controls={"untouched": float(untouched.mean()), **{kind: float(one.mean()) for kind, one in controls.items()}},
        detail=detail,
    )  # fmt: skip
