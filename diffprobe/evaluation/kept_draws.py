"""Keep the finished latents of steered images on disk, so that a repeated call continues after them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import SchemaError

Draws = dict[float, Tensor]
"""Strength -> latents (image channels height width)."""

FOLDER = "steered"
"""Folder of the files, below that of stores."""


class KeptDraws:
    """The draws of one model, with the same prompts and noise for every edit.

    There is one safetensors file per edit and list of strengths, under a digest of these and of `identity`; a file is
    complete or absent.

    Args:
        folder: of the files; made when the first one is written.
        identity: everything else that fixes a draw, as JSON values: model, cell, prompts, keys, steps, guidance, seed.
    """

    def __init__(self, folder: Path, identity: Mapping[str, object]) -> None:
        self._folder, self._identity = folder, dict(identity)

    def path(self, edit: str, strengths: Sequence[float]) -> Path:
        """Return the file of an edit, given by its identity."""
        digest = digest_json({**self._identity, "vector": edit, "strengths": [float(one) for one in strengths]})
        return self._folder / f"{digest[:24]}.safetensors"

    def get(self, edit: str, strengths: Sequence[float], draw: Callable[[], Draws]) -> Draws:
        """Return the draws of an edit: those of its file, or new ones, which are written.

        Args:
            edit: its identity (`diffprobe.scoring.edits.base.Edit`).

        Raises: SchemaError for a damaged file; what `draw` raises.
        """
        from safetensors.torch import load_file, save_file

        path, names = self.path(edit, strengths), [f"{number:04d}" for number in range(len(strengths))]
        if path.is_file():
            try:
                found = load_file(path)
            except SafetensorError as error:
                raise SchemaError(f"'{path}' is damaged: {error}.", fix="delete it; it is drawn again") from error
            if sorted(found) != names:
                raise SchemaError(
                    f"'{path}' has the tensors {', '.join(sorted(found))}, not one per strength.",
                    fix="delete it; it is drawn again",
                )
            return {strength: found[name] for strength, name in zip(strengths, names, strict=True)}
        drawn = draw()
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            save_file({name: drawn[one].contiguous() for name, one in zip(names, strengths, strict=True)}, temporary)
        return drawn
