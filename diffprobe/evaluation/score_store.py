"""Errors of candidates on disk: a file per chunk of images, so that an interrupted run continues with the next one
and several processes share the work."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.base import Condition
from diffprobe.core.atomic_file import atomic_file, remove_unfinished
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import SchemaError
from diffprobe.core.safetensors_file import load_safetensors
from diffprobe.evaluation.score_candidates import Question
from diffprobe.probes.score.staged_errors import Stage, staged_errors
from diffprobe.scoring.denoising_error import Score

ERRORS = "errors"
"""Name of the tensor in a file, float64 [image, candidate, timestep]; NaN where not scored."""


def stored_errors(
    folder: Path,
    facts: Mapping[str, Any],
    score: Score,
    latents_of: Callable[[Int[Tensor, " row"]], Float[Tensor, "row c h w"]],
    keys: Sequence[str],
    conditions: Condition,
    question: Question,
    timesteps: Sequence[int],
    weights: Float[Tensor, " timestep"],
    stages: Sequence[Stage],
    *,
    chunk: int,
    process: tuple[int, int] = (0, 1),
    whole: bool = False,
    on_batch: Callable[[int], object] = lambda count: None,
) -> Float[Tensor, "sample n timestep"] | None:
    """Return the errors of a question, see `staged_errors`; chunks that are on disk are read.

    Chunks are the same in each run, so an interrupted run, and several processes, leave the same bytes as one that was
    not interrupted.

    Args:
        folder: gets a folder named by the digest of everything that errors depend on.
        facts: JSON values that fix the score: model, data, seed of the noise.
        latents_of: returns the latents of some of the question's images, by their positions.
        keys: of the question's images.
        conditions: encoded values of the question, one row each.
        chunk: images per file.
        process: number of this process and number of processes; it computes each so many-th chunk.
        whole: compute the chunks of the other processes too, where they are missing.
        on_batch: called with the number of images done.
    Returns: the errors, or None while chunks of other processes are missing.
    Raises: NonFinite; SchemaError for a file that is not of this run.
    """
    identity = {
        **facts, "keys": list(keys), "values": question.values, "candidates": question.candidates.tolist(),
        "timesteps": list(timesteps), "chunk": chunk, "stages": [[stage.n_timesteps, stage.kept] for stage in stages],
    }  # fmt: skip
    if stages:
        identity["weights"] = weights.tolist()  # they decide what is pruned
    place = folder / digest_json(identity)[:12]
    place.mkdir(parents=True, exist_ok=True)
    index, count = process
    if count == 1:
        remove_unfinished(place)
    pieces = torch.arange(len(keys)).split(chunk)
    paths = [place / f"{number:06d}.safetensors" for number in range(len(pieces))]
    for number, (rows, path) in enumerate(zip(pieces, paths, strict=True)):
        if (whole or number % count == index) and not path.exists():
            found = staged_errors(
                score, latents_of(rows), [keys[row] for row in rows.tolist()], conditions,
                question.candidates[rows].clamp_min(0), question.offered[rows], timesteps, weights, stages,
            )  # fmt: skip
            _write(path, found)
        on_batch(len(rows))
    if not all(path.exists() for path in paths):
        return None
    shape = (question.candidates.shape[1], len(timesteps))
    return torch.cat([_read(path, (len(rows), *shape)) for rows, path in zip(pieces, paths, strict=True)])


def _write(path: Path, errors: Float[Tensor, "sample n timestep"]) -> None:
    from safetensors.torch import save_file

    with atomic_file(path) as temporary:
        save_file({ERRORS: errors.contiguous()}, temporary)


def _read(path: Path, shape: tuple[int, int, int]) -> Float[Tensor, "sample n timestep"]:
    fix = f"remove '{path}' and run the same command again"
    stored = load_safetensors(path, fix=fix)
    errors = stored.get(ERRORS)
    if errors is None or tuple(errors.shape) != shape or errors.dtype != torch.float64:
        raise SchemaError(f"'{path}' has no float64 tensor '{ERRORS}' of shape {shape}.", fix=fix)
    return errors
