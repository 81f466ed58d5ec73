"""`diffprobe score`: choose captions and classes by the model's own denoising error (Diffusion Classifier).

Source: Li et al., 2303.16203. Errors come from `scoring/denoising_error.py` for every family.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.base import Condition, take_rows
from diffprobe.backbones.locate import locate
from diffprobe.backbones.text_encoders import ClipTextEncoder, TextEncoder
from diffprobe.backbones.vae import VaeDecoder
from diffprobe.config.parse import record_tree
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE, RESULT_FILE, SHARDS, MetricRecord, StartTime, make_result, write_result
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.captions import Encoded, Expectation, encode_split, regression_rows, regressions
from diffprobe.evaluation.dsd import POOL, ZERO_SHOT, fit_few_shot
from diffprobe.evaluation.overlap import names_of_classes, overlap_records
from diffprobe.evaluation.score_candidates import CLASS_NAME, Question, questions, require_condition, require_distinct
from diffprobe.evaluation.score_models import ScoreModels
from diffprobe.evaluation.score_records import score_records
from diffprobe.evaluation.score_settings import ScoreConfig, WeightRule
from diffprobe.evaluation.score_store import stored_errors
from diffprobe.generative.image_table import ImageTable, load_table
from diffprobe.probes.score.staged_errors import Stage, nested_timesteps, weighted_error
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.generated_images import generated_latents, read_again
from diffprobe.scoring.noise_sets import spread_timesteps
from diffprobe.scoring.timestep_weights import exponential_weights, learned_weights, loss_factors
from diffprobe.shards.index import ShardSet

SCORES = "scores"
"""Folder of the stored errors in the folder of an experiment; runs that ask the same share them."""


def score(config: ScoreConfig, *, process: tuple[int, int] = (0, 1)) -> Path | None:
    """Score, write `result.json`, and return its path.

    The folder is <output>/<experiment>/<first 12 digits of a digest>: of the config, the model's files and the shards.
    The same command continues an interrupted run from its stored errors, which runs of an experiment share.

    Args:
        config: the settings.
        process: number of this process and number of processes, which score alternating chunks of images and need no
            communication but the folder.
    Returns: the path, or None while errors of other processes are missing: the process that finishes last writes it.
    Raises: UnknownName for a split or attribute that the data do not have; ConfigError for a model that does not take
        the candidates, texts that are too long or tokenise alike; EmptyClass, NonFinite, errors of loading.
    """
    started_at = StartTime.now()
    keep_freed_memory()
    shard_set = ShardSet.load(config.data.path, storage_patience=config.data.storage_patience)
    config = replace(config, group_by=config.group_by or shard_set.group)
    _require_names(config, shard_set)
    if process[1] > 1 and config.dsd.few_shot.images:
        raise ConfigError(f"dsd.few_shot with {process[1]} processes: each would train the LoRA.", fix="one process")
    run = _Scoring(config, checkpoint_digest(config.backbone.path), shard_set, process)
    tree, inputs = record_tree(config), {SHARDS: shard_set.digest, BACKBONE: run.model_digest}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    with ProgressDisplay(transient=True) as progress:
        metrics = run.records(run_dir.parent / SCORES, progress)
    if metrics is None:
        return None
    result = make_result(
        run=run_dir.name, experiment=config.experiment, kind="score", config=tree, seeds={"seed": config.seed},
        metrics=metrics, started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


class _Scoring:
    """One run: the models, the timesteps in their order, and the errors that are stored."""

    def __init__(self, config: ScoreConfig, model_digest: str, shard_set: ShardSet, process: tuple[int, int]) -> None:
        self.config, self.model_digest, self.data_digest, self.process = config, model_digest, shard_set.digest, process
        self.group = shard_set.group
        self.models = ScoreModels(config, model_digest)
        self.error = self.models.own
        spec = self.error.spec
        self.timesteps = nested_timesteps(spread_timesteps(config.n_timesteps, self.error.n_timesteps))
        self.weights = loss_factors(spec.prediction, config.weights.loss, self.timesteps, spec.schedule)
        if config.weights.kind == "exponential":
            self.weights = self.weights * exponential_weights(self.timesteps, self.error.n_timesteps)

    def records(self, folder: Path, progress: ProgressDisplay) -> list[MetricRecord] | None:
        """Return the records of all questions, or None while errors of other processes are missing.

        Errors are stored below `folder`.
        """
        config, split = self.config, self.config.scored_split
        encoded = self._encode(split, config.limit, progress)
        asked = questions(config.candidates, encoded, seed=config.seed, pool=self._pool())
        for question in asked:
            self._require(question)
        train = self._train(progress)
        lora = self._few_shot(encoded, folder, progress) if config.dsd.few_shot.images else {}
        for _ in range(2):  # the second time nothing is computed: processes that overtook each other see all files
            found = [self._scored(question, encoded, train, folder, progress) for question in asked]
            if all(one is not None for one in found):
                break
        else:
            return None
        records: list[MetricRecord] = []
        fitted = self._fitted(train)
        for question, scored in zip(asked, found, strict=True):
            assert scored is not None
            controls = _distances(fitted, encoded, question)
            controls |= {name: weighted_error(errors, scored.weights) for name, errors in scored.controls.items()}
            detail: dict[str, Any] = {
                **lora,
                "timesteps": self.timesteps,
                "weights": (scored.weights / scored.weights.sum()).tolist(),
            }
            records += score_records(
                question, scored.errors, scored.weights, controls, encoded, split=split,
                prior_correction=config.prior_correction, detail=detail, seed=config.seed,
                generated=scored.generated, passes_of_generation=config.generated.passes,
                unweighted=config.weights != WeightRule() and not config.stages,
            )  # fmt: skip
            if config.overlap.images:
                scores = [weighted_error(part, scored.weights) for part in scored.errors]
                records += self._overlap(encoded, question, scores, progress)
        return records

    def _scored(
        self, question: Question, encoded: Encoded, train: Encoded | None, folder: Path, progress: ProgressDisplay
    ) -> "_Scored | None":
        """Return the errors of a question by the model and the controls; None if some are missing."""
        config = self.config
        weights = self._learned(train, question.name, folder, progress) if train is not None else self.weights
        latents = encoded.latents[question.rows]

        def errors_of(error: DenoisingError, name: str, **facts: Any) -> Tensor | None:
            return self._errors(error, encoded, question, lambda rows: latents[rows], weights, folder, name, progress,
                                facts=facts)  # fmt: skip

        found = [
            errors_of(self.models.with_noise(number), f"noise set {number + 1}") for number in range(config.noise_sets)
        ]
        controls = {
            name: errors_of(error, name.replace("_", " "), model=digest, random=seed)
            for name, (error, digest, seed) in self.models.controls.items()
        }
        if self.models.lora is not None:
            with self.models.lora.disabled():
                controls[ZERO_SHOT] = errors_of(self.models.own, ZERO_SHOT)
        generated = self._generated(encoded, question, weights, folder, progress) if config.generated.steps else None
        if any(one is None for one in (*found, *controls.values())) or (config.generated.steps and generated is None):
            return None
        return _Scored(
            weights,
            [errors for errors in found if errors is not None],
            {name: errors for name, errors in controls.items() if errors is not None},
            generated,
        )

    def _generated(
        self, encoded: Encoded, question: Question, weights: Tensor, folder: Path, progress: ProgressDisplay
    ) -> Float[Tensor, "sample n timestep"] | None:
        """Return the errors of images that are generated from the right candidates, with the first set of noise."""
        config, rule = self.config, self.config.generated
        decode = VaeDecoder.from_folder(locate(config.backbone.path).part("vae"))
        decode.vae.to(next(self.error.backbone.denoiser.parameters()).device)
        own = question.candidates.gather(1, question.right[:, None]).squeeze(1)
        conditions = self.error.encode_conditions(question.values)
        keys = [encoded.table.keys[row] for row in question.rows.tolist()]

        def latents_of(rows: Tensor) -> Tensor:
            latents = generated_latents(
                self.error, [keys[row] for row in rows.tolist()], take_rows(conditions, own[rows]),
                steps=rule.steps, guidance=rule.guidance, seed=config.seed,
            )  # fmt: skip
            return read_again(self.error, decode, latents)

        facts = {"generated": [rule.steps, rule.guidance, config.seed]}
        return self._errors(
            self.error, encoded, question, latents_of, weights, folder, "generated images", progress, facts=facts
        )

    def _encode(
        self,
        split: str,
        limit: int | None,
        progress: ProgressDisplay,
        chosen: Callable[[ImageTable], Tensor] | None = None,
    ) -> Encoded:
        config, data = self.config, self.config.data
        if limit is not None:
            data = replace(data, limit=min(limit, data.limit or limit))
        return encode_split(
            data, split, self.error, group_attribute=config.group_by, family_attribute=config.family_attribute,
            resolution=self.error.spec.resolution, progress=progress, chosen=chosen,
            captioned=config.candidates.kind != "classes" or bool(config.regression.images),
        )  # fmt: skip

    def _pool(self) -> list[tuple[str, str]]:
        """Return group and caption of each sample of `candidates.pool`, in order of the splits."""
        config = self.config
        found: list[tuple[str, str]] = []
        for split in config.candidates.pool:
            table = load_table(
                replace(config.data, limit=None), split, resolution=self.error.spec.resolution, captioned=True
            )
            captions = [captions[0] for captions in table.captions]
            found += zip(table.groups(config.group_by), captions, strict=True)
        return found

    def _few_shot(self, encoded: Encoded, folder: Path, progress: ProgressDisplay) -> dict[str, Any]:
        """Train the LoRA of `dsd.few_shot` and return what is recorded of it."""
        images = self.config.dsd.few_shot.images
        pool = self._encode(self.config.data.train_split, POOL * images, progress)
        facts = {"model": self.model_digest, "data": self.data_digest}
        self.models.lora, path = fit_few_shot(
            self.error, self.config, pool, encoded, facts, folder, progress, group=self.group
        )
        return {"few_shot_images": images, "lora": path.name}

    def _overlap(
        self,
        encoded: Encoded,
        question: Question,
        scores: list[Float[Tensor, "sample n"]],
        progress: ProgressDisplay,
    ) -> list[MetricRecord]:
        config, attribute = self.config, str(self.config.candidates.attribute)
        train = load_table(
            config.data, config.data.train_split, resolution=self.error.spec.resolution, captioned=True
        )  # fmt: skip
        return overlap_records(
            self.error, config.overlap, train, names_of_classes(encoded, attribute), attribute, question, scores,
            self.timesteps, split=config.scored_split, seed=config.seed, progress=progress,
        )  # fmt: skip

    def _texts(self) -> dict[str, TextEncoder]:
        return dict(getattr(self.error.backbone, "texts", {}))

    def _require(self, question: Question) -> None:
        for error in (self.error, *(error for error, _, _ in self.models.controls.values())):
            require_condition(error.spec, question.values)
        require_distinct(question, self._texts())

    def _train(self, progress: ProgressDisplay) -> Encoded | None:
        """Return the training samples that something is fitted on, if anything is."""
        config = self.config
        if config.weights.kind == "learned":
            return self._encode(config.data.train_split, None, progress)
        if not config.regression.images:
            return None
        return self._encode(
            config.data.train_split, None, progress,
            lambda table: regression_rows(len(table), config.regression, config.seed),
        )  # fmt: skip

    def _errors(
        self,
        error: DenoisingError,
        encoded: Encoded,
        question: Question,
        latents_of: Callable[[Tensor], Tensor],
        weights: Float[Tensor, " timestep"],
        folder: Path,
        name: str,
        progress: ProgressDisplay,
        *,
        facts: Mapping[str, Any] | None = None,
        stages: tuple[Stage, ...] | None = None,
        whole: bool = False,
    ) -> Float[Tensor, "sample n timestep"] | None:
        """Return the errors of a question, or None while chunks of other processes are missing.

        Args:
            facts: what fixes the errors beside the model, the data, the noise and the precision.
            stages: prunings; None for those of the run.
            whole: compute the chunks of other processes too.
        """
        config = self.config
        conditions: Condition = error.encode_conditions(question.values)
        keys = [encoded.table.keys[row] for row in question.rows.tolist()]
        identity = {
            "model": self.model_digest, "data": self.data_digest, "seed": error.seed, "dtype": config.backbone.dtype,
            "random": None, **self.models.facts(error), **(facts or {}),
        }  # fmt: skip
        with progress.bar(len(keys), f"{question.name}: {name}", unit="images", keep=False) as bar:
            return stored_errors(
                folder, identity, error, latents_of, keys, conditions, question, self.timesteps, weights,
                config.stages if stages is None else stages, chunk=config.chunk, process=self.process, whole=whole,
                on_batch=bar.update,
            )  # fmt: skip

    def _learned(
        self, train: Encoded, name: str, folder: Path, progress: ProgressDisplay
    ) -> Float[Tensor, " timestep"]:
        """Learn the weights of a question on a share of the training groups, whose candidates are made alike.

        Each of several processes needs them before it prunes, so each scores the whole share.
        """
        config = self.config
        if config.weights.kind != "learned":
            return self.weights
        part = share_of_groups(train, config.weights.fraction, config.seed, config.weights.images)
        rule = config.candidates
        if rule.kind in ("captions", "retrieval"):
            rule = replace(rule, n=max(2, min(rule.n, len(set(part.groups)))), pool=(), ranks=())
        asked = questions(rule, part, seed=config.seed)
        question = asked[0] if len(asked) == 1 else next(found for found in asked if found.name == name)
        self._require(question)
        latents = part.latents[question.rows]
        errors = self._errors(
            self.error, part, question, lambda rows: latents[rows], self.weights, folder, "weights", progress,
            stages=(), whole=True,
        )  # fmt: skip
        assert errors is not None, "all of it is computed here"
        families = [part.families[row] for row in question.rows.tolist()]
        choices = errors.masked_fill(~question.eligible[..., None], torch.nan)
        return learned_weights(choices * self.weights, question.right, families) * self.weights

    def _fitted(self, train: Encoded | None) -> dict[str, Expectation]:
        """Fit the regressions from captions to latents, if they are asked for."""
        if train is None or not self.config.regression.images:
            return {}
        clip = next((text for text in self._texts().values() if isinstance(text, ClipTextEncoder)), None)
        states = None if clip is None else lambda captions: clip.mean_states(captions).float().cpu()
        return regressions(train, self.config.regression, states, seed=self.config.seed)


def _distances(
    fitted: Mapping[str, Expectation], encoded: Encoded, question: Question
) -> dict[str, Float[Tensor, "sample n"]]:
    """Return the distances of latents to those that regressions expect for the candidates."""
    if not isinstance(question.values[0], str):
        return {}
    latents, found = encoded.latents[question.rows].flatten(1), {}
    for name, expect in fitted.items():
        distances = torch.cdist(latents.double(), expect([str(value) for value in question.values]).double())
        picked = distances.gather(1, question.candidates.clamp_min(0))
        found[name] = picked.masked_fill(~question.offered, torch.inf)
    return found


@dataclass(frozen=True)
class _Scored:
    """Errors of a question: per set of noise, of controls, and of generated images."""

    weights: Tensor
    errors: list[Tensor]
    controls: dict[str, Tensor]
    generated: Tensor | None


def share_of_groups(encoded: Encoded, fraction: float, seed: int, images: int | None = None) -> Encoded:
    """Return the samples of a seeded choice of groups, at least three of them, and of these at most `images`."""
    names = sorted(set(encoded.families))
    generator = torch.Generator().manual_seed(derive_seed("weights", seed))
    count = min(len(names), max(3, round(fraction * len(names))))
    chosen = {names[place] for place in torch.randperm(len(names), generator=generator)[:count].tolist()}
    rows = [row for row, name in enumerate(encoded.families) if name in chosen]
    if images is not None:
        kept = torch.randperm(len(rows), generator=generator)[:images].sort().values
        rows = [rows[place] for place in kept.tolist()]
    return Encoded(
        encoded.table.take(torch.tensor(rows)),
        encoded.latents[rows],
        [encoded.groups[row] for row in rows],
        [encoded.families[row] for row in rows],
    )


def _require_names(config: ScoreConfig, shard_set: ShardSet) -> None:
    """Raises: UnknownName for a split or an attribute that the data do not have."""
    needs_train = config.weights.kind == "learned" or config.regression.images or config.dsd.few_shot.images
    needs_train = needs_train or config.overlap.images
    for split in (config.scored_split, *config.candidates.pool, *([config.data.train_split] if needs_train else [])):
        shard_set.shards_of(config.data.source_of(split))
    named = {"group_by": config.group_by, "family_attribute": config.family_attribute}
    named |= {"candidates.attribute": config.candidates.attribute}
    named |= {f"candidates.phrases.{name}": name for name in config.candidates.phrases}
    for key, name in named.items():
        is_class = key == "candidates.attribute" and name == CLASS_NAME and config.candidates.kind == "classes"
        if name is not None and name not in shard_set.attributes and not (is_class and shard_set.classes):
            raise unknown(key, name, shard_set.attributes)
