"""`diffprobe eval backbone`: does a text-to-image model do what probes will assume of it?

Four questions on held-out images: how well the autoencoder reconstructs, whether the text lowers the denoising error,
whether the right caption is told from others by that error, and what samples look like.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffprobe.analysis.caption_choice import candidates_of, choose, spread_timesteps
from diffprobe.analysis.denoising_error import DenoisingError, tenths
from diffprobe.analysis.statistics import bootstrap_interval
from diffprobe.backbones.quiet import quiet_libraries
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import EmptyClass, WeightsMismatch, unknown
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.result import MetricRecord, make_result, write_result
from diffprobe.core.rng import derive_seed
from diffprobe.shards.index import ShardSet
from diffprobe.training.images import ImageTable, load_table


@dataclass(frozen=True, kw_only=True)
class BackboneEvaluation:
    """What `diffprobe eval backbone` measures (`schema:` of its experiment file)."""

    experiment: str
    """Name of the experiment."""
    model: str = "emoji-sd"
    """Folder of a StableDiffusionPipeline that predicts epsilon, or "emoji-sd"."""
    data: DataConfig
    """Captioned images; its validation and test splits are scored."""
    group_attribute: str | None = "base"
    """Samples that share it are never each other's wrong caption; one without it, or with None all, stand alone."""
    n_candidates: int = 10
    """Captions to choose from; the first one is right."""
    n_choice_timesteps: int = 15
    """Timesteps over which the error of a candidate is averaged."""
    gates: dict[str, float] = field(default_factory=dict)
    """Least value of a metric, as "<metric>/<split>": missed ones are named and the verb exits with 1."""
    prompts: tuple[str, ...] = ()
    """Prompts of the sample grid; none draws no grid."""
    guidance: float = 4.0
    """Classifier-free guidance of the samples."""
    sampling_steps: int = 50
    """DDIM steps of the samples."""
    seed: int = 0
    """Seed of noise, candidates, shuffles and samples."""
    output: str = "runs"
    """Folder of runs."""


@dataclass(frozen=True)
class Encoded:
    """One split, ready to be scored."""

    table: ImageTable
    latents: Tensor
    text: Tensor
    groups: list[str]


def evaluate_backbone(config: BackboneEvaluation) -> tuple[Path, list[str]]:
    """Measure, write `result.json` (and `samples.png`), and return its path and the gates that were missed.

    Raises: UnknownName for a `group_attribute` the data do not have; EmptyClass if they are too few or too alike for
        wrong captions; what opening model and data raises.
    """
    started_at = time.time()
    keep_freed_memory()
    attributes = ShardSet.load(config.data.path).attributes
    if config.group_attribute is not None and config.group_attribute not in attributes:
        raise unknown("group_attribute", config.group_attribute, attributes)
    pipeline = load_pipeline(config.model)
    score = DenoisingError(pipeline, seed=config.seed)
    run_dir = Path(config.output) / config.experiment
    run_dir.mkdir(parents=True, exist_ok=True)
    metrics: list[MetricRecord] = []
    with _progress() as progress:
        for split in (config.data.val_split, config.data.test_split):
            encoded = _encode(config, pipeline, score, split)
            metrics.append(_reconstruction(pipeline, encoded, split))
            metrics += _text_use(config, score, encoded, split, progress)
            metrics.append(_caption_choice(config, score, encoded, split, progress))
    if config.prompts:
        sample_grid(config, pipeline).save(run_dir / "samples.png")
    result = make_result(
        run=config.experiment,
        experiment=config.experiment,
        kind="backbone_eval",
        config={key: value for key, value in asdict(config).items() if key != "output"},
        seeds={"seed": config.seed},
        metrics=metrics,
        started_at=started_at,
    )
    write_result(result, run_dir / "result.json")
    return run_dir / "result.json", missed_gates(config.gates, metrics)


def missed_gates(gates: dict[str, float], metrics: Sequence[MetricRecord]) -> list[str]:
    """Say which gates were not reached. A gate that names no metric is missed too.

    >>> missed_gates({"psnr_db/test": 27}, [MetricRecord(name="psnr_db", value=26.0, split="test", n=3)])
    ['psnr_db/test is 26, at least 27 is asked for']
    """
    values = {f"{record.name}/{record.split}": record.value for record in metrics}
    missed = []
    for name, least in gates.items():
        if name not in values:
            missed.append(f"{name} was not measured")
        elif values[name] < least:
            missed.append(f"{name} is {values[name]:.4g}, at least {least:g} is asked for")
    return missed


def load_pipeline(path: str) -> Any:
    """Open a StableDiffusionPipeline folder in float32. Raises: WeightsMissing, WeightsMismatch."""
    from diffprobe.backbones.condition import require_vocabulary
    from diffprobe.backbones.families import sd_unet
    from diffprobe.backbones.weights import locate, require_files

    checkpoint = locate(path)
    folder = checkpoint.folder
    if folder is None or not sd_unet.matches(checkpoint.index):
        raise WeightsMismatch(
            f"'{path}' is a {checkpoint.index.get('_class_name')}, not a StableDiffusionPipeline.",
            fix="name a StableDiffusionPipeline folder, or emoji-sd",
        )
    require_files(*(folder / part for part in ("unet", "vae", "text_encoder")))
    require_vocabulary(folder)
    with quiet_libraries():
        from diffusers import StableDiffusionPipeline

        try:
            pipeline = StableDiffusionPipeline.from_pretrained(
                folder, safety_checker=None, requires_safety_checker=False, local_files_only=True, use_safetensors=True
            )
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise WeightsMismatch(f"'{path}' cannot be opened as a StableDiffusionPipeline: {error}.") from error
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(torch.float32)


def resolution_of(pipeline: Any) -> int:
    """Return the side of the images, in pixels, that the U-Net was made for."""
    size = pipeline.unet.config.sample_size
    return int((size if isinstance(size, int) else size[0]) * pipeline.vae_scale_factor)


def _encode(config: BackboneEvaluation, pipeline: Any, score: DenoisingError, split: str) -> Encoded:
    table = load_table(config.data, split, resolution=resolution_of(pipeline), captioned=True)
    latents = torch.cat([score.encode_images(table.floats(rows)) for rows in torch.arange(len(table)).split(64)])
    groups = [
        attributes.get(config.group_attribute or "", key)
        for attributes, key in zip(table.attributes, table.keys, strict=True)
    ]
    return Encoded(table, latents, score.encode_captions([captions[0] for captions in table.captions]), groups)


def _reconstruction(pipeline: Any, encoded: Encoded, split: str) -> MetricRecord:
    """PSNR of each image, averaged; beside it what the mean colour alone and an 8 x 8 thumbnail reach."""
    from diffprobe.training.autoencoder import psnr_db, reconstruct

    sums: dict[str, list[Tensor]] = {"vae": [], "mean_colour": [], "thumbnail_8x8": []}
    for rows in torch.arange(len(encoded.table)).split(64):
        images = encoded.table.floats(rows)
        size = images.shape[-2:]
        small = torch.nn.functional.interpolate(images, size=(8, 8), mode="area")
        large = torch.nn.functional.interpolate(small, size=size, mode="bicubic").clamp(0, 1)
        sums["vae"].append(psnr_db(reconstruct(pipeline.vae, images), images))
        sums["mean_colour"].append(psnr_db(images.mean((-2, -1), keepdim=True).expand_as(images), images))
        sums["thumbnail_8x8"].append(psnr_db(large, images))
    means = {name: float(torch.cat(values).mean()) for name, values in sums.items()}
    spread = float(torch.cat(sums["vae"]).std())
    value = means.pop("vae")
    return MetricRecord(
        name="psnr_db", value=value, split=split, n=len(encoded.table), nulls=means, detail={"sd_over_images": spread}
    )


def _text_use(
    config: BackboneEvaluation, score: DenoisingError, encoded: Encoded, split: str, progress: Any
) -> list[MetricRecord]:
    """Denoising error with the right caption at each tenth of the schedule; its null is a caption of another sample."""
    timesteps, n = tenths(score.n_timesteps), len(encoded.table)
    other = _other_rows(encoded.groups, config.seed)
    task = progress.add_task(f"{split}: error with and without the right caption", total=n)
    parts = []
    for rows in torch.arange(n).split(64):
        text = torch.stack([encoded.text[rows], encoded.text[other[rows]]], 1)
        keys = [encoded.table.keys[row] for row in rows.tolist()]
        parts.append(score(encoded.latents[rows], keys, text, timesteps))
        progress.advance(task, len(rows))
    errors = torch.cat(parts).double()  # [sample, right or shuffled, timestep]
    gain = errors[:, 1] - errors[:, 0]
    records = [
        MetricRecord(
            name=f"denoising_error_t{t}",
            value=float(errors[:, 0, column].mean()),
            split=split,
            n=n,
            nulls={"shuffled_captions": float(errors[:, 1, column].mean())},
            detail={"gain_standard_error": float(gain[:, column].std() / n**0.5)},
        )
        for column, t in enumerate(timesteps)
    ]
    tenths_won = int((gain.mean(0) > 0).sum())
    return [*records, MetricRecord(name="tenths_where_text_helps", value=tenths_won, split=split, n=n)]


def _other_rows(groups: Sequence[str], seed: int) -> Tensor:
    """Return for each sample a row of another group: a seeded shuffle, repaired where it hits the same group."""
    generator = torch.Generator().manual_seed(derive_seed("shuffled captions", seed))
    rows = torch.randperm(len(groups), generator=generator).tolist()
    for place, row in enumerate(rows):
        if groups[row] == groups[place]:
            fits = (
                other
                for other in range(len(rows))
                if groups[rows[other]] != groups[place] and groups[row] != groups[other]
            )
            swap = next(fits, None)
            if swap is None:
                raise EmptyClass(
                    f"more than half of {len(groups)} samples are of the group '{groups[row]}'.",
                    "each needs the caption of another group as its wrong one",
                )
            rows[place], rows[swap] = rows[swap], rows[place]
    return torch.tensor(rows)


def _caption_choice(
    config: BackboneEvaluation, score: DenoisingError, encoded: Encoded, split: str, progress: Any
) -> MetricRecord:
    table, n = encoded.table, config.n_candidates
    captions = [captions[0] for captions in table.captions]
    candidates = candidates_of(table.keys, encoded.groups, captions, n=n, seed=config.seed)
    task = progress.add_task(f"{split}: which of {n} captions", total=len(table))
    timesteps = spread_timesteps(config.n_choice_timesteps, score.n_timesteps)
    right = choose(
        score, encoded.latents, table.keys, encoded.text, candidates, timesteps,
        on_batch=lambda count: progress.advance(task, count),
    ).numpy()  # fmt: skip
    interval = bootstrap_interval(lambda rows: float(right[rows].mean()), encoded.groups, seed=config.seed)
    return MetricRecord(
        name=f"caption_of_{n}_accuracy",
        value=float(right.mean()),
        split=split,
        n=len(table),
        nulls={"chance": 1 / n},
        detail={"interval": [interval.low, interval.high], "level": interval.level, "timesteps": timesteps},
    )


def sample_grid(config: BackboneEvaluation, pipeline: Any) -> Any:
    """Sample all prompts and return a square-ish PIL grid on white; each prompt has noise of its own."""
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


def _progress() -> Any:
    from rich.progress import Progress

    return Progress(transient=True)
