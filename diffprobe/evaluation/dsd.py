"""`diffprobe score method=dsd`: Discffusion (He et al., 2305.10722) on the scorer of `score.py`."""

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffprobe.backbones.lora_adapters import LoraAdapters
from diffprobe.config.parse import record_tree
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import SplitLeak
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.captions import Encoded
from diffprobe.evaluation.dsd_settings import DSD
from diffprobe.evaluation.score_candidates import questions, require_distinct
from diffprobe.probes.score.few_shot_match import FewShotImages, train_few_shot
from diffprobe.scoring.attention_match import AttentionMatch, AttentionMatchRule
from diffprobe.scoring.denoising_error import DenoisingError

if TYPE_CHECKING:
    from diffprobe.evaluation.score_settings import ScoreConfig

ZERO_SHOT = "zero_shot"
"""Name of the control of a LoRA: the same scores without it."""
POOL = 16
"""Training images that are read for each one that is chosen, so that groups can differ."""


def with_method(error: DenoisingError, config: "ScoreConfig") -> DenoisingError:
    """Return the score of a configuration, with the model and the noise of a denoising error.

    Raises: ConfigError for DSD with a model without cross-attention to a text; UnknownTap.
    """
    return AttentionMatch.of(error, config.dsd) if config.method == DSD else error


def method_facts(config: "ScoreConfig", lora: LoraAdapters | None = None) -> dict[str, Any]:
    """Return what fixes the scores besides model, data and noise, as JSON; nothing for Diffusion Classifier.

    Args:
        lora: attached to the model that is scored.
    """
    if config.method != DSD:
        return {}
    rule = {field.name: getattr(config.dsd, field.name) for field in fields(AttentionMatchRule)}
    return {
        DSD: record_tree(AttentionMatchRule(**rule)),
        "lora": lora.digest if lora is not None and lora.enabled else None,
    }


def few_of_groups(encoded: Encoded, n: int, seed: int) -> Encoded:
    """Return n samples in a seeded order, one of each family before the second of any."""
    generator = torch.Generator().manual_seed(derive_seed("few shot images", seed))
    drawn = torch.randperm(len(encoded.table), generator=generator).tolist()
    seen: dict[str, int] = {}
    turns = []
    for row in drawn:
        family = encoded.families[row]
        seen[family] = seen.get(family, 0) + 1
        turns.append((seen[family], row))
    rows = sorted(row for _, row in sorted(turns, key=lambda turn: turn[0])[:n])
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


def require_other_groups(chosen: Encoded, scored: Encoded, attribute: str | None) -> None:
    """Refuse training images of a group that is scored.

    Args:
        attribute: the group that the data set names; None compares keys.
    Raises: SplitLeak.
    """
    shared = set(chosen.table.groups(attribute)) & set(scored.table.groups(attribute))
    if shared:
        raise SplitLeak(
            f"dsd.few_shot: {len(shared)} groups of training images are in the scored split too, for example "
            f"'{min(shared)}'.",
            fix="splits by group: data.val_fraction, or another data.train_split",
        )


def fit_few_shot(
    error: DenoisingError,
    config: "ScoreConfig",
    pool: Encoded,
    scored: Encoded,
    facts: dict[str, Any],
    folder: Path,
    progress: ProgressDisplay,
    *,
    group: str | None,
) -> tuple[LoraAdapters, Path]:
    """Attach a LoRA to the model and train it, or read the one that an earlier call has trained.

    Args:
        error: the score.
        pool: training images, of which some are chosen.
        scored: the images that are scored later.
        facts: JSON values that fix model and data.
        folder: gets the LoRA, under a digest of all that it depends on.
        group: the attribute that the data set names, by which its splits are made.
    Returns: the LoRA, and its file.
    Raises: SplitLeak for a training image of a group that is scored; EmptyClass for too few images; ConfigError for
        texts that are too long or tokenise alike; NonFinite.
    """
    rule, candidates = config.dsd.few_shot, config.candidates
    chosen = few_of_groups(pool, rule.images, config.seed)
    require_other_groups(chosen, scored, group)
    if candidates.kind in ("captions", "retrieval"):
        candidates = replace(candidates, n=max(2, min(candidates.n, len(set(chosen.groups)))))
    asked = questions(candidates, chosen, seed=config.seed)
    for question in asked:
        require_distinct(question, dict(getattr(error.backbone, "texts", {})))
    seed = derive_seed("few shot", config.seed)
    lora = LoraAdapters(error.backbone.denoiser, rank=rule.rank, seed=seed)
    identity = {
        **facts, **record_tree(config.dsd), "seed": seed, "keys": chosen.table.keys, "dtype": config.backbone.dtype,
        "questions": [[question.name, question.values, question.candidates.tolist()] for question in asked],
    }  # fmt: skip
    path = folder / f"few-shot-{digest_json(identity)[:12]}.safetensors"
    if path.is_file():
        lora.read(path)
        return lora, path
    tasks = [
        FewShotImages(
            chosen.latents[question.rows], [chosen.table.keys[row] for row in question.rows.tolist()],
            error.encode_conditions(question.values), question.candidates.clamp_min(0), question.offered,
            question.right,
        )
        for question in asked
    ]  # fmt: skip
    with progress.bar(rule.steps, f"few-shot training on {len(chosen.table)} images", unit="steps", keep=False) as bar:
        train_few_shot(error, lora, tasks, rule, seed=seed, on_step=bar.update)
    return lora, lora.save(path)
