"""What the pages of latents and images hold, as JSON: records are validated and packed into short lists.

The order of each list is stated in docs/developers/explorer.md and read by the scripts in `page/`.
"""

import base64
from array import array
from collections.abc import Sequence

from diffprobe.core.errors import ConfigError
from diffprobe.report.explorer.records import (
    ActivationMap,
    ActiveLatent,
    Bars,
    Column,
    ExplorerFacts,
    ImagePage,
    LatentMatch,
    LatentPage,
    Name,
    Neighbour,
    TextColumn,
    TopImage,
)
from diffprobe.report.explorer.script_file import Json, floats_base64, int32_base64, rounded


def facts_data(facts: ExplorerFacts) -> dict[str, Json]:
    """Return the facts of a run. Raises: ConfigError for a run without latents or a negative number of images."""
    if facts.n_latents < 1 or facts.n_images < 0:
        raise ConfigError(
            f"the explorer of '{facts.run}' has {facts.n_latents} latents and {facts.n_images} images.",
            "allowed: at least one latent, and no negative number of images",
        )
    return {
        "run": facts.run, "experiment": facts.experiment, "model": facts.model, "data": facts.data,
        "cells": list(facts.cells), "nLatents": facts.n_latents, "k": facts.k, "nImages": facts.n_images,
        "notes": list(facts.notes),
    }  # fmt: skip


def columns_data(columns: Sequence[Column], n_latents: int, texts: Sequence[TextColumn] = ()) -> list[Json]:
    """Return the columns of numbers of the table.

    Args:
        columns: the numbers.
        n_latents: number of latents.
        texts: the columns of texts, whose keys differ from those of the numbers.

    Raises: ConfigError for two columns of one key, a number of values other than that of latents, a p outside [0, 1];
        NonFinite.
    """
    keys = [*(column.key for column in columns), *(text.key for text in texts)]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ConfigError(f"two columns of the explorer have the key '{twice[0]}'.", f"keys: {', '.join(keys)}")
    return [_column(column, n_latents) for column in columns]


def texts_data(texts: Sequence[TextColumn], n_latents: int) -> list[Json]:
    """Return the columns of texts: the different texts, sorted, and the number of that of each latent, -1 for none.

    Raises: ConfigError for a number of texts other than that of latents.
    """
    return [_texts(column, n_latents) for column in texts]


def _texts(column: TextColumn, n_latents: int) -> dict[str, Json]:
    if len(column.values) != n_latents:
        raise ConfigError(
            f"column '{column.key}' of the explorer has {len(column.values)} texts for {n_latents} latents."
        )
    values = sorted(set(column.values) - {""})
    number = {"": -1, **{text: i for i, text in enumerate(values)}}
    return {
        "key": column.key, "title": column.title, "help": column.help, "beside": column.beside, "values": values,
        "numbers": int32_base64(array("i", [number[text] for text in column.values])),
    }  # fmt: skip


def _column(column: Column, n_latents: int) -> dict[str, Json]:
    where = f"column '{column.key}'"
    if len(column.values) != n_latents:
        raise ConfigError(f"{where} of the explorer has {len(column.values)} values for {n_latents} latents.")
    double = column.kind in ("count", "p")
    values = floats_base64(column.values, double=double, where=where)
    if column.kind == "p":
        wrong = [(i, p) for i, p in enumerate(column.values) if p is not None and not 0 <= p <= 1]
        if wrong:
            raise ConfigError(f"{where}: the p of latent {wrong[0][0]} is {wrong[0][1]}.", "allowed: from 0 to 1")
    return {
        "key": column.key, "title": column.title, "help": column.help, "kind": column.kind,
        "controls": [[name, rounded(value, f"{where}, control '{name}'")] for name, value in column.controls],
        "double": double, "values": values,
    }  # fmt: skip


def latent_data(page: LatentPage, facts: ExplorerFacts) -> dict[str, Json]:
    """Return the page of a latent.

    Raises: ConfigError for an image or a latent that does not exist or a map of the wrong size, with the latent;
        NonFinite.
    """
    where = f"latent {page.latent}"
    return {
        "names": [_name(name, where) for name in page.names],
        "top": [_top(top, facts.n_images, f"{where}, top image {i}") for i, top in enumerate(page.top)],
        "histogram": list(page.histogram),
        "histogramEnd": rounded(page.histogram_end, f"{where}, end of the histogram"),
        "groups": [_bars(bars, where) for bars in page.groups],
        "curve": [
            [
                point.timestep,
                rounded(point.frequency, f"{where}, frequency at timestep {point.timestep}"),
                rounded(point.mean_activation, f"{where}, mean activation at timestep {point.timestep}"),
            ]
            for point in page.curve
        ],
        "neighbours": [_neighbour(other, facts.n_latents, where) for other in page.neighbours],
        "recurrence": [_neighbour(other, None, where) for other in page.recurrence],
    }


def _name(name: Name, where: str) -> list[Json]:
    what = f"{where}, name '{name.text}'"
    auroc = None if name.auroc is None else rounded(name.auroc, f"{what}: AUROC")
    q = None if name.q is None else rounded(name.q, f"{what}: q")
    return [name.text, rounded(name.score, f"{what}: score"), auroc, q, int(name.shown)]


def _top(top: TopImage, n_images: int, where: str) -> list[Json]:
    if not 0 <= top.image < n_images:
        raise ConfigError(f"{where}: image {top.image} does not exist.", f"allowed: 0 to {n_images - 1}")
    return [top.image, rounded(top.activation, f"{where}: activation"), *_map(top.map, where)]


def _bars(bars: Bars, where: str) -> dict[str, Json]:
    rows: list[Json] = []
    for bar in bars.bars:
        if not 0 <= bar.n_active <= bar.n_images:
            raise ConfigError(
                f"{where}, {bars.group} '{bar.value}': active on {bar.n_active} of {bar.n_images} images."
            )
        mean = rounded(bar.mean_activation, f"{where}, {bars.group} '{bar.value}': mean activation")
        rows.append([bar.value, bar.n_images, bar.n_active, mean])
    return {"group": bars.group, "bars": rows}


def _neighbour(other: Neighbour, n_latents: int | None, where: str) -> list[Json]:
    if other.latent < 0 or (n_latents is not None and other.latent >= n_latents):
        raise ConfigError(f"{where}: its neighbour {other.latent} does not exist.", f"latents: {n_latents}")
    return [other.latent, rounded(other.cosine, f"{where}, cosine with latent {other.latent}"), other.run]


def image_data(image: ImagePage, facts: ExplorerFacts) -> dict[str, Json]:
    """Return the page of an image. Raises: ConfigError for a latent that does not exist or a wrong map; NonFinite."""
    where = f"image '{image.key}'"
    return {
        "key": image.key, "caption": image.caption, "label": image.label,
        "attributes": [[name, value] for name, value in image.attributes],
        "picture": image.thumbnail is not None,
        "latents": [_active(active, facts.n_latents, where) for active in image.latents],
    }  # fmt: skip


def _active(active: ActiveLatent, n_latents: int, where: str) -> list[Json]:
    if not 0 <= active.latent < n_latents:
        raise ConfigError(f"{where}: latent {active.latent} does not exist.", f"allowed: 0 to {n_latents - 1}")
    where = f"{where}, latent {active.latent}"
    return [active.latent, rounded(active.activation, f"{where}: activation"), *_map(active.map, where)]


def _map(places: ActivationMap | None, where: str) -> list[Json]:
    if places is None:
        return []
    if min(places.height, places.width) < 1 or len(places.values) != places.height * places.width:
        raise ConfigError(
            f"{where}: the map of {places.height} x {places.width} places has {len(places.values)} values."
        )
    return [places.height, places.width, base64.b64encode(places.values).decode("ascii")]


def matches_data(matches: Sequence[LatentMatch], n_latents: int, n_others: int) -> list[Json]:
    """Return the matches of run 0 and run 1.

    Raises: ConfigError for a latent that does not exist, one that is matched twice, or a similarity outside [-1, 1];
        NonFinite.
    """
    seen: set[int] = set()
    rows: list[Json] = []
    for match in matches:
        if not (0 <= match.latent < n_latents and 0 <= match.other < n_others):
            raise ConfigError(
                f"latent {match.latent} is matched with {match.other}, and one of them does not exist.",
                f"latents: {n_latents} in the first run, {n_others} in the second",
            )
        if match.latent in seen:
            raise ConfigError(f"latent {match.latent} is matched twice.")
        seen.add(match.latent)
        similarity = rounded(match.similarity, f"similarity of latents {match.latent} and {match.other}")
        if abs(similarity) > 1:
            raise ConfigError(f"latents {match.latent} and {match.other} have the similarity {similarity}.")
        rows.append([match.latent, match.other, similarity])
    return rows
