"""Measure the shipped flow model: python docs/record_scenes_flow.py --reader RUN_FOLDER/weights --score RUN_FOLDER

It draws one image per caption of test scenes, and reads what captions state with a reader of 32 px
(`diffprobe train experiment=scenes/train_reader data.resolution=32`). `--score` is a finished run of `diffprobe score
experiment=scenes/score backbone.path=scenes-flow data.path=data/scenes32 generated.steps=20`. Results go to
docs/results/scenes-flow/model.json, samples to docs/scenes-flow-samples.png, tables into the model's card.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffprobe.analysis.statistics import bootstrap_interval, mean_of
from diffprobe.core.result import RESULT_FILE, read_result
from diffprobe.core.rng import derive_seed
from diffprobe.generative.scene_reader import SceneReader, load_reader
from diffprobe.shards.scenes.captions import captions_of, parse
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.splits import split_indices
from diffprobe.shards.scenes.world import load_world

sys.path.insert(0, str(Path(__file__).resolve().parent))
from record_demo import with_table  # type: ignore[import-not-found]

DOCS = Path(__file__).resolve().parent
RESULT = DOCS / "results" / "scenes-flow" / "model.json"
SAMPLES = DOCS / "scenes-flow-samples.png"
MODEL = "scenes-flow"
CARD = Path(str(files("diffprobe"))) / "assets" / MODEL / "README.md"
FACTORS = ("role", "texture", "colour", "size", "place", "object", "side")
N_SCENES, STEPS, GUIDANCE, SEED = 480, 20, 3.0, 0
ENLARGED = 3
"""Side of a pixel of the samples."""


def open_pipeline(folder: Path) -> Any:
    """Open a pipeline of Stable Diffusion 3 without T5."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline: Any, texts: Sequence[str]) -> NDArray[np.uint8]:
    """Return an image of each caption, each with noise of its own; uint8 (captions, side, side, 3)."""
    images: list[Any] = []
    for start in range(0, len(texts), 48):
        part = list(texts[start : start + 48])
        generators = [
            torch.Generator().manual_seed(derive_seed("sample", SEED, start + number)) for number in range(len(part))
        ]
        images += pipeline(part, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generators).images
        print(f"{len(images)} of {len(texts)} images", flush=True)
    return np.stack([np.asarray(image) for image in images])


def seen(reader: SceneReader, images: NDArray[np.uint8], spec: WorldSpec) -> dict[str, list[str]]:
    """Return factor -> value that the reader sees in each image."""
    found = reader.read(images)
    return {name: [spec.names(name)[code] for code in found[name].argmax(1)] for name in FACTORS}


def accuracies(
    stated: Sequence[dict[str, str]], generated: dict[str, list[str]], rendered: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """Return for each factor the share of images that show what their caption states.

    Args:
        stated: of each image, factor -> value.
        generated: factor -> value that is seen in each generated image.
        rendered: the same of the scenes that the captions describe.
    Returns: per factor the share with its interval over roles; of rendered images; and with values that were stated of
        other images, shuffled.
    """
    entries = []
    for name in FACTORS:
        rows = [row for row, values in enumerate(stated) if name in values]
        asked = [stated[row][name] for row in rows]
        others = np.random.default_rng(SEED).permutation(asked).tolist()
        hits = np.array([value == generated[name][row] for value, row in zip(asked, rows, strict=True)], dtype=float)
        interval = bootstrap_interval(mean_of(hits), [stated[row]["role"] for row in rows], n_resamples=2000, seed=0)
        entries.append({
            "factor": name, "n": len(rows), "value": float(hits.mean()), "interval": [interval.low, interval.high],
            "rendered": float(np.mean([a == rendered[name][row] for a, row in zip(asked, rows, strict=True)])),
            "shuffled": float(np.mean([a == generated[name][row] for a, row in zip(others, rows, strict=True)])),
        })  # fmt: skip
    return entries


def scores(folder: Path) -> list[dict[str, Any]]:
    """Return what a run of `diffprobe score` has of each metric that chooses among all captions."""
    return [
        {"metric": one.name, "n": one.n, "value": one.value, "interval": list(one.detail["interval"]),
         "controls": one.controls}
        for one in read_result(folder / RESULT_FILE).metrics
        if "_pair_" not in one.name
    ]  # fmt: skip


def image_lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the Markdown table of what generated images show, in %."""
    lines = ["| stated | images | shown | shuffled | rendered |", "| :-- | --: | :-- | --: | --: |"]
    for one in entries:
        value, low, high = (100 * number for number in (one["value"], *one["interval"]))
        lines.append(
            f"| {one['factor']} | {one['n']} | {value:.1f} [{low:.1f}, {high:.1f}] | {100 * one['shuffled']:.1f} "
            f"| {100 * one['rendered']:.1f} |"
        )
    return lines


def score_lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the Markdown table of captions that are chosen by the denoising error, in %."""
    names = list(dict.fromkeys(name for one in entries for name in one["controls"]))
    head = ["metric", "images", "value", *(name.replace("_", " ") for name in names)]
    lines = ["| " + " | ".join(head) + " |", "| :-- | --: | :-- |" + " --: |" * len(names)]
    for one in entries:
        value, low, high = (100 * number for number in (one["value"], *one["interval"]))
        controls = ["" if name not in one["controls"] else f"{100 * one['controls'][name]:.1f}" for name in names]
        cells = [f"`{one['metric']}`", str(one["n"]), f"{value:.1f} [{low:.1f}, {high:.1f}]", *controls]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def sheet(images: NDArray[np.uint8], columns: int = 8, gap: int = 6) -> Any:
    """Return the images in rows on white, each pixel enlarged."""
    from PIL import Image

    side = images.shape[1] * ENLARGED
    found = Image.new("RGB", (columns * (side + gap) + gap, -(-len(images) // columns) * (side + gap) + gap), "white")
    for place, image in enumerate(images):
        larger = Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST)
        found.paste(larger, (gap + place % columns * (side + gap), gap + place // columns * (side + gap)))
    return found


def write_card(tree: dict[str, Any]) -> None:
    """Write the tables into the card, below their markers."""
    card = CARD.read_text("utf-8")
    for name, table in tables(tree).items():
        card = with_table(card, name, table)
    CARD.write_text(card, "utf-8")


def tables(tree: dict[str, Any]) -> dict[str, list[str]]:
    """Return marker -> lines of the table of the card."""
    return {"images": image_lines(tree["images"]), "score": score_lines(tree["score"])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, read, and write results, samples and card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", type=Path, required=True, help="weights of a reader of 32 px")
    parser.add_argument("--score", type=Path, help="folder of a finished run of diffprobe score; else the recorded one")
    args = parser.parse_args(arguments)
    if args.score is None and not RESULT.is_file():
        parser.error("--score is missing, and no score is recorded.")
    spec = load_world()
    reader = load_reader(args.reader, spec)
    scenes = sample(spec, SEED, split_indices(spec, SEED, "test", N_SCENES))
    captions = [several[0] for several in captions_of(spec, scenes)]
    pipeline = open_pipeline(CARD.parent)
    images = draw(pipeline, captions)
    truth = render(spec, scenes, resolution=reader.resolution).images
    found = accuracies(
        [parse(spec, caption) for caption in captions], seen(reader, images, spec), seen(reader, truth, spec)
    )
    sheet(draw(pipeline, [f"a {role}" for role in spec.names("role")])).save(SAMPLES)
    score = json.loads(RESULT.read_text("utf-8"))["score"] if args.score is None else scores(args.score)
    tree = {"steps": STEPS, "guidance": GUIDANCE, "images": found, "score": score}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    write_card(tree)


if __name__ == "__main__":
    main()
