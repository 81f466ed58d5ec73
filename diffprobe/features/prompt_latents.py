"""Read a store of prompt latents as an array over prompts and seeds (`extract_prompts.py` writes such stores)."""

from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.features.cell_selection import choose_cell
from diffprobe.features.reader import FeatureStore
from diffprobe.shards.prompt_table import PROMPT_ID, SEED


class PromptLatents(NamedTuple):
    """One cell of a store of prompt latents, unpacked as `features, prompts, attributes`."""

    features: Float[Tensor, "prompt seed d"]
    """Float32; a map or tokens are flattened to one vector."""
    prompts: list[str]
    """Text of each prompt."""
    attributes: dict[str, list[str | None]]
    """Attribute name -> value of each prompt, None where it has none; `prompt_id` is one of them."""


def load_prompt_latents(store: FeatureStore | Path | str, cell: str, *, split: str | None = None) -> PromptLatents:
    """Return the features of one cell, in the order of the prompt file and of the seeds.

    Args:
        store: a store that `diffprobe extract` made from prompts, or its folder.
        cell: name of a cell, or a unique prefix of it: `mid_block@t199`.
        split: split of the prompts; None returns those of all splits, one split after the other.
    Raises: ConfigError for a store of images; UnknownName for a cell or split that the store does not have;
        StoreIncomplete while shards are missing; SchemaError for a store whose samples are not prompts x seeds.
    """
    store = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    if not is_prompt_store(store):
        raise ConfigError(
            f"feature store '{store.path}' has features of images; this reads features of prompts.",
            fix=f"FeatureStore.open('{store.path}').arrays('{cell}') reads it",
        )
    name = choose_cell(cell, store.cells)
    features, captions = [], []
    ids: dict[str, list[int]] = {attribute: [] for attribute in store.attributes}
    for part in store.splits if split is None else (split,):
        for table in store.iter_shards(part, [name]):
            features.append(table.features[name].float().flatten(1))
            captions += table.captions
            for attribute, known in ids.items():
                values = table.attributes.get(attribute)
                known += [-1] * len(table) if values is None else values.tolist()
    n_seeds = len(store.attributes[SEED])
    per_prompt = {attribute: known[::n_seeds] for attribute, known in ids.items() if attribute != SEED}
    expected_seeds = list(range(n_seeds)) * len(per_prompt[PROMPT_ID])
    repeated = [number for number in per_prompt[PROMPT_ID] for _ in range(n_seeds)]
    if ids[SEED] != expected_seeds or ids[PROMPT_ID] != repeated:
        raise SchemaError(
            f"feature store '{store.path}': its samples are not {n_seeds} seeds of each prompt in their order.",
            fix="extract the store again",
        )
    return PromptLatents(
        features=torch.cat(features).unflatten(0, (-1, n_seeds)),
        prompts=captions[::n_seeds],
        attributes={
            attribute: [None if i < 0 else store.attributes[attribute][i] for i in known]
            for attribute, known in per_prompt.items()
        },
    )


def is_prompt_store(store: FeatureStore) -> bool:
    """Return whether a store has features of prompts x seeds rather than of images."""
    return "sampling" in store.manifest.backbone and {PROMPT_ID, SEED} <= store.attributes.keys()
