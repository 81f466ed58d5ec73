"""The files of a tokenizer: which ones count, and loading from exactly those.

transformers takes settings from more files than these and lets `tokenizer_config.json` name others. A tokenizer is
loaded from a private folder with the files that are digested, without the keys that lead elsewhere.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from diffprobe.backbones.library_logging import quiet_libraries
from diffprobe.backbones.part_config import SAVE_AGAIN, refuse_foreign_code
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.core.foreign import naming, require_regular_file
from diffprobe.core.json_file import read_json_object

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "vocab.txt",
)
"""Files that fix the tokens of a text."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "vocab.txt")
_ELSEWHERE = (
    "tokenizer_file", "vocab_file", "merges_file", "special_tokens_map_file", "added_tokens_file", "chat_template",
    "fast_tokenizer_files", "name_or_path", "_name_or_path", "gguf_file", "trust_remote_code", "is_local",
    "local_files_only",
)  # fmt: skip
"""Keys of tokenizer_config.json that name other files or a way of loading; they are left out."""
_CONTENT = ("vocab", "merges", "tokenizer_object", "init_inputs")
"""Keys that would replace the vocabulary files."""
_MAX_BYTES = 64 * 2**20
"""Largest file of a tokenizer, in bytes; T5's has 2 MB, that of a large multilingual one 34 MB."""
_MAX_EXTRA = 10_000
"""Most extra tokens that a T5 tokenizer may ask for; it has 100."""


def require_vocabulary(folder: Path, tokenizer: str = "tokenizer") -> None:
    """Check that a pipeline folder has the vocabulary of its tokenizer; transformers would go on with an empty one.

    Raises: WeightsMissing.
    """
    if not any((folder / tokenizer / name).is_file() for name in _VOCABULARIES):
        raise WeightsMissing(
            f"checkpoint '{folder}' has no vocabulary ({tokenizer}/tokenizer.json or {tokenizer}/vocab.json).",
            fix=SAVE_AGAIN,
        )


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """Load a tokenizer of a transformers class from the files in `TOKENIZER_FILES` alone.

    Args:
        kind: the class.
        folder: the tokenizer's folder.
    Raises: WeightsMismatch for files that cannot be read, that name code of their own, or that do not fit together.
    """
    with tempfile.TemporaryDirectory() as name:
        private = Path(name)
        for file in TOKENIZER_FILES:
            source = folder / file
            if source.exists():
                _copy(source, private / file)
        with naming(folder, "a tokenizer that can be read"), quiet_libraries():
            words = kind.from_pretrained(private, local_files_only=True, trust_remote_code=False)
            words.name_or_path = str(folder)
    length = words.model_max_length
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise WeightsMismatch(
            f"'{folder / 'tokenizer_config.json'}': model_max_length is {str(length)[:80]}.",
            "allowed: a whole number of at least 1",
        )
    return words


def _copy(source: Path, target: Path) -> None:
    """Copy one file after checking it. Raises: WeightsMismatch."""
    if (size := require_regular_file(source, error=WeightsMismatch)) > _MAX_BYTES:
        raise WeightsMismatch(f"'{source}' has {size:,} bytes; allowed: {_MAX_BYTES:,}.")
    if source.suffix != ".json":
        shutil.copyfile(source, target)
        return
    content = read_json_object(source, error=WeightsMismatch, max_bytes=_MAX_BYTES)
    if source.name == "tokenizer_config.json":
        _check_settings(content, source)
        kept = {key: value for key, value in content.items() if key not in _ELSEWHERE}
        target.write_text(json.dumps(kept), encoding="utf-8")
    else:
        shutil.copyfile(source, target)


def _check_settings(config: dict[str, Any], path: Path) -> None:
    refuse_foreign_code(config, path)
    found = [key for key in _CONTENT if config.get(key)]
    if found:
        raise WeightsMismatch(f"'{path}' has {', '.join(found)} in place of the vocabulary files.")
    extra = config.get("extra_ids", 0)
    if not isinstance(extra, int) or not 0 <= extra <= _MAX_EXTRA:
        raise WeightsMismatch(f"'{path}': extra_ids is {str(extra)[:80]}.", f"allowed: 0..{_MAX_EXTRA:,}")
