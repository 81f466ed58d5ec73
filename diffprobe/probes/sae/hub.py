"""Autoencoders on the Hugging Face hub: writing the folder with its model card, upload and download."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffprobe.config.parse import to_tree
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.serialization import SETTINGS, TENSORS

CARD = """---
library_name: diffprobe
tags:
- sparse-autoencoder
- interpretability
- diffusion
{licence}---
# Sparse autoencoder `{variant}`: {n_latents:,} latents of {d_in:,} features

Trained with diffprobe on the features of the cell `{cell}`{backbone}.

```python
from diffprobe.probes.sae.hub import from_hub

sae = from_hub("{repo_id}")
x_hat, code = sae(features)  # features: [batch, {d_in}], in the unit of the backbone; the scale is in the weights
```

| setting | value |
|---|---|
{settings}
{metrics}"""


def write_hub_folder(
    sae: KSAE,
    folder: Path | str,
    *,
    repo_id: str,
    cell: str | None = None,
    backbone: str | None = None,
    licence: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Path:
    """Write the folder of an upload: weights, settings and model card.

    Args:
        repo_id: "user/name", for the card's example.
        cell, backbone: origin of the features.
        licence: licence identifier of the hub for the weights; omitted from the card if None.
        metrics: metric name -> value on held-out features.
    """
    folder = sae.save_pretrained(folder, cell=cell)
    settings = {"variant": sae.variant, "d_in": sae.d_in, **to_tree(sae.config)}
    measured = ""
    if metrics:
        measured = "\n" + _table(
            "measured on held-out features", {key: f"{value:.4g}" for key, value in metrics.items()}
        )
    card = CARD.format(
        licence=f"license: {licence}\n" if licence else "",
        variant=sae.variant,
        n_latents=sae.n_latents,
        d_in=sae.d_in,
        cell=cell or "not recorded",
        backbone=f" of `{backbone}`" if backbone else "",
        repo_id=repo_id,
        settings="\n".join(f"| {key} | {value} |" for key, value in settings.items()),
        metrics=measured,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def push_to_hub(
    sae: KSAE, repo_id: str, *, private: bool = False, message: str = "Upload a sparse autoencoder", **card: Any
) -> str:
    """Upload an autoencoder with its model card.

    Args:
        card: further arguments of `write_hub_folder`.

    Returns: the URL of the commit. `huggingface_hub` provides the token.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        write_hub_folder(sae, folder, repo_id=repo_id, **card)
        api = HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message))


def from_hub(repo_id: str, *, revision: str | None = None) -> KSAE:
    """Load an autoencoder from the hub or its local cache.

    Args:
        revision: branch, tag or commit; only a commit identifies the weights uniquely.

    Raises: SchemaError, WeightsMismatch; the errors of `huggingface_hub`.
    """
    from huggingface_hub import snapshot_download

    return KSAE.from_pretrained(snapshot_download(repo_id, revision=revision, allow_patterns=[SETTINGS, TENSORS]))


def _table(title: str, rows: Mapping[str, str]) -> str:
    return f"| {title} | value |\n|---|---|\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items())
