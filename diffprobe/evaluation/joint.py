"""`diffprobe eval joint`: what a denoiser of joint training retrieves and what it draws.

Retrieval: captions of held-out images by the denoised query of its alignment head, both ways, by one step and by DDIM,
each without and with guidance. Generation: images of held-out captions, as a frozen reader that was trained on
renderings sees them. A model of one task is measured on that task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.analysis.sample_quality import frechet_distance
from diffprobe.analysis.statistics import Interval, bootstrap_interval, mean_of
from diffprobe.backbones.caption_encoder import load_caption_encoder
from diffprobe.config.parse import parse, record_tree
from diffprobe.config.schema import DataConfig
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import canonical_json, digest_file, digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch
from diffprobe.core.groups import Groups
from diffprobe.core.result import (
    BACKBONE,
    INPUT,
    RESULT_FILE,
    SHARDS,
    MetricRecord,
    RunResult,
    StartTime,
    make_result,
    read_result,
    write_result,
)
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.backbone import load_pipeline, resolution_of
from diffprobe.evaluation.joint_settings import JointEvaluation
from diffprobe.evaluation.rate_images import sampled_images, scenes_by_role
from diffprobe.generative.alignment import FOLDER, encoder_half
from diffprobe.generative.image_table import ImageTable, load_table
from diffprobe.generative.scene_reader import WEIGHTS_FILE, SceneReader, find_reader, load_reader
from diffprobe.probes.caption import CaptionRegressor, diffdis
from diffprobe.runs.provenance import checkpoint_digest
from diffprobe.runs.train_generative import WEIGHTS
from diffprobe.shards.index import ShardSet
from diffprobe.shards.scenes.captions import captions_of
from diffprobe.shards.scenes.captions import parse as factors_of
from diffprobe.shards.scenes.factors import Scenes
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.world import load_world
from diffprobe.training.caption_scores import ScoredSplit, chance, score_split

KIND = "joint_eval"
"""Kind of the results."""
SAMPLES_FILE = "samples.json"
"""File beside the result: the value of each image, for paired comparisons of models."""
GENERATED = "generated"
"""Split of the records of generation."""
SHUFFLED, PERMUTED, RENDERED = "shuffled_images", "permuted_prompts", "rendered"
"""Controls: images exchanged between captions, images read for the prompts of others, and rendered images."""
_ROWS = 64

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Retrieval:
    """Image tokens and caption vectors of a split, as the head of a run reads them.

    Attributes:
        split: tokens, different captions, and the caption of each image.
        groups: group of each image.
        keys: key of each image.
    """

    split: ScoredSplit
    groups: Sequence[str]
    keys: Sequence[str]


def evaluate_joint(config: JointEvaluation) -> Path:
    """Retrieve, draw and read; return the path of `result.json`.

    The folder is <output>/<experiment>/<first 12 digits of a digest>; images are kept in <output>/<experiment>/images.

    Raises: ConfigError for a run of another kind, and for one with nothing to measure; EmptyClass for a split with one
        caption; WeightsMissing, WeightsMismatch for the reader and the model.
    """
    started_at = StartTime.now()
    trained = read_result(Path(config.run) / RESULT_FILE)
    weights = str(Path(config.run) / WEIGHTS)
    aligns, generates = tasks_of(trained)
    if not aligns and not config.n_per_role:
        raise ConfigError(f"n_per_role=0, and run '{trained.run}' has no alignment head: nothing is measured.")
    inputs = {f"{INPUT}run": digest_file(Path(config.run) / RESULT_FILE), BACKBONE: checkpoint_digest(weights)}
    pipeline, _ = load_pipeline(weights, seed=config.seed)
    metrics: list[MetricRecord] = []
    samples: dict[str, dict[str, Any]] = {}
    detail = _training_facts(trained)
    if aligns:
        data = parse(DataConfig, trained.config["data"], at="data")
        inputs[SHARDS] = ShardSet.load(data.path).digest
        found = read_split(config, data, pipeline, weights)
        aligner = CaptionRegressor.from_pretrained(Path(weights) / FOLDER)
        metrics += retrieval_records(config, aligner, found, config.split or data.test_split, detail, samples)
    if generates and config.n_per_role:
        reader = load_reader(config.reader, load_world())
        inputs[f"{INPUT}reader"] = digest_file(find_reader(config.reader) / WEIGHTS_FILE)
        metrics += _generation(config, pipeline, reader, inputs[BACKBONE], detail, samples)
    tree = {key: value for key, value in record_tree(config).items() if key != "output"}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "inputs": inputs})[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic_file(run_dir / SAMPLES_FILE) as temporary:
        temporary.write_text(canonical_json(samples) + "\n", "utf-8")
    result = make_result(
        run=f"{config.experiment}/{run_dir.name}", experiment=config.experiment, kind=KIND, config=tree,
        seeds={"seed": config.seed}, metrics=metrics, started_at=started_at, artifacts=inputs,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


def tasks_of(result: RunResult) -> tuple[bool, bool]:
    """Return whether a run was trained for alignment, and whether for generation.

    Raises: ConfigError for a run that did not train a denoiser's U-Net.
    """
    config = result.config
    if "objective" not in config or config.get("transformer") is not None:
        raise ConfigError(
            f"run '{result.run}' did not train a U-Net.",
            fix="name a finished run of kind train_denoiser, as of scenes/diffdis_joint/joint",
        )
    alignment = config.get("alignment")
    if alignment is None:
        return False, True
    return float(alignment["weight"]) > 0, bool(alignment["generation"])


def _training_facts(result: RunResult) -> dict[str, Any]:
    """Return what the training did: its passes and operations per sample, its steps, and lambda."""
    facts: dict[str, Any] = next((record.detail for record in result.metrics if "passes" in record.detail), {})
    alignment = result.config.get("alignment")
    return {
        "trained": {
            "run": result.run,
            "max_steps": result.config["trainer"]["max_steps"],
            "passes": facts.get("passes", {"forward": 1, "alignment": 0}),
            "flops_per_sample": facts.get("flops_per_sample"),
            "weight": alignment["weight"] if alignment else 0.0,
            "seed": result.config["seed"],
        }
    }


def read_split(config: JointEvaluation, data: DataConfig, pipeline: Any, weights: str) -> Retrieval:
    """Read the image tokens of a split under the empty caption, and the vectors of the main captions of its images."""
    if config.limit is not None:
        data = replace(data, limit=config.limit)
    split = config.split or data.test_split
    table = load_table(data, split, resolution=resolution_of(pipeline), captioned=True)
    captions = [own[0] for own in table.captions]
    different = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    vectors = load_caption_encoder(weights)(list(different))
    found = ScoredSplit(
        features=_image_tokens(table, pipeline),
        captions=vectors,
        caption=torch.tensor([different[caption] for caption in captions]),
    )
    found.require_several(split)
    return Retrieval(split=found, groups=table.groups(config.group_attribute), keys=table.keys)


@torch.no_grad()
def _image_tokens(table: ImageTable, pipeline: Any) -> Tensor:
    size, factor = pipeline.tokenizer.model_max_length, pipeline.vae.config.scaling_factor
    ids = pipeline.tokenizer([""], padding="max_length", max_length=size, return_tensors="pt").input_ids
    context = pipeline.text_encoder(ids).last_hidden_state
    parts = []
    for rows in torch.arange(len(table)).split(_ROWS):
        clean = pipeline.vae.encode(table.to_float(rows) * 2 - 1).latent_dist.mode() * factor
        parts.append(encoder_half(pipeline.unet, clean, context.expand(len(rows), -1, -1)).float())
    return torch.cat(parts)


def inferences(config: JointEvaluation) -> list[tuple[str, float]]:
    """Return the ways to a vector: `one_step` or `ddim`, and the guidance w."""
    return [(name, w) for name in diffdis.INFERENCES for w in config.query_guidance]


def retrieval_records(
    config: JointEvaluation,
    aligner: CaptionRegressor,
    found: Retrieval,
    split: str,
    detail: Mapping[str, Any],
    samples: dict[str, dict[str, Any]],
) -> list[MetricRecord]:
    """Return the recalls of each inference, beside chance and images that were exchanged between captions.

    Args:
        aligner: the head; its inference is changed.
        found: the split.
        split: its name.
        detail: of all records.
        samples: gets whether each image is a hit, by inference and recall.
    Raises: ConfigError for guidance of a head that was trained without dropping images.
    """
    head: Any = aligner.net
    trained, levels = head.config, chance(found.split, config.ranks)
    generator = torch.Generator().manual_seed(derive_seed("shuffled images", config.seed))
    exchanged = replace(found.split, features=found.split.features[shifted(len(found.keys), generator)])
    records = []
    for name, w in inferences(config):
        head.inference = name
        head.config = replace(trained, guidance=w, ddim_steps=config.ddim_steps)
        hits, null = (score_split(aligner, one, config.ranks) for one in (found.split, exchanged))
        inference = inference_name(name, w)
        samples[inference] = {"groups": list(found.groups)} | {k: one.above.tolist() for k, one in hits.items()}
        for metric, ratio in hits.items():
            interval = _interval(ratio.above, found.groups, config)
            records.append(
                MetricRecord(
                    name=metric, value=ratio.value, split=split, n=len(found.keys), probe="diffdis", target=inference,
                    controls={"chance": levels[metric], SHUFFLED: null[metric].value},
                    detail={**detail, **interval, "inference": name, "guidance": w, "ddim_steps": config.ddim_steps,
                            "n_captions": len(found.split.captions)},
                )
            )  # fmt: skip
    return records


def inference_name(name: str, w: float) -> str:
    """Return the name of an inference in records.

    >>> inference_name("ddim", 0.0), inference_name("ddim", 1.5)
    ('ddim', 'ddim_w1.5')
    """
    return f"{name}_w{w:g}" if w else name


def shifted(n: int, generator: torch.Generator) -> Tensor:
    """Return an order of n samples in which none keeps its place: a random circle, moved by one."""
    circle = torch.randperm(n, generator=generator)
    order = torch.empty(n, dtype=torch.int64)
    order[circle] = circle.roll(1)
    return order


def _generation(
    config: JointEvaluation,
    pipeline: Any,
    reader: SceneReader,
    digest: str,
    detail: Mapping[str, Any],
    samples: dict[str, dict[str, Any]],
) -> list[MetricRecord]:
    """Draw the images of held-out captions, and return what the reader sees. Raises: WeightsMismatch."""
    side = resolution_of(pipeline)
    if side != reader.resolution:
        raise WeightsMismatch(
            f"the run draws images of {side} pixels, the reader reads {reader.resolution}.",
            fix="train a reader with data.resolution of the model",
        )
    spec, n = reader.spec, config.n_per_role
    scenes = scenes_by_role(spec, config.seed, n)
    prompts = {role: [own[0] for own in captions_of(spec, found)] for role, found in scenes.items()}
    facts = [digest, spec.digest, prompts, config.seed, config.guidance, config.sampling_steps]
    images = sampled_images(
        pipeline, Path(config.output) / config.experiment / "images" / digest_json(facts)[:12], prompts,
        seed=config.seed, guidance=config.guidance, sampling_steps=config.sampling_steps, resolution=side,
    )  # fmt: skip
    others = scenes_by_role(spec, config.seed + 1, n)
    return generation_records(
        config, reader, [text for role in prompts for text in prompts[role]],
        generated=np.concatenate([images[role] for role in prompts]),
        rendered=_rendered(spec, scenes, side), real=_rendered(spec, others, side), detail=detail, samples=samples,
    )  # fmt: skip


def _rendered(spec: WorldSpec, scenes: Mapping[str, Scenes], side: int) -> NDArray[np.uint8]:
    return np.concatenate([render(spec, found, resolution=side).images for found in scenes.values()])


def generation_records(
    config: JointEvaluation,
    reader: SceneReader,
    prompts: Sequence[str],
    *,
    generated: NDArray[np.uint8],
    rendered: NDArray[np.uint8],
    real: NDArray[np.uint8],
    detail: Mapping[str, Any],
    samples: dict[str, dict[str, Any]],
) -> list[MetricRecord]:
    """Return the share of stated attributes that the reader finds, that of roles alone, and the Frechet distance.

    Args:
        prompts: caption of each generated image.
        generated: images of the model, uint8 (n, r, r, 3).
        rendered: renderings of the scenes that the captions are of: the control of each number.
        real: renderings of other scenes, with which both are compared for the distance.
        detail: of all records.
        samples: gets the values of each image.
    """
    spec = reader.spec
    generator = torch.Generator().manual_seed(derive_seed("permuted prompts", config.seed))
    order = shifted(len(prompts), generator).tolist()
    own = matches(reader, generated, prompts)
    floor = matches(reader, generated, [prompts[row] for row in order])
    ceiling = matches(reader, rendered, prompts)
    clusters = [str(number) for number in range(len(prompts))]
    base = {**detail, "reader": config.reader, "guidance": config.guidance, "world": spec.digest}
    records = []
    for name, values in own.items():
        samples.setdefault(GENERATED, {})[name] = values.tolist()
        records.append(
            MetricRecord(
                name=name, value=float(values.mean()), split=GENERATED, n=len(values), target="stated",
                controls={PERMUTED: float(floor[name].mean()), RENDERED: float(ceiling[name].mean())},
                detail={**base, **_interval(values, clusters, config)},
            )
        )  # fmt: skip
    features = {name: reader.embed(images) for name, images in (("o", generated), ("r", rendered), ("real", real))}
    records.append(
        MetricRecord(
            name="frechet_distance", value=frechet_distance(features["real"], features["o"]), split=GENERATED,
            n=len(prompts), target="image", detail=base,
            controls={RENDERED: frechet_distance(features["real"], features["r"])},
        )
    )  # fmt: skip
    return records


def matches(reader: SceneReader, images: NDArray[np.uint8], prompts: Sequence[str]) -> dict[str, Values]:
    """Return for each image the share of the stated factors that the reader reads as stated, and that of the role.

    Args:
        images: uint8 (n, r, r, 3).
        prompts: captions by the rules of the reader's world, one per image.
    Raises: ConfigError for a caption that no rule writes.
    """
    read = {name: found.argmax(1) for name, found in reader.read(images).items()}
    stated, roles = [], []
    for row, prompt in enumerate(prompts):
        asked = factors_of(reader.spec, prompt)
        right = {name: reader.spec.names(name)[int(read[name][row])] == value for name, value in asked.items()}
        stated.append(np.mean(list(right.values())))
        roles.append(float(right["role"]))
    return {"stated_accuracy": np.array(stated), "role_accuracy": np.array(roles)}


def _interval(values: Values, clusters: Sequence[str], config: JointEvaluation) -> dict[str, Any]:
    """Return the interval of a mean; nothing for a single group."""
    if len(set(clusters)) < 2:
        return {}
    found: Interval = bootstrap_interval(mean_of(values), clusters, n_resamples=config.n_resamples, seed=config.seed)
    return {"interval": [found.low, found.high], "level": found.level, "n_groups": Groups.of(clusters).n}
