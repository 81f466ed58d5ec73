"""`diffprobe eval backbone`: check on held-out images that a text-to-image model is what probes assume.

Measures the reconstruction of the autoencoder, whether the text lowers the denoising error, and whether that error
selects the right caption among random ones, and among those that differ in one attribute; samples are drawn for
inspection.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.backbones.families import sd_unet
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.loading import load_network
from diffprobe.backbones.locate import SHIPPED_UNETS, locate
from diffprobe.backbones.text_encoders import ClipTextEncoder
from diffprobe.backbones.unet import TextUnet
from diffprobe.config.parse import record_tree
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import WeightsMismatch, unknown
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import (
    BACKBONE,
    RESULT_FILE,
    SHARDS,
    MetricRecord,
    StartTime,
    make_result,
    read_result,
    write_result,
)
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.backbone_settings import BackboneEvaluation
from diffprobe.evaluation.backbone_tables import TABLES_FILE, backbone_tables
from diffprobe.evaluation.captions import (
    Encoded,
    Expectation,
    caption_choice,
    encode_split,
    regressions,
    text_use,
)
from diffprobe.evaluation.gates import GateCheck, check_gates
from diffprobe.evaluation.matched_captions import matched_choice, written_choice
from diffprobe.probes.score.staged_errors import Stage
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.noise_sets import spread_timesteps
from diffprobe.shards.index import ShardSet


def evaluate_backbone(config: BackboneEvaluation) -> tuple[Path, list[GateCheck]]:
    """Measure, write `result.json`, `tables.md` and `samples.png`, and return the first's path and the gates' checks.

    The folder is <output>/<experiment>/<first 12 digits of a digest>: of the config, the model's files and the shards.

    Raises: UnknownName for a split or an attribute that the data do not have, before the model is loaded; EmptyClass if
        there are too few groups for wrong captions; errors of `load_pipeline` and `ShardSet.load`.
    """
    started_at = StartTime.now()
    keep_freed_memory()
    shard_set = ShardSet.load(config.data.path, storage_patience=config.data.storage_patience)
    config = replace(config, group_attribute=config.group_attribute or shard_set.group, splits=config.scored_splits)
    _require_names(config, shard_set)
    pipeline, score = load_pipeline(config.model, seed=config.seed)
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    inputs = {SHARDS: shard_set.digest, BACKBONE: checkpoint_digest(config.model)}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    metrics: list[MetricRecord] = []
    expectations: dict[str, Expectation] = {}
    with ProgressDisplay(transient=True) as progress:
        if config.regression.images:
            train = _encode(config, pipeline, score, config.data.train_split, progress)
            expectations = regressions(train, config.regression, _mean_states(score), seed=config.seed)
        for split in config.splits:
            encoded = _encode(config, pipeline, score, split, progress)
            metrics.append(_reconstruction(pipeline, encoded, split, progress))
            metrics += _captions(config, score, encoded, split, expectations, progress)
    result = make_result(
        run=run_dir.name,
        experiment=config.experiment,
        kind="backbone_eval",
        config=tree,
        seeds={"seed": config.seed},
        metrics=metrics,
        started_at=started_at,
        artifacts=inputs,
    )
    write_result(result, run_dir / RESULT_FILE)  # first, so that the numbers are kept where the samples fail
    with atomic_file(run_dir / TABLES_FILE) as temporary:
        temporary.write_text(backbone_tables(read_result(run_dir / RESULT_FILE)), "utf-8")
    if config.prompts:
        with atomic_file(run_dir / "samples.png") as temporary:
            sample_grid(config, pipeline).save(temporary, format="PNG")
    return run_dir / RESULT_FILE, check_gates(config.gates or {}, metrics)


def _require_names(config: BackboneEvaluation, shard_set: ShardSet) -> None:
    """Raises: UnknownName for a split or an attribute that the data do not have."""
    for split in (*config.splits, *([config.data.train_split] if config.regression.images else [])):
        shard_set.shards_of(config.data.source_of(split))
    for key in ("group_attribute", "family_attribute", "matched_attributes", "matched_phrases", "by_attributes"):
        named = getattr(config, key)
        for name in [named] if named is None or isinstance(named, str) else named:
            if name is not None and name not in shard_set.attributes:
                raise unknown(key, name, shard_set.attributes)


def load_pipeline(path: str, *, seed: int = 0) -> tuple[Any, DenoisingError]:
    """Open a StableDiffusionPipeline folder in float32 on the CPU.

    Args:
        path: the folder, or the name of a shipped model.
        seed: seed of the noise that the score is measured with.
    Returns: the diffusers pipeline, and the score; both share the U-Net and the text encoder.
    Raises: WeightsMissing, WeightsMismatch.
    """
    checkpoint = locate(path)
    if checkpoint.folder is None or not sd_unet.matches(checkpoint.index):
        raise WeightsMismatch(
            f"'{path}' is a {checkpoint.index.get('_class_name')}, not a StableDiffusionPipeline.",
            fix=f"name a StableDiffusionPipeline folder, or one of {', '.join(SHIPPED_UNETS)}",
        )
    with quiet_libraries():
        from diffusers import StableDiffusionPipeline

        score = DenoisingError.from_pretrained(path, seed=seed, device="cpu")
        text = _text_encoder(score)
        shared = {"unet": score.backbone.denoiser, "text_encoder": text.encoder, "tokenizer": text.tokenizer}
        shared["vae"] = load_network("AutoencoderKL", checkpoint.part("vae"))
        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                checkpoint.folder,
                safety_checker=None,
                requires_safety_checker=False,
                local_files_only=True,
                use_safetensors=True,
                **shared,
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise WeightsMismatch(f"'{path}' cannot be opened as a StableDiffusionPipeline: {error}.") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(torch.float32), score


def _text_encoder(score: DenoisingError) -> ClipTextEncoder:
    backbone = score.backbone
    assert isinstance(backbone, TextUnet)  # that of sd_unet, which load_pipeline requires
    return backbone.texts["text_encoder"]


def _mean_states(score: DenoisingError) -> Callable[[Sequence[str]], Tensor]:
    return _text_encoder(score).mean_states


def resolution_of(pipeline: Any) -> int:
    """Return the image side in pixels that the U-Net was trained for."""
    size = pipeline.unet.config.sample_size
    return int((size if isinstance(size, int) else size[0]) * pipeline.vae_scale_factor)


def _encode(
    config: BackboneEvaluation, pipeline: Any, score: DenoisingError, split: str, progress: ProgressDisplay
) -> Encoded:
    resolution = resolution_of(pipeline)
    data = config.data
    if config.limit is not None and split in config.scored_splits:
        data = replace(data, limit=min(config.limit, data.limit or config.limit))
    return encode_split(
        data, split, score, group_attribute=config.group_attribute, family_attribute=config.family_attribute,
        resolution=resolution, progress=progress,
    )  # fmt: skip


def _reconstruction(pipeline: Any, encoded: Encoded, split: str, progress: ProgressDisplay) -> MetricRecord:
    """Return the PSNR averaged over images; controls are the mean colour and an 8 x 8 thumbnail."""
    from diffprobe.generative.autoencoder import psnr_db, reconstruct

    sums: dict[str, list[Tensor]] = {"vae": [], "mean_colour": [], "thumbnail_8x8": []}
    with progress.bar(len(encoded.table), f"{split}: reconstruction", unit="images", keep=False) as bar:
        for rows in torch.arange(len(encoded.table)).split(64):
            images = encoded.table.to_float(rows)
            size = images.shape[-2:]
            small = torch.nn.functional.interpolate(images, size=(8, 8), mode="area")
            large = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
            sums["vae"].append(psnr_db(reconstruct(pipeline.vae, images), images))
            sums["mean_colour"].append(psnr_db(images.mean((-2, -1), keepdim=True).expand_as(images), images))
            sums["thumbnail_8x8"].append(psnr_db(large, images))
            bar.update(len(rows))
    means = {name: float(torch.cat(values).mean()) for name, values in sums.items()}
    spread = float(torch.cat(sums["vae"]).std())
    value = means.pop("vae")
    return MetricRecord(
        name="psnr_db",
        value=value,
        split=split,
        n=len(encoded.table),
        controls=means,
        detail={"sd_over_images": spread},
    )


def _captions(
    config: BackboneEvaluation,
    score: DenoisingError,
    encoded: Encoded,
    split: str,
    expectations: dict[str, Expectation],
    progress: ProgressDisplay,
) -> list[MetricRecord]:
    """Return what the captions of a split do for the denoising error."""
    conditions, n_timesteps = score.encode_conditions(encoded.captions), score.n_timesteps
    expected = {name: of_captions(encoded.captions) for name, of_captions in expectations.items()}
    timesteps, screening = spread_timesteps(config.n_choice_timesteps, n_timesteps), None
    if 0 < config.n_screening_timesteps < config.n_choice_timesteps:
        first = spread_timesteps(config.n_screening_timesteps, n_timesteps)
        timesteps = [*first, *sorted(set(timesteps) - set(first))]
        screening = Stage(n_timesteps=len(first), kept=config.n_screened)
    records = text_use(score, encoded, conditions, split, n_timesteps=n_timesteps, seed=config.seed, progress=progress)
    chosen = caption_choice(
        score,
        encoded,
        conditions,
        split,
        n=config.n_candidates,
        timesteps=timesteps,
        screening=screening,
        expected=expected,
        by=config.by_attributes,
        seed=config.seed,
        progress=progress,
    )
    matched = matched_choice(
        score,
        encoded,
        conditions,
        split,
        attributes=config.matched_attributes,
        timesteps=spread_timesteps(config.n_matched_timesteps, n_timesteps),
        expected=expected,
        seed=config.seed,
        progress=progress,
    )
    written = written_choice(
        score,
        encoded,
        score.encode_conditions,
        split,
        phrases=config.matched_phrases,
        most=config.n_candidates,
        timesteps=spread_timesteps(config.n_matched_timesteps, n_timesteps),
        expectations=expectations,
        seed=config.seed,
        progress=progress,
    )
    return [*records, chosen, *matched, *written]


def sample_grid(config: BackboneEvaluation, pipeline: Any) -> Any:
    """Sample all prompts and return a square-ish PIL grid on white; each prompt has its own noise."""
    from PIL import Image

    generators = [
        torch.Generator().manual_seed(derive_seed("sample", config.seed, number, prompt))
        for number, prompt in enumerate(config.prompts)
    ]
    images = pipeline(
        list(config.prompts),
        num_inference_steps=config.sampling_steps,
        guidance_scale=config.guidance,
        generator=generators,
        height=resolution_of(pipeline),
        width=resolution_of(pipeline),
    ).images
    columns = int(len(images) ** 0.5 + 0.999)
    side, gap = images[0].width, 8
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap), "white")
    for place, image in enumerate(images):
        grid.paste(image, (gap + place % columns * (side + gap), gap + place // columns * (side + gap)))
    return grid
