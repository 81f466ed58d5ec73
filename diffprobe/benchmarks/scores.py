"""`diffprobe bench scores`: passes per second of the scorer beside the bare denoiser, and what pruning saves and costs.

One run has all of it: every candidate of every image at all timesteps (ours), the same with pruning, a baseline that
scores one image and candidate at a time with its timesteps as the batch, and the floor, the denoiser alone on as large
batches as ours. Sides alternate by chunks of images, so that a machine whose speed drifts treats them alike; baseline
and floor run on a part of the passes. Encoding of images and captions is left out on all sides.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffprobe.backbones.base import Condition, take_rows
from diffprobe.backbones.device import choose_device
from diffprobe.benchmarks.machine import machine, seconds
from diffprobe.config.schema import DataConfig
from diffprobe.config.validators import a_device, at_least
from diffprobe.core.errors import ConfigError
from diffprobe.core.memory import keep_freed_memory
from diffprobe.core.progress import ProgressDisplay
from diffprobe.evaluation.captions import encode_split
from diffprobe.evaluation.score_candidates import Question, questions
from diffprobe.evaluation.score_settings import CandidateRule
from diffprobe.probes.score.candidate_ranks import is_chosen
from diffprobe.probes.score.staged_errors import Stage, check_stages, nested_timesteps, staged_errors, weighted_error
from diffprobe.report.markdown_table import markdown_table
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.noise_sets import spread_timesteps
from diffprobe.shards.index import ShardSet

STAGES = (Stage(n_timesteps=1, kept=40), Stage(n_timesteps=2, kept=16), Stage(n_timesteps=4, kept=5))
"""The prunings that are measured by default."""
_CHUNK = 20


@dataclass(frozen=True, kw_only=True)
class ScoreSetting:
    """Settings of one measurement."""

    backbone: str = "emoji-sd"
    """The text-conditional model."""
    data: str = "emoji"
    """Captioned images."""
    split: str = "test"
    """The split that is scored."""
    images: int = 100
    """Images, the first ones of the split."""
    candidates: int = 94
    """Captions that an image chooses between."""
    timesteps: int = 12
    """Timesteps of a candidate."""
    stages: tuple[Stage, ...] = STAGES
    """Prunings."""
    group: str | None = None
    """Wrong captions are of another value of this attribute; None: the group that the data set names."""
    device: str = "auto"
    """Torch device."""
    seed: int = 0
    """Seed of noise and candidates."""

    def __post_init__(self) -> None:
        at_least(1, images=self.images, timesteps=self.timesteps)
        at_least(2, candidates=self.candidates)
        a_device(self.device)
        check_stages(self.stages, self.timesteps)
        if not self.stages:
            raise ConfigError("bench scores needs at least one pruning.", fix="--stages 1:40,2:16,4:5")


@dataclass(frozen=True, kw_only=True)
class ScoreSide:
    """Passes of one side and the seconds that they took."""

    passes: int
    seconds: float

    @property
    def rate(self) -> float:
        """Passes per second."""
        return self.passes / self.seconds


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """The measurement, and the machine it was made on."""

    setting: ScoreSetting
    machine: str
    batch: int
    """Latents per pass, of ours and of the bare denoiser."""
    ours: ScoreSide
    """All candidates at all timesteps."""
    pruned: ScoreSide
    """The same choices with pruning."""
    baseline: ScoreSide
    """One image and candidate at a time, on a part of the images."""
    bare: ScoreSide
    """The denoiser alone."""
    accuracy: float
    """Share of images whose own caption has the least error."""
    accuracy_pruned: float
    """The same with pruning."""
    changed: int
    """Images for which pruning changes whether their own caption is chosen."""

    @property
    def share(self) -> float:
        """Passes per second of ours over those of the bare denoiser."""
        return self.ours.rate / self.bare.rate

    @property
    def saved_passes(self) -> float:
        """Passes without pruning over passes with it."""
        return self.ours.passes / self.pruned.passes

    @property
    def saved_time(self) -> float:
        """Seconds without pruning over seconds with it."""
        return self.ours.seconds / self.pruned.seconds

    @property
    def changed_bound(self) -> float:
        """Upper end of the exact 95 % interval (Clopper and Pearson, 1934) of the share of changed choices."""
        from scipy.stats import binomtest

        return float(binomtest(self.changed, self.setting.images).proportion_ci(0.95, "exact").high)

    def to_json(self) -> str:
        """Return all measurements as JSON."""
        made = {name: getattr(self, name) for name in ("share", "saved_passes", "saved_time", "changed_bound")}
        return json.dumps({**asdict(self), **made}, indent=2)


def bench_scores(setting: ScoreSetting, *, progress: Callable[[str], None] = lambda line: None) -> ScoreReport:
    """Let images choose among captions with and without pruning, beside a baseline and the bare denoiser.

    Args:
        progress: called with a line of text before each step.
    Raises: EmptyClass for more candidates than groups, UnknownName, and errors of loading.
    """
    keep_freed_memory()
    progress("loading the model and encoding images")
    score = DenoisingError.from_pretrained(setting.backbone, device=setting.device, seed=setting.seed)
    latents, keys, question = _asked(setting, score)
    conditions = score.encode_conditions(question.values)
    run = _Run(setting, score, latents, keys, question, conditions, choose_device(setting.device))
    run.warm_up()
    for number, rows in enumerate(pieces := torch.arange(len(keys)).split(_CHUNK), 1):
        progress(f"images {number} of {len(pieces)} parts")
        run.chunk(rows)
    chosen, pruned = run.chosen()
    return ScoreReport(
        setting=setting, machine=machine(), batch=min(score.rows, _CHUNK * setting.candidates),
        ours=run.side("ours"), pruned=run.side("pruned"), baseline=run.side("baseline"), bare=run.side("bare"),
        accuracy=float(chosen.double().mean()), accuracy_pruned=float(pruned.double().mean()),
        changed=int((chosen != pruned).sum()),
    )  # fmt: skip


def render(report: ScoreReport) -> str:
    """Return the measurement as Markdown."""
    setting = report.setting
    stages = ", ".join(f"{stage.kept} after {stage.n_timesteps}" for stage in setting.stages)
    rows = [
        [
            name,
            f"{side.passes:,}",
            f"{side.seconds:.1f}",
            f"{side.rate:.1f}",
            f"{side.rate / report.bare.rate:.2f}",
            accuracy,
        ]
        for name, side, accuracy in (
            ("ours, all candidates at all timesteps", report.ours, f"{report.accuracy:.3f}"),
            (f"ours, pruned (keeping {stages})", report.pruned, f"{report.accuracy_pruned:.3f}"),
            ("baseline: one image and candidate at a time", report.baseline, ""),
            ("floor: the denoiser alone", report.bare, ""),
        )
    ]
    return "\n".join(
        [
            f"{report.machine}; {setting.backbone}, {setting.images:,} images of {setting.data}/{setting.split}, "
            f"{setting.candidates} captions, {setting.timesteps} timesteps, batches of {report.batch}",
            "",
            markdown_table(["", "passes", "seconds", "passes/s", "x floor", "accuracy"], rows),
            "",
            f"pruning saves {report.saved_passes:.1f} x the passes and {report.saved_time:.1f} x the time; it changes "
            f"{report.changed} of {setting.images:,} choices (95 % interval up to {100 * report.changed_bound:.1f} %), "
            f"and the accuracy by {100 * (report.accuracy_pruned - report.accuracy):+.1f} points",
        ]
    )


def stages_of(text: str) -> tuple[Stage, ...]:
    """Read prunings: timesteps and candidates that are kept after them.

    Raises: ConfigError.

    >>> stages_of("1:40,4:5")
    (Stage(n_timesteps=1, kept=40), Stage(n_timesteps=4, kept=5))
    """
    found = []
    for part in text.split(","):
        after, colon, kept = part.partition(":")
        if not (colon and after.isdecimal() and kept.isdecimal()):
            raise ConfigError(f"'{part}' is not a pruning.", "expected TIMESTEPS:KEPT, for example 1:40,2:16,4:5")
        found.append(Stage(n_timesteps=int(after), kept=int(kept)))
    return tuple(found)


def _asked(setting: ScoreSetting, score: DenoisingError) -> tuple[Float[Tensor, "sample c h w"], list[str], Question]:
    """Return latents, keys and candidates. The candidates are drawn among all captions of the split."""
    group = setting.group or ShardSet.load(setting.data).group
    with ProgressDisplay(shown=False) as display:
        encoded = encode_split(
            DataConfig(path=setting.data), setting.split, score, group_attribute=group, family_attribute=None,
            resolution=score.spec.resolution, progress=display,
        )  # fmt: skip
    if setting.images > len(encoded.table):
        raise ConfigError(
            f"--images {setting.images:,}: split '{setting.split}' has {len(encoded.table):,} images.",
            fix=f"--images {len(encoded.table)}",
        )
    (question,) = questions(CandidateRule(n=setting.candidates), encoded, seed=setting.seed)
    return encoded.latents[: setting.images], encoded.table.keys[: setting.images], question


class _Run:
    """The sides of a measurement, chunk by chunk."""

    def __init__(
        self,
        setting: ScoreSetting,
        score: DenoisingError,
        latents: Float[Tensor, "sample c h w"],
        keys: Sequence[str],
        question: Question,
        conditions: Condition,
        device: torch.device,
    ) -> None:
        self._setting, self._score, self._latents, self._keys = setting, score, latents, keys
        self._question, self._conditions, self._device = question, conditions, device
        self._timesteps = nested_timesteps(spread_timesteps(setting.timesteps, score.n_timesteps))
        self._weights = torch.ones(setting.timesteps, dtype=torch.float64)
        self._passes = dict.fromkeys(("ours", "pruned", "baseline", "bare"), 0)
        self._seconds = dict.fromkeys(self._passes, 0.0)
        self._errors: dict[str, list[Tensor]] = {"ours": [], "pruned": []}

    def warm_up(self) -> None:
        """Run all sides once on one image, untimed."""
        rows = torch.arange(1)
        self._errors_of(rows, ())
        self._baseline(rows)
        self._bare(min(self._score.rows, _CHUNK * self._setting.candidates))

    def chunk(self, rows: Tensor) -> None:
        """Time all sides on some images: baseline on the first of them, bare denoiser on a quarter of the passes."""
        for name, stages in (("ours", ()), ("pruned", self._setting.stages)):
            self._time(name, partial(self._keep, name, rows, stages))
            self._passes[name] += int(self._errors[name][-1].isfinite().sum())
        self._time("baseline", lambda: self._baseline(rows[:1]))
        self._passes["baseline"] += self._setting.candidates * self._setting.timesteps
        size = min(self._score.rows, len(rows) * self._setting.candidates)
        times = max(1, round(len(rows) * self._setting.candidates * self._setting.timesteps / size / 4))
        self._time("bare", lambda: [self._bare(size) for _ in range(times)])
        self._passes["bare"] += size * times

    def side(self, name: str) -> ScoreSide:
        """Return the passes and seconds of a side."""
        return ScoreSide(passes=self._passes[name], seconds=self._seconds[name])

    def chosen(self) -> tuple[Bool[Tensor, " sample"], Bool[Tensor, " sample"]]:
        """Return whether each image's own caption was chosen, without and with pruning."""
        right = self._question.right[: len(self._keys)]
        ours, pruned = (
            is_chosen(weighted_error(torch.cat(self._errors[name]), self._weights), right)
            for name in ("ours", "pruned")
        )
        return ours, pruned

    def _time(self, name: str, work: Callable[[], object]) -> None:
        self._seconds[name] += seconds(work, self._device)

    def _keep(self, name: str, rows: Tensor, stages: Sequence[Stage]) -> None:
        self._errors[name].append(self._errors_of(rows, stages))

    def _errors_of(self, rows: Tensor, stages: Sequence[Stage]) -> Float[Tensor, "sample n timestep"]:
        question = self._question
        return staged_errors(
            self._score, self._latents[rows], [self._keys[row] for row in rows.tolist()], self._conditions,
            question.candidates[rows], question.offered[rows], self._timesteps, self._weights, stages,
        )  # fmt: skip

    @torch.no_grad()
    def _baseline(self, rows: Tensor) -> None:
        """Score one image and candidate at a time; its timesteps are the batch."""
        score, n = self._score, len(self._timesteps)
        schedule, device = score.spec.schedule, self._device
        steps = torch.tensor(self._timesteps, device=device)
        for row in rows.tolist():
            clean = self._latents[row][None].to(device).expand(n, *self._latents.shape[1:])
            noise = torch.randn(clean.shape, device=device)
            x_t = schedule.add(clean, noise, steps)
            for column in self._question.candidates[row].tolist():
                given = {name: values[column][None].to(device).expand(n, *values.shape[1:])
                         for name, values in self._conditions.items()}  # fmt: skip
                with score.exactly():
                    predicted = score.backbone.denoise(x_t, steps, given).value
                (predicted - noise).square().flatten(1).mean(1).cpu()

    @torch.no_grad()
    def _bare(self, size: int) -> None:
        """Run the denoiser once on a batch."""
        x_t = torch.zeros(size, *self._latents.shape[1:], device=self._device)
        steps = torch.full((size,), self._timesteps[0], device=self._device)
        given = take_rows(self._conditions, torch.zeros(size, dtype=torch.long))
        with self._score.exactly():
            self._score.backbone.denoise(x_t, steps, {name: values.to(self._device) for name, values in given.items()})
