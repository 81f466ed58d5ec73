"""The frozen text encoder of a pipeline as a map from captions to vectors, and the digest that names it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.locate import locate
from diffprobe.backbones.part_config import CONFIG, read_part_config
from diffprobe.backbones.text_encoders import ClipTextEncoder, load_clip_text
from diffprobe.backbones.weight_files import require_files, weight_files
from diffprobe.core.digest import digest_file_once, digest_json
from diffprobe.core.errors import ConfigError

_PARTS = ("text_encoder", "tokenizer")


class CaptionEncoder:
    """Captions as vectors: the mean over tokens of the last states of a CLIP text encoder.

    It is not an nn.Module, so that no probe, DDP wrapper or checkpoint holds the text encoder.

    Attributes:
        name: name or folder of the pipeline.
        digest: digest of the files of text encoder and tokenizer.
        width: numbers per caption.
    """

    def __init__(self, name: str, digest: str, text: ClipTextEncoder) -> None:
        self.name, self.digest, self._text = name, digest, text
        encoder: Any = text.encoder  # nn.Module does not declare the config
        self.width = int(encoder.config.hidden_size)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> Float[Tensor, "caption width"]:
        """Return the vectors of captions, float32 on the CPU, encoded on a device."""
        if not captions:
            return torch.zeros(0, self.width)
        self._text.encoder.to(device)
        with torch.autocast(torch.device(device).type, enabled=False):  # the vectors do not follow trainer.precision
            return self._text.mean_states(list(captions)).float().cpu()


def load_caption_encoder(path: str, *, revision: str | None = None) -> CaptionEncoder:
    """Load the CLIP text encoder `text_encoder` of a pipeline.

    Args:
        path: folder in diffusers format, hub id, or the name of a shipped checkpoint.
        revision: commit, tag or branch of a hub id.

    Raises: ConfigError for a pipeline without a CLIP text encoder; WeightsMissing, WeightsMismatch.
    """
    folder = locate(path, revision=revision).folder
    own = None if folder is None else folder / _PARTS[0]
    if folder is None or own is None or not (own / CONFIG).is_file() or not _is_clip(own):
        raise ConfigError(
            f"'{path}' has no CLIP text encoder, which reads the captions.",
            fix="probe.params.text_encoder=FOLDER of a StableDiffusionPipeline, or emoji-sd",
        )
    require_files(own)
    return CaptionEncoder(path, _digest(folder), load_clip_text(folder, dtype=torch.float32))


def _is_clip(folder: Path) -> bool:
    names = read_part_config(folder / CONFIG).get("architectures") or []
    return any(str(name).startswith("CLIPText") for name in names)


def _digest(folder: Path) -> str:
    words = [path for path in sorted((folder / _PARTS[1]).iterdir()) if path.is_file()]
    files = [folder / _PARTS[0] / CONFIG, *weight_files(folder / _PARTS[0]), *words]
    return digest_json({str(path.relative_to(folder)): digest_file_once(path) for path in files})
