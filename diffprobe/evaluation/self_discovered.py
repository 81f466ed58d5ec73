"""`diffprobe directions STORE --self-discovered`: the vector that a prompt lacks, found through the frozen model.

The store has the generated latents of prompts that differ in one attribute. Those of the positive end are denoised
under the prompts of the negative end, with one vector added at a tap (`scoring/self_discovered.py`).
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffprobe.analysis.prompt_directions import pair_prompts
from diffprobe.backbones.cell import Cell
from diffprobe.backbones.parts import LATENTS
from diffprobe.backbones.plan import make_configs, make_plan
from diffprobe.backbones.prompt_plan import CONDITIONAL
from diffprobe.config.validators import a_device, at_least
from diffprobe.core.column_names import path_part
from diffprobe.core.digest import digest_file, digest_json
from diffprobe.core.errors import ConfigError, EmptyClass, StoreMismatch
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import BACKBONE, RESULT_FILE, STORE, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.prompt_directions import FOLDER
from diffprobe.features.prompt_latents import PromptLatents, load_prompt_latents
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.direction.base import Direction
from diffprobe.probes.serialization import SETTINGS
from diffprobe.runs.provenance import backbone_digest, checkpoint_digest
from diffprobe.scoring.intervention_network import HeldOut, InterventionNetwork, require_replaceable
from diffprobe.scoring.self_discovered import VectorSearch, self_discovered_vector

KIND = "self_discovered_direction"
"""Kind of the result."""
LATENTS_KEPT = Cell(LATENTS, 0, CONDITIONAL, "none").name
"""Cell of the finished latents in a store of prompts."""
ESTIMATOR = "self_discovered"
"""Name of the estimate in a saved direction."""


@dataclass(frozen=True, kw_only=True)
class SelfDiscoveredConfig:
    """Settings of `diffprobe directions STORE --self-discovered`."""

    model: str = ""
    """The model that the prompts were sampled from: a folder, or the name of a shipped one."""
    target: str = ""
    """Attribute of the prompts that differs within a pair."""
    positive: str = ""
    """Its value in the prompts whose images are denoised."""
    negative: str = ""
    """Its value in the prompts that they are denoised under."""
    context: str = "context"
    """Attribute that both prompts of a pair have in common."""
    cell: str = ""
    """Cell that the direction is saved for, TAP@tT:CONDITION:POOL: the vector is added at its tap, with its pooling."""
    split: str | None = None
    """Split of the prompts; None for all of them."""
    held_out: float = 0.25
    """Share of the contexts, the last ones, that only measure the error."""
    steps: int = 200
    """Steps of Adam."""
    batch_size: int = 16
    """Latents per step."""
    learning_rate: float = 0.03
    """Step size in units of the root mean square of the features."""
    window: tuple[int, int] | None = None
    """Smallest and largest timestep at which the vector is optimised; None for the whole training grid."""
    device: str = "auto"
    """Torch device."""
    seed: int = 0
    """Seed of samples, timesteps and noise."""

    def __post_init__(self) -> None:
        needed = ("model", "target", "positive", "negative", "context", "cell")
        missing = [name for name in needed if not getattr(self, name)]
        if missing:
            raise ConfigError(
                f"a self-discovered direction needs {', '.join(missing)}.",
                fix="model=MODEL target=ATTRIBUTE positive=VALUE negative=VALUE cell=mid_block@t500:empty:mean",
            )
        at_least(1, steps=self.steps, batch_size=self.batch_size)
        a_device(self.device)
        if not 0 < self.held_out < 1:
            raise ConfigError(f"held_out={self.held_out:g} is out of range: above 0 and below 1.")


def make_self_discovered(store: Path | str, config: SelfDiscoveredConfig, *, output: Path | str = "runs") -> Path:
    """Optimise and save the direction, and return the path of `result.json`.

    The folder is <output>/directions/<first 12 digits of a digest>, with the direction below `probes`.

    Args:
        store: of prompts, extracted with features.keep=[latents].

    Raises: see `pair_prompts`, `load_prompt_latents` and `self_discovered_vector`; ConfigError for a store without
        finished latents, or contexts that leave none to optimise on; StoreMismatch for latents of another model;
        EmptyClass if the vector did not move.
    """
    started_at = StartTime.now()
    opened, cell = FeatureStore.open(store), Cell.parse(config.cell)
    if LATENTS_KEPT not in opened.cells:
        raise ConfigError(
            f"store '{opened.path}' has no finished latents.", fix='"features.keep=[latents]" in the extraction'
        )
    own = checkpoint_digest(config.model)
    if backbone_digest(opened.manifest.backbone) != own:
        raise StoreMismatch(
            f"the latents in '{opened.path}' were generated by another model than '{config.model}'.",
            fix="model=MODEL of the extraction",
        )
    latents = load_prompt_latents(opened, LATENTS_KEPT, split=config.split)
    options = {"taps": [cell.tap], "timesteps": [cell.timestep], "pool": cell.pool, "seed": config.seed}
    plan = make_plan(*make_configs(config.model, options))
    require_replaceable(plan)
    samples, held_out = _samples(latents, config, plan.spec.latent_shape)
    network = InterventionNetwork(plan, device=config.device)
    window = config.window or (0, plan.schedule.n_timesteps - 1)
    search = VectorSearch(
        steps=config.steps, batch_size=config.batch_size, learning_rate=config.learning_rate, window=window,
        seed=config.seed,
    )  # fmt: skip
    with (
        ProgressDisplay(transient=True) as display,
        display.bar(config.steps, "optimising the vector", unit="steps", keep=False) as bar,
    ):
        found = self_discovered_vector(
            network, samples, held_out, search, tap=cell.tap, pool=cell.pool, on_step=bar.update
        )
    scale = float(found.vector.double().norm())
    if not scale > 0:
        raise EmptyClass(f"the vector at '{cell.tap}' stayed 0: nothing behind that tap changes the prediction.")
    direction = Direction(
        vector=found.vector / scale, scale=scale, midpoint=0.0, target=config.target, positive=config.positive,
        negative=config.negative, cell=cell.name, estimator=ESTIMATOR,
    )  # fmt: skip
    inputs = {STORE: opened.manifest.digest, BACKBONE: own}
    tree = {"store": str(store), **dataclasses.asdict(config)}
    named = {key: value for key, value in tree.items() if key not in ("store", "device")}
    place = Path(output) / FOLDER / digest_json({**named, "kind": KIND, "inputs": inputs})[:12]
    part = f"probes/{path_part(config.target)}/{direction.cell.replace(':', '.')}"
    artifacts = {**inputs, part: digest_file(direction.save(place / part) / SETTINGS)}
    shared = {"cell": direction.cell, "target": config.target, "probe": ESTIMATOR, "split": config.split or "all"}
    detail = {"positive": config.positive, "negative": config.negative, "window": list(window)}
    records = [
        MetricRecord(name="norm", value=scale, n=len(samples), detail=detail, **shared),  # type: ignore[arg-type]
        MetricRecord(
            name="denoising_error", value=found.error_with, n=len(held_out),
            controls={"without_vector": found.error_without}, detail=detail, **shared,  # type: ignore[arg-type]
        ),
    ]  # fmt: skip
    result = make_result(
        run=place.name, experiment=FOLDER, kind=KIND, config=tree, seeds={"search": config.seed, "noise": config.seed},
        metrics=records, started_at=started_at, artifacts=artifacts,
    )  # fmt: skip
    write_result(result, place / RESULT_FILE)
    return place / RESULT_FILE


def _samples(latents: PromptLatents, config: SelfDiscoveredConfig, shape: Sequence[int]) -> tuple[HeldOut, HeldOut]:
    """Return the latents of the positive end under the prompts of the negative end; the last contexts are held out."""
    pairs = pair_prompts(
        latents.prompts, latents.attributes, target=config.target, positive=config.positive, negative=config.negative,
        context=config.context,
    )  # fmt: skip
    n = len(pairs.contexts)
    n_held = max(1, round(n * config.held_out))
    if n_held >= n:
        raise ConfigError(f"held_out={config.held_out:g} of {n} contexts leaves none to optimise on.")
    n_seeds = latents.features.shape[1]

    def of(contexts: range) -> HeldOut:
        rows = [pairs.positive[i] for i in contexts]
        values = latents.features[torch.tensor(rows)].reshape(len(rows) * n_seeds, *shape)
        keys = [f"{pairs.contexts[i]}/{seed}" for i in contexts for seed in range(n_seeds)]
        return HeldOut(values, keys, [latents.prompts[pairs.negative[i]] for i in contexts for _ in range(n_seeds)])

    return of(range(n - n_held)), of(range(n - n_held, n))
