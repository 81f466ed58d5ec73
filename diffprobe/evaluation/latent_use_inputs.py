"""What `diffprobe eval latents` opens: an autoencoder of a run in its backbone, and samples with codes of its tap."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from diffprobe.core.errors import ConfigError, unknown
from diffprobe.evaluation.held_out import EncodedSplit, group_of
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation
from diffprobe.evaluation.load_sae_run import TrainedRun, open_runs
from diffprobe.evaluation.sae import open_tap

if TYPE_CHECKING:
    from diffprobe.backbones.cell import Cell
    from diffprobe.core.progress import Bar
    from diffprobe.features.request import Request
    from diffprobe.probes.sae.base import KSAE
    from diffprobe.scoring.intervention_error import SplicedError
    from diffprobe.scoring.latent_ablation import TapCodes


@dataclass(frozen=True)
class OpenedLatents:
    """An autoencoder in its backbone, and the samples of an evaluation."""

    trained: TrainedRun
    sae: "KSAE"
    name: str
    """Name of the autoencoder in its run."""
    cell: "Cell"
    request: "Request"
    network: "SplicedError"
    split: str
    group: str
    """Attribute whose values are the groups, or "sample"."""


def open_latents(config: LatentUseEvaluation) -> OpenedLatents:
    """Open run, data and backbone, after all checks that need neither images nor weights.

    Raises: as `evaluate_latents`.
    """
    from diffprobe.probes.sae.base import KSAE

    members = open_runs(config.run)
    if len(members) > 1:
        raise ConfigError(
            f"'{config.run}' is a grid of {len(members)} autoencoders; one is measured at a time.",
            f"members: {', '.join(one.folder.name for one in members[:6])}{' ...' if len(members) > 6 else ''}",
            fix=f"diffprobe eval latents '{members[0].folder}'",
        )
    trained = _with_current_paths(config, members[0])
    saes = trained.saes()
    if config.sae is not None and config.sae not in saes:
        raise unknown("sae", config.sae, saes)
    if config.sae is None and len(saes) > 1:
        raise ConfigError(
            f"'{config.run}' has {len(saes)} autoencoders; one is measured at a time.", f"they are: {', '.join(saes)}",
            fix=f"sae={next(iter(saes))}",
        )  # fmt: skip
    name = config.sae or next(iter(saes))
    cell = _cell(config, trained.cells(saes[name]))
    sae = KSAE.from_pretrained(saes[name]).eval().requires_grad_(False)
    for key in ("latents", "generate"):
        bad = [latent for latent in getattr(config, key) if not 0 <= latent < sae.n_latents]
        if bad:
            raise ConfigError(
                f"{key}: latent {', '.join(map(str, bad))} is out of range: 0 to {sae.n_latents - 1}, the latents of "
                "the autoencoder."
            )
    split = config.split or trained.config.data.test_split
    if split == trained.config.data.train_split:
        raise ConfigError(
            f"split={split} is the training split, on which readings are chosen: it is not held out.",
            fix=f"split={trained.config.data.val_split}, or split={trained.config.data.test_split}",
        )
    request, network = open_tap(trained, cell, (cell.timestep,), sae.d_in)
    group = group_of(request.shard_set, config.group_attribute)
    return OpenedLatents(trained, sae.to(network.device), name, cell, request, network, split, group)


def _with_current_paths(config: LatentUseEvaluation, trained: TrainedRun) -> TrainedRun:
    run = trained.config
    backbone = replace(run.backbone, path=config.backbone_path or run.backbone.path, device=config.device)
    data = replace(run.data, path=config.data_path or run.data.path)
    return replace(trained, config=replace(run, backbone=backbone, data=data))


def _cell(config: LatentUseEvaluation, cells: "Sequence[Cell]") -> "Cell":
    """Return the cell of the chosen timestep. Raises: ConfigError."""
    known = {cell.timestep: cell for cell in cells}
    if config.timestep is None and len(known) == 1:
        return cells[0]
    listed = ", ".join(map(str, known))
    if config.timestep is None:
        raise ConfigError(
            f"the autoencoder was trained on {len(known)} timesteps: {listed}.", fix=f"timestep={cells[0].timestep}"
        )
    if config.timestep not in known:
        raise ConfigError(
            f"timestep={config.timestep}: the autoencoder was not trained on it.", f"it was trained on: {listed}"
        )
    return known[config.timestep]


def first_samples(split: EncodedSplit, n: int) -> EncodedSplit:
    """Return the first `n` samples of a split."""
    from diffprobe.scoring.intervention_network import HeldOut

    return EncodedSplit(
        {name: HeldOut(of.latents[:n], of.keys[:n], of.inputs[:n]) for name, of in split.of_condition.items()},
        split.groups[:n], {name: ids[:n] for name, ids in split.attributes.items()}, split.labels[:n],
    )  # fmt: skip


def tap_codes(opened: OpenedLatents, split: EncodedSplit, bar: "Bar") -> "TapCodes":
    """Return the codes of all places of some samples."""
    from diffprobe.scoring.latent_ablation import read_codes

    network, cell = opened.network, opened.cell
    return read_codes(
        network, split.of_condition[cell.condition], cell.timestep, cell.tap, network.splice, opened.sae, bar.update
    )
