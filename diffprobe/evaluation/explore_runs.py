"""The runs that the explorer shows: one autoencoder, its features, and the same autoencoder with other seeds."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffprobe.config.parse import parse
from diffprobe.config.schema import RunConfig
from diffprobe.config.views import ViewsConfig
from diffprobe.core.errors import ConfigError, DiffprobeError, StoreIncomplete, unknown
from diffprobe.core.result import BACKBONE, MEMBERS, RESULT_FILE, read_result
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.evaluation.load_sae_run import TrainedRun, open_runs
from diffprobe.evaluation.page_features import PageFeatures, open_features, with_data_path
from diffprobe.evaluation.probe_runs import ProbeRun
from diffprobe.features.batch import FeatureTable
from diffprobe.features.manifest import Manifest
from diffprobe.features.writer import MANIFEST
from diffprobe.probes.sae.base import KSAE
from diffprobe.runs.massive_notes import channels_key, require_same_channels


@dataclass(frozen=True, kw_only=True)
class OtherSeed:
    """The same autoencoder, trained with another seed."""

    name: str
    """Name on the pages."""
    sae: KSAE


@dataclass(frozen=True, kw_only=True)
class ExploredRun:
    """One autoencoder with its features."""

    trained: TrainedRun
    sae: KSAE
    cells: tuple[str, ...]
    """Cells that it reads, by timestep."""
    split: str
    features: PageFeatures
    seeds: tuple[OtherSeed, ...]
    temporary_store: str = ""
    """Folder of the stores that were made for a run on live features; "" for other runs."""

    def tables(self) -> Iterator[FeatureTable]:
        """Yield the features of the split, one shard at a time."""
        return self.features.iter_tables(self.split)

    @property
    def reads_same_features(self) -> tuple[object, ...]:
        """What autoencoders have in common whose decoder rows can be compared: cells, backbone, treated channels."""
        result = self.trained.result
        return (self.cells, self.sae.d_in, result.artifacts.get(BACKBONE), channels_key(result))


def open_explored(
    path: str, config: ExploreConfig, *, seeds: Sequence[str] = (), temporary_store: str = ""
) -> ExploredRun:  # fmt: skip
    """Open a run, the features of the split, and the runs with other seeds.

    A grid whose members differ only in the seed is shown by its first member, with the others as other seeds.

    Args:
        path: folder of a run, of a member of a grid, or of such a grid.
        config: settings.
        seeds: folders of further runs with other seeds.
        temporary_store: of a run on live features, where its stores are already; "" to make them.

    Raises: ConfigError for a folder that is not a run of an autoencoder, for a grid of different autoencoders, and for
        other seeds that read other cells; SchemaError for another store than that of the run; StoreIncomplete,
        StoreMismatch without a store; WeightsMissing.
    """
    from diffprobe.backbones.device import choose_device

    members = open_runs(path)
    chosen, *others = members
    differing = [one for one in others if _without_seed(one.result.config) != _without_seed(chosen.result.config)]
    if differing:
        raise ConfigError(
            f"'{path}' is a grid of {len(members)} different autoencoders; a page shows one.",
            f"members: {', '.join(one.folder.name for one in members[:6])}{' ...' if len(members) > 6 else ''}",
            fix=f"diffprobe explore '{chosen.folder}'",
        )
    others = others or _siblings(chosen)
    name, folder = _autoencoder(chosen, config.sae)
    device = choose_device(config.device)
    sae = KSAE.from_pretrained(folder).eval().requires_grad_(False).to(device)
    cells = tuple(cell.name for cell in chosen.cells(folder))
    source, store = _features(chosen, config, temporary_store)
    missing = [cell for cell in cells if cell not in source.widths]
    if missing or any(source.widths[cell] != sae.d_in for cell in cells):
        raise ConfigError(
            f"the features at hand are not those that '{path}' was trained on.",
            f"the autoencoder reads {sae.d_in} values of {', '.join(cells)}; at hand: "
            + ", ".join(f"{cell} ({width})" for cell, width in source.widths.items()),
        )
    found = [_other_seed(one, name, cells, sae.d_in, chosen) for one in others]
    for run in seeds:
        for trained in open_runs(run):
            if trained.folder.resolve() != chosen.folder.resolve():
                found.append(_other_seed(trained, config.sae, cells, sae.d_in, chosen))
    return ExploredRun(
        trained=chosen, sae=sae, cells=cells, split=config.split or chosen.config.data.test_split, features=source,
        seeds=_named(found), temporary_store=store,
    )  # fmt: skip


def _features(trained: TrainedRun, config: ExploreConfig, store: str) -> tuple[PageFeatures, str]:
    """Return the features of a run, and the folder of the stores that were made for it, "" for none."""
    run = with_data_path(
        ProbeRun(config=trained.config, result=trained.result, folder=trained.folder), config.data_path
    )  # fmt: skip
    if run.config.features.source != "live":
        return open_features(run), ""
    if not store:
        _TEMPORARY.append(TemporaryDirectory(prefix="diffprobe-explore-"))
        store = _TEMPORARY[-1].name
    return open_live(run, store), store


_TEMPORARY: list[TemporaryDirectory[str]] = []
"""Stores of runs on live features, which are removed when the process ends."""


def open_live(run: ProbeRun, folder: str) -> PageFeatures:
    """Stream the images of a run on live features through the backbone, once, into a store, and open that.

    The passes of the explorer read features several times, and a backbone costs more than any of them.

    Args:
        run: the run.
        folder: where stores are; what is there already is read.

    Raises: the errors of extraction; SchemaError for other shards or another backbone than those of the run;
        StoreMismatch where massive channels were found that are not those of the run.
    """
    from diffprobe.runs.extract import extract_run

    features = replace(run.config.features, source="stored", store=folder, views=ViewsConfig(), latent_cache=None)
    stored = replace(run, config=replace(run.config, features=features))
    path = extract_run(stored.config, progress=False)
    manifest = Manifest.read(path / MANIFEST)
    for cell in sorted({record.cell for record in run.result.metrics if record.cell}):
        require_same_channels(run.result, manifest, cell, path)
    return open_features(stored)


def _autoencoder(trained: TrainedRun, name: str | None) -> tuple[str, Path]:
    """Return name and folder of the autoencoder of a run. Raises: ConfigError for several, UnknownName."""
    saes = trained.saes()
    if name is not None and name not in saes:
        raise unknown("sae", name, saes)
    if name is None and len(saes) > 1:
        raise ConfigError(
            f"'{trained.folder}' has {len(saes)} autoencoders; a page shows one.", f"they are: {', '.join(saes)}",
            fix=f"sae={next(iter(saes))}",
        )  # fmt: skip
    chosen = name or next(iter(saes))
    return chosen, saes[chosen]


def _siblings(trained: TrainedRun) -> list[TrainedRun]:
    """Return the other members of a member's grid that differ from it only in the seed and are finished."""
    if trained.folder.parent.name != MEMBERS:
        return []
    found = []
    for path in sorted(trained.folder.parent.glob(f"*/{RESULT_FILE}")):
        if path.parent.name == trained.folder.name:
            continue
        try:
            result = read_result(path)
            config = parse(RunConfig, result.config, at=f"{path}: config")
        except DiffprobeError:
            continue  # a member that cannot be read is not needed
        if result.kind == "sae" and _without_seed(result.config) == _without_seed(trained.result.config):
            found.append(TrainedRun(folder=path.parent, result=result, config=config))
    return found


def _without_seed(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without its seed, and without that of a member of a grid."""
    found = copy.deepcopy(tree)
    found.pop("seed", None)
    probe = found.get("probe")
    if isinstance(probe, dict) and isinstance(probe.get("grid"), dict):
        probe["grid"].pop("seed", None)
        if not probe["grid"]:
            del probe["grid"]
    return found


def _other_seed(
    trained: TrainedRun, name: str | None, cells: Sequence[str], d_in: int, of: TrainedRun
) -> tuple[TrainedRun, KSAE]:
    saes = trained.saes()
    _, folder = _autoencoder(trained, name if name in saes else None)
    theirs = tuple(cell.name for cell in trained.cells(folder))
    sae = KSAE.from_pretrained(folder).eval().requires_grad_(False)
    if theirs != tuple(cells) or sae.d_in != d_in:
        raise ConfigError(
            f"'{trained.folder}' is not another seed of the run: it reads other features.",
            f"cells: {', '.join(theirs)}; those of the run: {', '.join(cells)}",
            fix="diffprobe explore RUN OTHER compares runs of different cells",
        )
    if channels_key(trained.result) != channels_key(of.result):
        raise ConfigError(
            f"'{trained.folder}' is not another seed of the run: other massive channels of its features are treated.",
            f"its channels: {channels_key(trained.result)}; those of the run: {channels_key(of.result)}",
            fix="diffprobe explore RUN OTHER compares runs of different features",
        )
    return trained, sae


def _named(found: Sequence[tuple[TrainedRun, KSAE]]) -> tuple[OtherSeed, ...]:
    """Name seeds by their number where that is unique, else by their folder too."""
    names = [f"seed {trained.result.seeds.get('run', trained.config.seed)}" for trained, _ in found]
    if len(set(names)) < len(names):
        names = [f"{name}, {trained.folder.name}" for name, (trained, _) in zip(names, found, strict=True)]
    return tuple(OtherSeed(name=name, sae=sae) for name, (_, sae) in zip(names, found, strict=True))


def require_images(run: ExploredRun, n_images: int) -> None:
    """Check that a split has images. Raises: StoreIncomplete."""
    if n_images == 0:
        raise StoreIncomplete(
            f"the split '{run.split}' has no image with features of '{run.trained.folder}'.",
            fix="split=NAME of another",
        )
