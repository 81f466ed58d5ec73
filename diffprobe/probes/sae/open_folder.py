"""Open a saved autoencoder, whichever library wrote it: its format follows from the files in the folder."""

from pathlib import Path

from diffprobe.core.errors import DiffprobeError, SchemaError
from diffprobe.core.json_file import read_json_object
from diffprobe.probes.sae.base import KIND, KSAE
from diffprobe.probes.sae.convert import from_dictionary_learning, from_saelens
from diffprobe.probes.serialization import SETTINGS, kind_of

_FOREIGN = {
    ("cfg.json", "sae_weights.safetensors"): from_saelens,
    ("config.json", "ae.pt"): from_dictionary_learning,
}
"""Files of a format -> its reader."""


def is_autoencoder(folder: Path) -> bool:
    """Return whether a folder has the files of a saved autoencoder, of this library, SAELens or dictionary_learning."""
    if not folder.is_dir():
        return False
    if any(all((folder / name).is_file() for name in names) for names in _FOREIGN):
        return True
    try:
        return kind_of(folder).startswith(KIND)
    except DiffprobeError:
        return False


def open_autoencoder(folder: Path) -> tuple[KSAE, str | None]:
    """Load an autoencoder, and return it with its cell, None where the format has none.

    Raises: SchemaError for a folder of no known format; the errors of the readers.
    """
    if (folder / SETTINGS).is_file():
        sae = KSAE.from_pretrained(folder)
        cell: str | None = read_json_object(folder / SETTINGS)["settings"]["cell"]
        return sae, cell
    for names, read in _FOREIGN.items():
        if all((folder / name).is_file() for name in names):
            return read(folder), None
    raise SchemaError(
        f"'{folder}' has no autoencoder in a format that can be read.",
        f"needed: {SETTINGS}, or {', or '.join(' and '.join(names) for names in _FOREIGN)}",
    )
