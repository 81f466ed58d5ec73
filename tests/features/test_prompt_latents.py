"""Reading prompt latents: prompts x seeds x width in file order, from a store with made-up features."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, SchemaError, StoreIncomplete, UnknownName
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.manifest import ShardEntry
from diffprobe.features.prompt_latents import is_prompt_store, load_prompt_latents
from diffprobe.features.reader import FeatureStore
from diffprobe.features.writer import ExtractedBatch, StoreWriter

CELLS = {"mid_block@t199:caption:mean": 3, "up_blocks.0@t199:caption:none": 2}
SEEDS = 2
PROMPTS = {"train": ["a red cup", "a blue cup", "a dog"], "test": ["a cat"]}
COLOURS = ("blue", "red")
COLOUR_OF = {"a red cup": 1, "a blue cup": 0, "a dog": -1, "a cat": -1}
IDS = sorted(text.replace(" ", "-") for texts in PROMPTS.values() for text in texts)


def value(text, seed):
    return float(len(text) + 100 * seed)


def write_store(root, changed_manifest, *, skip=(), swap=False, sampling=True):
    shards = [("train-00000", "train", PROMPTS["train"][:2]), ("train-00001", "train", PROMPTS["train"][2:]),
              ("test-00000", "test", PROMPTS["test"])]  # fmt: skip
    backbone = {"weights": "ab", "taps": ["mid_block"], "timesteps": [199]} | ({"sampling": {}} if sampling else {})
    manifest = changed_manifest(
        backbone=backbone,
        cells=dict(CELLS),
        shards=tuple(ShardEntry(file=f, split=s, n=SEEDS * len(p), sha256="0") for f, s, p in shards),
        recorded={
            "backbone": "toy", "data": "prompts", "licence": "none", "classes": [], "versions": {},
            "attributes": {"colour": list(COLOURS), "prompt_id": IDS, "seed": ["0", "1"]},
        },
    )  # fmt: skip
    writer = StoreWriter(root, manifest)
    for entry, (_, _, texts) in zip(manifest.shards, shards, strict=True):
        if entry.file in skip:
            continue
        rows = [(text, seed) for text in texts for seed in range(SEEDS)]
        rows = rows[::-1] if swap else rows
        numbers = torch.tensor([value(*row) for row in rows])
        batch = FeatureBatch(
            features={
                "mid_block@t199:caption:mean": numbers[:, None].expand(-1, 3).contiguous(),
                "up_blocks.0@t199:caption:none": numbers[:, None, None, None].expand(-1, 2, 2, 2).contiguous(),
            },
            keys=[f"{text.replace(' ', '-')}-{seed}" for text, seed in rows],
            label=torch.full((len(rows),), -1),
            attributes={
                "colour": torch.tensor([COLOUR_OF[text] for text, _ in rows]),
                "prompt_id": torch.tensor([IDS.index(text.replace(" ", "-")) for text, _ in rows]),
                "seed": torch.tensor([seed for _, seed in rows]),
            },
        )
        writer.write(entry, [ExtractedBatch(batch, [text for text, _ in rows])])
    return writer.path


def test_features_are_prompts_by_seeds_in_file_order(tmp_path, changed_manifest):
    store = FeatureStore.open(write_store(tmp_path, changed_manifest))
    features, prompts, attributes = load_prompt_latents(store, "mid_block@t199")
    assert prompts == [*PROMPTS["train"], *PROMPTS["test"]]
    expected = torch.tensor([[value(text, seed) for seed in range(SEEDS)] for text in prompts])
    assert features.shape == (4, SEEDS, 3) and features.dtype == torch.float32
    assert torch.equal(features, expected[..., None].expand(-1, -1, 3))
    assert attributes["colour"] == ["red", "blue", None, None]
    assert attributes["prompt_id"] == [text.replace(" ", "-") for text in prompts] and "seed" not in attributes


def test_maps_are_flattened_and_a_split_is_chosen(tmp_path, changed_manifest):
    found = load_prompt_latents(write_store(tmp_path, changed_manifest), "up_blocks.0@t199", split="test")
    assert found.features.shape == (1, SEEDS, 8) and found.prompts == ["a cat"]


def test_what_is_missing_or_unknown_is_named(tmp_path, changed_manifest):
    path = write_store(tmp_path, changed_manifest, skip=("train-00001",))
    with pytest.raises(StoreIncomplete, match="train-00001"):
        load_prompt_latents(path, "mid_block@t199")
    assert len(load_prompt_latents(path, "mid_block@t199", split="test").prompts) == 1
    with pytest.raises(UnknownName, match="mid_block@t99"):
        load_prompt_latents(path, "mid_block@t99")
    with pytest.raises(UnknownName, match="val"):
        load_prompt_latents(path, "mid_block@t199", split="val")


def test_a_store_of_images_or_with_other_rows_is_refused(tmp_path, changed_manifest, manifest, fill):
    images = fill(tmp_path / "images", manifest)
    assert not is_prompt_store(images)
    with pytest.raises(ConfigError, match="images"):
        load_prompt_latents(images, "mid_block@t10")
    with pytest.raises(SchemaError, match="2 seeds"):
        load_prompt_latents(write_store(tmp_path / "swapped", changed_manifest, swap=True), "mid_block@t199")
