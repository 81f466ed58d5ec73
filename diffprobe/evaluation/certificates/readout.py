"""Certify a readout: the accuracy of a trained classifier of a factor, beside the ladder of controls."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffprobe.analysis.certification.check import Certificate, Check, Rule, Subject
from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.core.result import RESULT_FILE, read_result
from diffprobe.evaluation.certificates.method import Method
from diffprobe.evaluation.certificates.settings import WorldSettings

if TYPE_CHECKING:
    from diffprobe.runs.rescore import ScoredRun

HELP = "a run of a classifier on scenes, with runs of its ladder of controls"
SIGNATURE = "not supported yet: a run folder is needed"
_KINDS = ("classifier",)


@dataclass(frozen=True, kw_only=True)
class Config(WorldSettings):
    """Settings and thresholds of certificates of readouts."""

    cell: str = ""
    """Cell of the classifier; one that was chosen before, on val."""
    target: str = "label"
    """What is read: "label" (the role) or a factor."""
    metric: Literal["accuracy", "balanced_accuracy"] = "balanced_accuracy"
    """The score."""
    rungs: tuple[str, ...] = ()
    """Folders of runs to compare with; none for the rungs of the ladder that are beside the run."""
    n_permutations: int = 1000
    """Permutations of the labels of the null distribution."""
    least_score: float = 0.5
    """Least score."""
    least_gain: float = 0.2
    """Least gain over each rung; its interval also has to exclude 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(19, n_permutations=self.n_permutations)
        at_least(0, least_score=self.least_score, least_gain=self.least_gain)
        if not self.cell:
            raise ConfigError("a readout is certified in one cell.", fix="cell=CELL, the one that was chosen on val")


def accepts(path: Path) -> bool:
    """Return whether a folder is a finished run of a classifier."""
    try:
        return path.is_dir() and read_result(path / RESULT_FILE).kind in _KINDS
    except (DiffprobeError, FileNotFoundError):
        return False


def certify(method: Method, config: Config) -> Certificate:
    """Measure a classifier and its gain over each rung; the strongest rung is the baseline that has to fail.

    Raises: ConfigError for a callable, or a target that is not a factor of the world; RunFailed for a run without kept
        predictions, without rungs, or with other samples than a rung.
    """
    from diffprobe.report.query import parse_cell
    from diffprobe.runs.rescore import load_run
    from diffprobe.runs.rescore_ladder import rungs_of

    if method.path is None:
        raise ConfigError(f"'{method.name}' is a callable: {SIGNATURE}.")
    spec = config.load_world()
    if config.target != "label":
        spec.names(config.target)
    one = load_run(method.path)
    rungs = {Path(run).name: Path(run) for run in config.rungs} or rungs_of(method.path)
    others = {name: load_run(folder) for name, folder in rungs.items()}
    cell = parse_cell(config.cell).name
    checks = _checks(one, others, config, cell)
    gains = {check.target: check.value for check in checks if check.name == "gain"}
    strongest = min(gains, key=lambda name: gains[name])
    assert strongest is not None
    why = f"the strongest rung of the ladder ({strongest}), as if it were the method: it gains nothing over itself"
    baseline = Subject(name=strongest, why=why, checks=_checks(others[strongest], others, config, None))
    return Certificate(
        kind="readout", method=Subject(name="method", checks=checks), baselines=(baseline,),
        facts={"cell": cell, "target": config.target, "world file": spec.digest[:12], "rungs": ", ".join(rungs)},
        seeds={"bootstrap": config.seed, "permutation": config.seed},
    )  # fmt: skip


def _checks(one: "ScoredRun", others: "dict[str, ScoredRun]", config: Config, cell: str | None) -> tuple[Check, ...]:
    """Return the score, and the paired gain over each other run; without a cell, of the first head of the target."""
    from diffprobe.runs.rescore import Bootstrap, Permutations, compare, rescore

    where = {"target": config.target, **({} if cell is None else {"cell": cell})}
    drawn = Bootstrap(resamples=config.n_resamples, level=config.level, seed=config.seed)
    null = Permutations(n=config.n_permutations, seed=config.seed)
    score = rescore(one, metrics=[config.metric], where=where, bootstrap=drawn, null=null)[0]
    found = [
        Check(
            name=config.metric, value=score.value, interval=_interval(score.detail), n=score.n,
            null={key: score.detail["null"][key] for key in ("p", "smallest_p", "mean")},
            rule=Rule(keys="least_score, alpha", low=config.least_score, alpha=config.alpha),
            what="score on test; intervals resample groups, p is from permuted labels",
        )
    ]  # fmt: skip
    for name, other in others.items():
        value, interval, n = 0.0, (0.0, 0.0), score.n  # a rung over itself
        if other is not one:
            gain = compare(one, other, metrics=[config.metric], where=where, bootstrap=drawn)[0]
            value, interval, n = gain.value, _interval(gain.detail), gain.n
        found.append(
            Check(
                name="gain", target=name, value=value, interval=interval, n=n,
                rule=Rule(keys="least_gain", low=config.least_gain, interval_above=0.0),
                what=f"{config.metric} minus that of the rung, over the same samples; the interval is paired",
            )
        )  # fmt: skip
    return tuple(found)


def _interval(detail: dict[str, Any]) -> tuple[float, float]:
    low, high = detail["interval"]
    return float(low), float(high)
