"""Zero-shot classification with a CLIP model: the class whose prompts are nearest to the image.

Radford et al. 2021 (2103.00020), section 3.1.2; several templates are averaged as in its section 3.1.4.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from diffprobe.backbones.device import choose_device, exact
from diffprobe.backbones.hub import fetch_model, is_hub_id
from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.part_config import CONFIG, read_part_config, refuse_foreign_code
from diffprobe.backbones.text_encoders import TextEncoder
from diffprobe.backbones.tokenizer_files import TOKENIZER_FILES, load_tokenizer, require_vocabulary
from diffprobe.backbones.transformers_model import load_transformer
from diffprobe.backbones.weight_files import require_files, weight_files
from diffprobe.core.digest import digest_file_once, digest_json
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming
from diffprobe.core.json_file import expect, read_json_object

PLACE = "{class_name}"
"""Where a template has the name of the class."""
TEMPLATE = f"a photo of a {PLACE}"
"""The template of section 3.1.2, without its full stop."""
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files with the settings of the image processor; the second one, of transformers 5, has them under `_NESTED`."""
_NESTED = "image_processor"
_PROCESSING = (
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize",
    "image_mean", "image_std", "do_convert_rgb",
)  # fmt: skip
"""Settings of the image processor that are taken from its file."""
_CHUNK = 64
"""Prompts that are encoded at once."""


class ZeroShotClassifier:
    """A frozen CLIP model that names the class of an image.

    It is not an nn.Module, so that nothing registers it. Made with `load_zero_shot`.

    Attributes:
        name: folder or hub id of the model.
        digest: digest of the files of model, tokenizer and image processor.
        classes: names of the classes.
        templates: texts with `{class_name}`; the embeddings of a class are averaged over them.
    """

    def __init__(
        self,
        name: str,
        digest: str,
        *,
        model: Any,
        tokenizer: Any,
        processor: Any,
        classes: Sequence[str],
        templates: Sequence[str] = (TEMPLATE,),
        device: str | torch.device = "auto",
    ) -> None:
        self.name, self.digest = name, digest
        self.classes, self.templates = _checked_classes(classes), _checked_templates(templates)
        self.device = choose_device(device)
        self._model, self._processor = model.eval().requires_grad_(False).to(self.device), processor
        self._text = TextEncoder(tokenizer, model.text_model, int(model.config.text_config.max_position_embeddings))
        self._directions = self._encode_classes()

    @property
    def source(self) -> str:
        """The origin of a predicted class, as tables and results name it."""
        return f"zero_shot:{self.name}"

    def similarities(self, images: Sequence[Image.Image]) -> Float[Tensor, "image class"]:
        """Return the cosine of each image with each class, float32 on the CPU.

        The images have any size; the model's own processor resizes, crops and normalises them.
        """
        if not images:
            return torch.zeros(0, len(self.classes))
        with exact(self.device, "float32"):
            found = self._embedded(images) @ self._directions.T
        return found.float().cpu()

    def embed(self, images: Sequence[Image.Image]) -> Float[Tensor, "image width"]:
        """Return the embedding of each image, of length 1, float32 on the CPU."""
        return self._embedded(images).float().cpu()

    @torch.no_grad()
    def _embedded(self, images: Sequence[Image.Image]) -> Float[Tensor, "image width"]:
        with naming(self.name, "an image processor that fits the model"), quiet_libraries():
            pixels = self._processor(images=list(images), return_tensors="pt").pixel_values.to(self.device)
            with exact(self.device, "float32"):
                pooled = self._model.vision_model(pixel_values=pixels).pooler_output
                return F.normalize(self._model.visual_projection(pooled), dim=-1)

    def __call__(self, images: Sequence[Image.Image]) -> Int[Tensor, " image"]:
        """Return the index of the nearest class of each image; the first of equal ones."""
        return self.similarities(images).argmax(dim=1)

    @torch.no_grad()
    def _encode_classes(self) -> Float[Tensor, "class width"]:
        whole = torch.zeros(len(self.classes), 1, device=self.device)
        for template in self.templates:
            prompts = [template.replace(PLACE, name) for name in self.classes]
            parts = []
            for start in range(0, len(prompts), _CHUNK):
                tokens = self._text.tokens(prompts[start : start + _CHUNK], padding="longest")
                with exact(self.device, "float32"):
                    states = self._model.text_model(tokens.input_ids, attention_mask=tokens.attention_mask)
                    parts.append(F.normalize(self._model.text_projection(states.pooler_output), dim=-1))
            whole = whole + torch.cat(parts)
        return F.normalize(whole, dim=-1)


def load_zero_shot(
    path: str,
    classes: Sequence[str],
    *,
    templates: Sequence[str] = (TEMPLATE,),
    revision: str | None = None,
    device: str | torch.device = "auto",
) -> ZeroShotClassifier:
    """Load a CLIP model in transformers' format from safetensors and JSON files.

    Args:
        path: folder with config.json, safetensors weights, tokenizer and preprocessor_config.json, or a hub id.
        classes: names of at least two classes.
        templates: texts with `{class_name}`.
        revision: commit, tag or branch of a hub id.
        device: torch device; `auto` takes the accelerator if there is one.
    Raises: WeightsMissing, WeightsMismatch; ConfigError for another model than CLIP, for fewer than two classes, and
        for a template without `{class_name}`.
    """
    _checked_classes(classes)
    _checked_templates(templates)
    folder = _locate(path, revision)
    if (kind := read_part_config(folder / CONFIG).get("model_type")) != "clip":
        raise ConfigError(
            f"'{path}' is a model of type {str(kind)[:80]}; classes are predicted by CLIP models.",
            fix="--model FOLDER of a CLIPModel, or openai/clip-vit-base-patch32",
        )
    require_files(folder)
    if not any((folder / name).is_file() for name in _PROCESSORS):
        raise WeightsMissing(
            f"'{path}' has no {' or '.join(_PROCESSORS)}, which fixes how images are resized and normalised.",
            fix="CLIPProcessor.save_pretrained(FOLDER) beside the model",
        )
    require_vocabulary(folder, ".")
    from transformers import CLIPModel, CLIPTokenizer

    return ZeroShotClassifier(
        path,
        _digest(folder),
        model=load_transformer(CLIPModel, folder, dtype=torch.float32),
        tokenizer=load_tokenizer(CLIPTokenizer, folder),
        processor=_load_processor(folder),
        classes=classes,
        templates=templates,
        device=device,
    )


def _locate(path: str, revision: str | None) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision={revision}, but '{path}' is a folder.", fix="leave the revision out")
        if not (folder / CONFIG).is_file():
            raise WeightsMissing(
                f"'{path}' is not a model in transformers' format: it has no {CONFIG}.",
                fix="save one with CLIPModel.save_pretrained and CLIPProcessor.save_pretrained",
            )
        return folder
    if not is_hub_id(path):
        raise WeightsMissing(f"there is no folder '{path[:80]}', and it is not a hub id (OWNER/NAME).")
    return fetch_model(path, revision)


def _load_processor(folder: Path) -> Any:
    """Make the image processor of PIL images, which needs no torchvision and is the same on all machines."""
    import transformers

    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    kind: Any = getattr(transformers, name)  # the second one in transformers 4
    path = next(folder / name for name in _PROCESSORS if (folder / name).is_file())
    found = read_json_object(path, error=WeightsMismatch)
    refuse_foreign_code(found, path)
    if path.name == _PROCESSORS[1]:
        found = expect(found.get(_NESTED), dict, where=f"'{path}': {_NESTED}", error=WeightsMismatch)
    with naming(path, "the settings of a CLIP image processor"), quiet_libraries():
        return kind(**{key: found[key] for key in _PROCESSING if key in found})


def _digest(folder: Path) -> str:
    names = (CONFIG, *_PROCESSORS, *TOKENIZER_FILES)
    files = [*(folder / name for name in names if (folder / name).is_file()), *weight_files(folder)]
    return digest_json({path.name: digest_file_once(path) for path in files})


def _checked_classes(classes: Sequence[str]) -> tuple[str, ...]:
    if len(classes) < 2:
        raise ConfigError(f"there are {len(classes)} classes; a prediction needs at least 2.")
    return tuple(classes)


def _checked_templates(templates: Sequence[str]) -> tuple[str, ...]:
    bad = next((text for text in templates if text.count(PLACE) != 1), None)
    if bad is not None or not templates:
        raise ConfigError(
            f"the template '{bad or ''}' has no {PLACE}, or more than one.", fix=f"for example --template '{TEMPLATE}'"
        )
    return tuple(dict.fromkeys(templates))
