"""Photographs as they come: grey-scale, palette, CMYK, transparent, of odd sizes, with slashes in their keys."""

import io
import json

import pytest
import torch
from PIL import Image

from diffprobe.cli.main import main
from diffprobe.features.reader import FeatureStore
from diffprobe.shards.index import build_index
from diffprobe.shards.writer import write_shard

MODES = {
    "grey": ("L", "JPEG"),
    "colour": ("RGB", "JPEG"),
    "cmyk": ("CMYK", "JPEG"),
    "palette": ("P", "PNG"),
    "black and white": ("1", "PNG"),
    "grey with alpha": ("LA", "PNG"),
    "webp": ("RGB", "WEBP"),
}
SIZES = [(32, 32), (128, 171), (33, 47), (300, 41), (7, 5), (31, 500), (64, 32)]


def photograph(size, seed):
    """A smooth, coloured image that differs between seeds."""
    generator = torch.Generator().manual_seed(seed)
    small = (torch.rand(4, 4, 3, generator=generator) * 255).to(torch.uint8).numpy()
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image, name):
    mode, kind = MODES[name]
    buffer = io.BytesIO()
    options = {"quality": 95} if kind != "PNG" else {}
    image.convert(mode).save(buffer, format=kind, **options)
    return {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind], buffer.getvalue()


@pytest.fixture
def photographs(tmp_path):
    """A shard set of every mode in every size, and the same pictures as plain RGB files in another."""
    root, plain = tmp_path / "photographs", tmp_path / "plain"
    samples, copies = [], []
    for i, name in enumerate(MODES):
        for j, size in enumerate(SIZES):
            extension, data = encoded(photograph(size, 10 * i + j), name)
            key = f"{name.replace(' ', '_')}/deep/image_{j:04d}"
            record = json.dumps({"label": i, "class_name": name}).encode()
            samples.append((key, {extension: data, "cls": str(i).encode(), "json": record}))
            buffer = io.BytesIO()
            image = Image.open(io.BytesIO(data))
            if image.mode == "LA":
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image.convert("RGB").save(buffer, format="PNG")
            copies.append((key, {"png": buffer.getvalue(), "json": record}))
    for folder, content in ((root, samples), (plain, copies)):
        folder.mkdir()
        write_shard(folder / "train-0000.tar", content[::2])
        write_shard(folder / "test-0000.tar", content[1::2])
        build_index(folder, name=folder.name, licence="none")
    return root, plain


@pytest.mark.slow
def test_photographs_of_all_kinds_go_through_the_command(photographs, tiny_sd, tmp_path, capsys):
    tables = []
    for root in photographs:
        settings = [
            f"backbone.path={tiny_sd}",
            "backbone.device=cpu",
            f"data.path={root}",
            "data.val_split=test",
            "data.batch_size=16",
            "features.taps=[mid_block]",
            "features.timesteps=[50]",
            "features.condition=template",
            "features.prompt='a photo of a {class_name}'",
            f"features.store={tmp_path / 'stores'}",
            f"features.latent_cache={tmp_path / 'latents'}",
        ]
        assert main(["extract", *settings, "--quiet"]) == 0, capsys.readouterr().err
        store = capsys.readouterr().out.strip()
        assert main(["store", "verify", store]) == 0
        capsys.readouterr()
        tables.append([FeatureStore.open(store).load(split) for split in ("train", "test")])
    n = 0
    for found, expected in zip(*tables, strict=True):
        n += len(found)
        assert found.keys == expected.keys and all(key.count("/") == 2 for key in found.keys)
        assert torch.equal(found.label, expected.label)
        assert found.label.tolist() == [list(MODES).index(key.split("/")[0].replace("_", " ")) for key in found.keys]
        (cell,) = found.features
        torch.testing.assert_close(found.features[cell], expected.features[cell], atol=1e-5, rtol=0)
        assert len(found.features[cell].unique(dim=0)) == len(found)  # no two images have equal features
    assert n == len(MODES) * len(SIZES)
