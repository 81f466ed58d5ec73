"""`diffprobe score`: choose captions and classes by the model's own denoising error (Diffusion Classifier).

Source: Li et al., 2303.16203. Errors come from `scoring/denoising_error.py` for every family.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.base import Condition
from diffprobe.backbones.lora_adapters import LoraAdapters
from diffprobe.backbones.text_encoders import ClipTextEncoder, TextEncoder
from diffprobe.config.parse import record_tree
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import unknown
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE, RESULT_FILE, SHARDS, MetricRecord, StartTime, make_result, write_result
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.captions import Encoded, encode_split, regressions
from diffprobe.evaluation.dsd import POOL, ZERO_SHOT, fit_few_shot, method_facts, with_method
from diffprobe.evaluation.overlap import names_of_classes, overlap_records
from diffprobe.evaluation.score_candidates import Question, questions, require_condition, require_distinct
from diffprobe.evaluation.score_records import RANDOM_DENOISER, score_records
from diffprobe.evaluation.score_settings import ScoreConfig
from diffprobe.evaluation.score_store import stored_errors
from diffprobe.generative.image_table import load_table
from diffprobe.probes.score.staged_errors import nested_timesteps, weighted_error
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.noise_sets import spread_timesteps
from diffprobe.scoring.timestep_weights import exponential_weights, learned_weights, loss_factors
from diffprobe.shards.index import ShardSet

SCORES = "scores"
"""Folder of the stored errors in a run folder."""


def score(config: ScoreConfig) -> Path:
    """Score, write `result.json`, and return its path.

    The folder is <output>/<experiment>/<first 12 digits of a digest>: of the config, the model's files and the shards.
    The same command continues an interrupted run from its stored errors.

    Raises: UnknownName for a split or attribute that the data do not have; ConfigError for a model that does not take
        the candidates, texts that are too long or tokenise alike; EmptyClass, NonFinite, errors of loading.
    """
    started_at = StartTime.now()
    keep_freed_memory()
    shard_set = ShardSet.load(config.data.path, storage_patience=config.data.storage_patience)
    config = replace(config, group_by=config.group_by or shard_set.group)
    _require_names(config, shard_set)
    run = _Scoring(config, checkpoint_digest(config.backbone.path), shard_set.digest, group=shard_set.group)
    tree, inputs = record_tree(config), {SHARDS: shard_set.digest, BACKBONE: run.model_digest}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    with ProgressDisplay(transient=True) as progress:
        metrics = run.records(run_dir / SCORES, progress)
    result = make_result(
        run=run_dir.name, experiment=config.experiment, kind="score", config=tree, seeds={"seed": config.seed},
        metrics=metrics, started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


RANDOM_DENOISER_PASS = "random denoiser"
"""Name of the pass of that control."""


class _Scoring:
    """One run: the model, the timesteps in their order, and the errors that are stored."""

    def __init__(self, config: ScoreConfig, model_digest: str, data_digest: str, *, group: str | None = None) -> None:
        self.config, self.model_digest, self.data_digest, self.group = config, model_digest, data_digest, group
        self.lora: LoraAdapters | None = None
        self.error = self._open(0)
        schedule = self.error.spec.schedule
        self.timesteps = nested_timesteps(spread_timesteps(config.n_timesteps, self.error.n_timesteps))
        self.weights = loss_factors(self.error.spec.prediction, config.weights.loss, self.timesteps, schedule)
        if config.weights.kind == "exponential":
            self.weights = self.weights * exponential_weights(self.timesteps, self.error.n_timesteps)

    def records(self, folder: Path, progress: ProgressDisplay) -> list[MetricRecord]:
        """Return the records of all questions; errors are stored below `folder`."""
        config, split = self.config, self.config.scored_split
        encoded = self._encode(split, config.limit, progress)
        asked = questions(config.candidates, encoded, seed=config.seed)
        for question in asked:
            self._require(question)
        train = self._train(progress)
        lora = self._few_shot(encoded, folder, progress) if config.dsd.few_shot.images else {}
        records: list[MetricRecord] = []
        for question in asked:
            weights = self._learned(train, question.name, folder, progress) if train is not None else self.weights
            errors = [
                self._errors(
                    self._open(number), encoded, question, weights, folder, f"noise set {number + 1}", progress
                )
                for number in range(config.noise_sets)
            ]
            controls = self._regressions(train, encoded, question)
            if config.random_denoiser:
                blind = self._open(0, random=True)
                found = self._errors(blind, encoded, question, weights, folder, RANDOM_DENOISER_PASS, progress)
                controls[RANDOM_DENOISER] = weighted_error(found, weights)
            if self.lora is not None:
                with self.lora.disabled():
                    found = self._errors(self._open(0), encoded, question, weights, folder, ZERO_SHOT, progress)
                controls[ZERO_SHOT] = weighted_error(found, weights)
            detail = {**lora, "timesteps": self.timesteps, "weights": (weights / weights.sum()).tolist()}
            records += score_records(
                question, errors, weights, controls, encoded, split=split,
                prior_correction=config.prior_correction, detail=detail, seed=config.seed,
            )  # fmt: skip
            if config.overlap.images:
                scores = [weighted_error(part, weights) for part in errors]
                records += self._overlap(encoded, question, scores, progress)
        return records

    def _open(self, noise_set: int, *, random: bool = False) -> DenoisingError:
        """Return the score with the noise of a set; the trained model is loaded once."""
        model = self.config.backbone
        seed = derive_seed("noise set", self.config.seed, noise_set)
        if not random and hasattr(self, "error"):
            found = DenoisingError(self.error.backbone, self.error.spec, seed=seed, rows=model.max_rows_per_pass)
            return with_method(found, self.config)
        found = DenoisingError.from_pretrained(
            model.path, seed=seed, dtype=model.dtype, device=model.device, rows=model.max_rows_per_pass,
            random_seed=self.config.seed if random else None,
        )  # fmt: skip
        return with_method(found, self.config)

    def _encode(self, split: str, limit: int | None, progress: ProgressDisplay) -> Encoded:
        config, data = self.config, self.config.data
        if limit is not None:
            data = replace(data, limit=min(limit, data.limit or limit))
        return encode_split(
            data, split, self.error, group_attribute=config.group_by, family_attribute=config.family_attribute,
            resolution=self.error.spec.resolution, progress=progress,
        )  # fmt: skip

    def _few_shot(self, encoded: Encoded, folder: Path, progress: ProgressDisplay) -> dict[str, Any]:
        """Train the LoRA of `dsd.few_shot` and return what is recorded of it."""
        images = self.config.dsd.few_shot.images
        pool = self._encode(self.config.data.train_split, POOL * images, progress)
        facts = {"model": self.model_digest, "data": self.data_digest}
        self.lora, path = fit_few_shot(
            self.error, self.config, pool, encoded, facts, folder, progress, group=self.group
        )  # fmt: skip
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
        require_condition(self.error.spec, question.values)
        require_distinct(question, self._texts())

    def _train(self, progress: ProgressDisplay) -> Encoded | None:
        """Return the training split, where something is fitted on it."""
        if self.config.weights.kind != "learned" and not self.config.regression.images:
            return None
        return self._encode(self.config.data.train_split, None, progress)

    def _errors(
        self,
        error: DenoisingError,
        encoded: Encoded,
        question: Question,
        weights: Float[Tensor, " timestep"],
        folder: Path,
        name: str,
        progress: ProgressDisplay,
        *,
        whole: bool = False,
    ) -> Float[Tensor, "sample n timestep"]:
        """Return the errors of a question; with `whole` no candidate is pruned."""
        config = self.config
        conditions: Condition = error.encode_conditions(question.values)
        keys = [encoded.table.keys[row] for row in question.rows.tolist()]
        facts = {
            "model": self.model_digest, "data": self.data_digest, "seed": error.seed, "dtype": config.backbone.dtype,
            "random": config.seed if name == RANDOM_DENOISER_PASS else None,
            **method_facts(config, self.lora if name != RANDOM_DENOISER_PASS else None),
        }  # fmt: skip
        with progress.bar(len(keys), f"{question.name}: {name}", unit="images", keep=False) as bar:
            return stored_errors(
                folder, facts, error, encoded.latents[question.rows], keys, conditions, question, self.timesteps,
                weights, () if whole else config.stages, chunk=config.chunk, on_batch=bar.update,
            )  # fmt: skip

    def _learned(
        self, train: Encoded, name: str, folder: Path, progress: ProgressDisplay
    ) -> Float[Tensor, " timestep"]:
        """Learn the weights of a question on a share of the training groups, whose candidates are made alike."""
        config = self.config
        if config.weights.kind != "learned":
            return self.weights
        part = share_of_groups(train, config.weights.fraction, config.seed)
        rule = config.candidates
        if rule.kind in ("captions", "retrieval"):
            rule = replace(rule, n=max(2, min(rule.n, len(set(part.groups)))))
        asked = questions(rule, part, seed=config.seed)
        question = asked[0] if len(asked) == 1 else next(found for found in asked if found.name == name)
        self._require(question)
        errors = self._errors(self.error, part, question, self.weights, folder, "weights", progress, whole=True)
        families = [part.families[row] for row in question.rows.tolist()]
        return learned_weights(errors * self.weights, question.right, families) * self.weights

    def _regressions(
        self, train: Encoded | None, encoded: Encoded, question: Question
    ) -> dict[str, Float[Tensor, "sample n"]]:
        """Return the distances of latents to those that regressions expect for the candidates."""
        if train is None or not self.config.regression.images or not isinstance(question.values[0], str):
            return {}
        clip = next((text for text in self._texts().values() if isinstance(text, ClipTextEncoder)), None)
        states = None if clip is None else lambda captions: clip.mean_states(captions).float().cpu()
        fitted = regressions(train, self.config.regression, states, seed=self.config.seed)
        latents, found = encoded.latents[question.rows].flatten(1), {}
        for name, expect in fitted.items():
            distances = torch.cdist(latents.double(), expect([str(value) for value in question.values]).double())
            picked = distances.gather(1, question.candidates.clamp_min(0))
            found[name] = picked.masked_fill(~question.offered, torch.inf)
        return found


def share_of_groups(encoded: Encoded, fraction: float, seed: int) -> Encoded:
    """Return the samples of a seeded choice of groups, at least three of them."""
    names = sorted(set(encoded.families))
    generator = torch.Generator().manual_seed(derive_seed("weights", seed))
    count = min(len(names), max(3, round(fraction * len(names))))
    chosen = {names[place] for place in torch.randperm(len(names), generator=generator)[:count].tolist()}
    rows = [row for row, name in enumerate(encoded.families) if name in chosen]
    table = encoded.table
    return Encoded(
        replace(
            table, images=table.images[rows], keys=[table.keys[row] for row in rows],
            captions=[table.captions[row] for row in rows], attributes=[table.attributes[row] for row in rows],
        ),
        encoded.latents[rows],
        [encoded.groups[row] for row in rows],
        [encoded.families[row] for row in rows],
    )  # fmt: skip


def _require_names(config: ScoreConfig, shard_set: ShardSet) -> None:
    """Raises: UnknownName for a split or an attribute that the data do not have."""
    needs_train = config.weights.kind == "learned" or config.regression.images or config.dsd.few_shot.images
    needs_train = needs_train or config.overlap.images
    for split in (config.scored_split, *([config.data.train_split] if needs_train else [])):
        shard_set.shards_of(config.data.source_of(split))
    named = {"group_by": config.group_by, "family_attribute": config.family_attribute}
    named |= {"candidates.attribute": config.candidates.attribute}
    named |= {f"candidates.phrases.{name}": name for name in config.candidates.phrases}
    for key, name in named.items():
        if name is not None and name not in shard_set.attributes:
            raise unknown(key, name, shard_set.attributes)
