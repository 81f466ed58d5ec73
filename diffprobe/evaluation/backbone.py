"""`diffprobe eval backbone`: check on held-out images that a text-to-image model is what probes assume.

Measures the reconstruction of the autoencoder, whether the text lowers the denoising error, and whether that error
selects the right caption among others; samples are drawn for inspection.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.analysis.caption_regression import RegressionRule
from diffprobe.backbones.base import Condition
from diffprobe.backbones.families import sd_unet
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.loading import load_network
from diffprobe.backbones.locate import locate
from diffprobe.backbones.text_encoders import ClipTextEncoder
from diffprobe.backbones.unet import TextUnet
from diffprobe.config.parse import record_tree
from diffprobe.config.schema import DataConfig
from diffprobe.config.validators import at_least
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch, unknown
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE, RESULT_FILE, SHARDS, MetricRecord, StartTime, make_result, write_result
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.captions import (
    Encoded,
    Expectation,
    caption_choice,
    encode_split,
    regressions,
    text_use,
)
from diffprobe.generative.image_table import load_table
from diffprobe.probes.score.diffusion_classifier import Screening
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.noise_sets import spread_timesteps
from diffprobe.shards.index import ShardSet


@dataclass(frozen=True, kw_only=True)
class BackboneEvaluation:
    """Settings of `diffprobe eval backbone` (experiment files of kind `evaluate_backbone`)."""

    experiment: str
    """Name of the experiment."""
    model: str = "emoji-sd"
    """Folder of a StableDiffusionPipeline, or "emoji-sd"."""
    data: DataConfig
    """Captioned images; its validation and test splits are scored."""
    group_attribute: str | None = None
    """A wrong caption is always of another value of this attribute; samples without it form groups of one. None: the
    group that the data set names, if any."""
    family_attribute: str | None = None
    """A coarser grouping; None for `group_attribute`. Intervals resample whole families. Samples of families outside of
    the training split have a record of their own (`caption_of_<n>_accuracy_new_<attribute>`)."""
    n_candidates: int = 10
    """Captions to choose from; the first one is right."""
    n_choice_timesteps: int = 15
    """Timesteps over which the error of a candidate is averaged."""
    n_screening_timesteps: int = 0
    """Timesteps at which all candidates are scored, before `n_screened` of them are scored at all;
    `n_choice_timesteps` has to be an odd multiple. 0 scores all candidates at all timesteps."""
    n_screened: int = 3
    """Candidates that a screening keeps."""
    regression: RegressionRule = field(default_factory=RegressionRule)
    """The control of the caption choice: a regression from captions to latents on the training split."""
    gates: dict[str, float] = field(default_factory=dict)
    """Lower bound of a metric, as "<metric>/<split>": missed ones are listed and the verb exits with 1."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample grid; without prompts no grid is drawn."""
    guidance: float = 4.0
    """Classifier-free guidance of the samples."""
    sampling_steps: int = 50
    """DDIM steps of the samples."""
    seed: int = 0
    """Seed of noise, candidates, shuffles and samples."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        at_least(2, n_candidates=self.n_candidates)
        at_least(1, n_choice_timesteps=self.n_choice_timesteps, n_screened=self.n_screened)
        at_least(1, sampling_steps=self.sampling_steps)
        at_least(0, n_screening_timesteps=self.n_screening_timesteps)
        first, every = self.n_screening_timesteps, self.n_choice_timesteps
        if first and (every % first or every // first % 2 == 0):
            raise ConfigError(
                f"n_screening_timesteps={first} are not among n_choice_timesteps={every}.",
                fix="an odd multiple, for example 10 and 50; or n_screening_timesteps=0",
            )


def evaluate_backbone(config: BackboneEvaluation) -> tuple[Path, list[str]]:
    """Measure, write `result.json` (and `samples.png`), and return its path and the gates that were missed.

    The folder is <output>/<experiment>/<first 12 digits of a digest>: of the config, the model's files and the shards.

    Raises: UnknownName for an attribute that the data do not have; EmptyClass if there are too few groups for wrong
        captions; errors of `load_pipeline` and `ShardSet.load`.
    """
    started_at = StartTime.now()
    keep_freed_memory()
    shard_set = ShardSet.load(config.data.path, storage_patience=config.data.storage_patience)
    config = replace(config, group_attribute=config.group_attribute or shard_set.group)
    for key in ("group_attribute", "family_attribute"):
        if (name := getattr(config, key)) is not None and name not in shard_set.attributes:
            raise unknown(key, name, shard_set.attributes)
    pipeline, score = load_pipeline(config.model, seed=config.seed)
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    inputs = {SHARDS: shard_set.digest, BACKBONE: checkpoint_digest(config.model)}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    metrics: list[MetricRecord] = []
    expectations: dict[str, Expectation] = {}
    known: set[str] = set()
    with ProgressDisplay(transient=True) as progress:
        if config.regression.images:
            train = _encode(config, pipeline, score, config.data.train_split, progress)
            known = set(train.families)
            expectations = regressions(train, config.regression, _mean_states(score), seed=config.seed)
        elif config.family_attribute:  # only names are needed, so nothing is encoded
            table = load_table(config.data, config.data.train_split, resolution=resolution_of(pipeline), captioned=True)
            known = set(table.groups(config.family_attribute))
        for split in (config.data.val_split, config.data.test_split):
            encoded = _encode(config, pipeline, score, split, progress)
            conditions = score.encode_conditions(encoded.captions)
            metrics.append(_reconstruction(pipeline, encoded, split, progress))
            metrics += text_use(
                score, encoded, conditions, split, n_timesteps=score.n_timesteps, seed=config.seed, progress=progress
            )
            metrics += _caption_choice(config, score, encoded, conditions, split, expectations, known, progress)
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
    if config.prompts:
        with atomic_file(run_dir / "samples.png") as temporary:
            sample_grid(config, pipeline).save(temporary, format="PNG")
    return run_dir / RESULT_FILE, missed_gates(config.gates, metrics)


def missed_gates(gates: dict[str, float], metrics: Sequence[MetricRecord]) -> list[str]:
    """List the gates that were not reached. A gate without its metric is missed too.

    >>> missed_gates({"psnr_db/test": 27}, [MetricRecord(name="psnr_db", value=26.0, split="test", n=3)])
    ['psnr_db/test is 26, at least 27 is required']
    """
    values = {f"{record.name}/{record.split}": record.value for record in metrics}
    missed = []
    for name, least in gates.items():
        if name not in values:
            missed.append(f"{name} was not measured")
        elif values[name] < least:
            missed.append(f"{name} is {values[name]:.4g}, at least {least:g} is required")
    return missed


def load_pipeline(path: str, *, seed: int = 0) -> tuple[Any, DenoisingError]:
    """Open a StableDiffusionPipeline folder in float32 on the CPU.

    Args:
        path: the folder, or `emoji-sd`.
        seed: seed of the noise that the score is measured with.
    Returns: the diffusers pipeline, and the score; both share the U-Net and the text encoder.
    Raises: WeightsMissing, WeightsMismatch.
    """
    checkpoint = locate(path)
    if checkpoint.folder is None or not sd_unet.matches(checkpoint.index):
        raise WeightsMismatch(
            f"'{path}' is a {checkpoint.index.get('_class_name')}, not a StableDiffusionPipeline.",
            fix="name a StableDiffusionPipeline folder, or emoji-sd",
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
    of = {"group_attribute": config.group_attribute, "family_attribute": config.family_attribute}
    return encode_split(config.data, split, score, **of, resolution=resolution, progress=progress)


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


def _caption_choice(
    config: BackboneEvaluation,
    score: DenoisingError,
    encoded: Encoded,
    conditions: Condition,
    split: str,
    expectations: dict[str, Expectation],
    known: set[str],
    progress: ProgressDisplay,
) -> list[MetricRecord]:
    screening, parts, family = None, {}, config.family_attribute
    if family is not None:
        parts[f"new_{family}"] = torch.tensor([name not in known for name in encoded.families])
    if config.n_screening_timesteps:
        first = tuple(spread_timesteps(config.n_screening_timesteps, score.n_timesteps))
        screening = Screening(timesteps=first, kept=config.n_screened)
    return caption_choice(
        score,
        encoded,
        conditions,
        split,
        n=config.n_candidates,
        timesteps=spread_timesteps(config.n_choice_timesteps, score.n_timesteps),
        screening=screening,
        expectations=expectations,
        parts=parts,
        seed=config.seed,
        progress=progress,
    )


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
