"""Zero-shot classes are those of transformers' own CLIPModel, whatever the batch and the order."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffprobe.backbones.transformers_model import make_text_config
from diffprobe.backbones.zero_shot import load_zero_shot
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing

CLASSES = ["red cat", "blue dog", "green circle", "a square of light"]
TEMPLATES = ["a photo of a {class_name}", "noto emoji, {class_name}"]


def images(n: int = 7) -> list[Image.Image]:
    """Noise of several sizes and colours, so that resizing and cropping matter."""
    noise = torch.Generator().manual_seed(1)
    return [
        Image.fromarray(
            (torch.rand(17 + 3 * i, 40 - 2 * i, 3, generator=noise) * torch.rand(3, generator=noise) * 255)
            .to(torch.uint8)
            .numpy()
        )
        for i in range(n)
    ]


@torch.no_grad()
def reference(folder: Path, template: str) -> torch.Tensor:
    """Return `logits_per_image` of transformers' own classes, loaded by transformers."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    pixels = torch.cat(
        [CLIPImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values for image in images()]
    )
    texts = tokenizer([template.format(class_name=name) for name in CLASSES], padding=True, return_tensors="pt")
    return model(**texts, pixel_values=pixels).logits_per_image / model.logit_scale.exp()


def test_the_class_is_that_of_a_plain_clip_model(tiny_clip):
    found = load_zero_shot(str(tiny_clip), CLASSES, device="cpu")
    expected = reference(tiny_clip, "a photo of a {class_name}")
    torch.testing.assert_close(found.similarities(images()), expected, atol=1e-5, rtol=0)
    assert found(images()).equal(expected.argmax(dim=1))
    assert found.source == f"zero_shot:{tiny_clip}"


def test_several_templates_are_averaged_as_unit_vectors(tiny_clip):
    both = load_zero_shot(str(tiny_clip), CLASSES, templates=TEMPLATES, device="cpu").similarities(images())
    single = [reference(tiny_clip, template) for template in TEMPLATES]
    ratio = both / sum(single)  # the mean direction is divided by its own length, one number per class
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), atol=1e-3, rtol=1e-3)
    assert not torch.allclose(both, single[0], atol=1e-3)


def test_neither_batch_nor_order_changes_a_class(tiny_clip):
    found = load_zero_shot(str(tiny_clip), CLASSES, device="cpu")
    whole, given = found.similarities(images()), images()
    alone = torch.cat([found.similarities([image]) for image in given])
    torch.testing.assert_close(alone, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.similarities(given[::-1]).flip(0), whole, atol=1e-5, rtol=0)
    assert found([]).shape == (0,)


def test_the_processor_of_transformers_5_is_the_same(tiny_clip, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_clip, copy)
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").unlink()
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    first, second = (load_zero_shot(str(path), CLASSES, device="cpu") for path in (tiny_clip, copy))
    assert first.similarities(images()).equal(second.similarities(images()))
    assert first.digest != second.digest


def test_settings_that_no_class_declares_are_not_taken_from_the_nested_configs(tiny_clip, tmp_path):
    from transformers import CLIPConfig

    config = json.loads((tiny_clip / "config.json").read_text())
    for part in ("text_config", "vision_config"):
        config[part]["somebodys_kernel"] = "somebody/kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = make_text_config(CLIPConfig, tmp_path / "config.json")
    assert made.vision_config.image_size == config["vision_config"]["image_size"]
    assert not hasattr(made.text_config, "somebodys_kernel") and not hasattr(made.vision_config, "somebodys_kernel")


@pytest.mark.parametrize("templates", [[], ["a photo"], ["{class_name} and {class_name}"]])
def test_templates_name_the_class_once(tiny_clip, templates):
    with pytest.raises(ConfigError, match=r"\{class_name\}"):
        load_zero_shot(str(tiny_clip), CLASSES, templates=templates)


def test_what_is_not_a_clip_model_is_named(tiny_clip, tiny_teacher, tmp_path):
    with pytest.raises(ConfigError, match="there are 1 classes"):
        load_zero_shot(str(tiny_clip), CLASSES[:1])
    with pytest.raises(ConfigError, match="type bert"):
        load_zero_shot(str(tiny_teacher), CLASSES)
    with pytest.raises(WeightsMissing, match=r"no config\.json"):
        load_zero_shot(str(tmp_path), CLASSES)
    with pytest.raises(WeightsMissing, match="'nowhere'"):
        load_zero_shot("nowhere", CLASSES)
    with pytest.raises(WeightsMissing, match="'nobody/clip' at v1 .*\n.*\n.*hf download nobody/clip --revision v1"):
        load_zero_shot("nobody/clip", CLASSES, revision="v1")
    with pytest.raises(ConfigError, match="revision=v1"):
        load_zero_shot(str(tiny_clip), CLASSES, revision="v1")


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("preprocessor_config.json", None, WeightsMissing),
        ("preprocessor_config.json", {"auto_map": {"AutoProcessor": "code.Mine"}}, WeightsMismatch),
        ("model.safetensors", None, WeightsMissing),
        ("config.json", {"auto_map": {"AutoModel": "code.Mine"}}, WeightsMismatch),
    ],
)
def test_missing_files_and_foreign_code_are_refused(tiny_clip, tmp_path, file, change, error):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_clip, copy)
    if change is None:
        (copy / file).unlink()
    else:
        (copy / file).write_text(json.dumps(json.loads((copy / file).read_text()) | change))
    with pytest.raises(error):
        load_zero_shot(str(copy), CLASSES)
