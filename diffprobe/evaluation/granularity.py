"""`diffprobe eval granularity`: how fine the features of latents are, by a rater that looks at their top images.

A rater answers one multiple-choice question per latent. It is a Python callable, for example around a vision-language
model, or a file of recorded answers. The idea is Revelio's (arXiv 2411.16725), which asks GPT-4o; question and options
here are worded anew.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.validators import a_device, at_least
from diffprobe.core.artifact import write_json_atomic
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, RunFailed, SchemaError
from diffprobe.core.json_file import expect, read_json_object
from diffprobe.core.progress import ProgressDisplay
from diffprobe.core.result import INPUT, RESULT_FILE, MetricRecord, StartTime, make_result, write_result
from diffprobe.evaluation.certificates.method import call, load_callable
from diffprobe.evaluation.labels import LabelledSplit, Reading, rank_latents
from diffprobe.evaluation.load_sae_run import TrainedRun, open_runs
from diffprobe.runs.massive_notes import with_channels_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffprobe.evaluation.page_features import PageFeatures

KIND = "sae_granularity"
"""Kind of the result."""
OPTIONS = {
    1: "Class-specific details: fine features by which one class differs from similar classes.",
    2: "A category: objects of one broad kind, in any shape, colour or position.",
    3: "Moderately granular features: a similar shape, part, texture or colour, wherever it is in the image.",
    4: "Coarse layout: objects or background arranged in similar positions.",
}
"""Choice -> text."""
QUESTION = (
    "One unit of a network is most active on these images. What do they have in common? "
    "Answer with the number of one option.\n" + "\n".join(f"{number}. {text}" for number, text in OPTIONS.items())
)
"""The question that a rater gets with the images."""
SIGNATURE = "rater(images: list[PIL.Image.Image], question: str) -> int, one of 1, 2, 3, 4"
ANSWERS_FILE = "answers.json"
"""File beside the result, in the form that `answers` takes."""
_AT_ONCE = 20
"""Latents whose images are held at once."""
_Place = tuple[str, str, int]
"""Run, cell and number of a latent."""


@dataclass(frozen=True, kw_only=True)
class GranularityEvaluation:
    """Settings of `diffprobe eval granularity` (experiment files of kind `evaluate_granularity`)."""

    experiment: str
    """Name of the experiment; the folder of results below `output`."""
    run: str = ""
    """Folder of a trained sae run; for a grid, all members are measured."""
    rater: str | None = None
    """The rater as module:callable, rater(images, question) -> 1, 2, 3 or 4; its code is run."""
    answers: str | None = None
    """File of recorded answers, in place of a rater."""
    reading: Reading = "described"
    """Activations by which latents and images are ranked: those of the sparse code, or ReLU of all of them."""
    n_latents: int = 100
    """Latents that are shown, the first ones by mean activation on the training split."""
    n_top_images: int = 10
    """Images of each latent that are shown, the most active ones of the training split."""
    data_path: str | None = None
    """Folder of the shards; None for the path of the run."""
    device: str = "auto"
    """Torch device; "auto" for the accelerator if there is one."""
    seed: int = 0
    """Seed of the bootstrap."""
    output: str = "runs"
    """Folder of runs."""

    def __post_init__(self) -> None:
        a_device(self.device)
        at_least(1, n_top_images=self.n_top_images)
        at_least(2, n_latents=self.n_latents)
        at_least(0, seed=self.seed)
        if self.rater is not None and self.answers is not None:
            raise ConfigError("rater and answers are both set; answers are recorded so that no rater is asked.")


def evaluate_granularity(config: GranularityEvaluation) -> list[Path]:
    """Ask the rater about every autoencoder of a run, write answers and `result.json`, and return the results' paths.

    Raises: ConfigError without a rater, for one that cannot be imported, and for images that are not at hand; RunFailed
        if the rater fails or gives another answer than an option; SchemaError for answers that are invalid or missing;
        the errors of opening features and weights.
    """
    if config.rater is None and config.answers is None:
        raise ConfigError(
            "nobody answers: neither rater nor answers is set.", f"needed: {SIGNATURE}",
            fix="rater=module:callable, or answers=FILE",
        )  # fmt: skip
    recorded = None if config.answers is None else read_answers(config.answers)
    rater = None if config.rater is None else load_callable(config.rater, SIGNATURE, 2)
    runs = open_runs(config.run)
    with ProgressDisplay(transient=True) as progress:
        total = len(runs) * config.n_latents
        with progress.bar(total, "granularity of latents", unit="latents", keep=False) as bar:
            return [_evaluate(config, trained, rater, recorded, bar.update) for trained in runs]


def read_answers(path: Path | str) -> dict[_Place, int]:
    """Return recorded answers: `{"answers": [{"run", "cell", "latent", "choice"}, ...]}`.

    Raises: FileNotFoundError; SchemaError, with the number of the answer, for another form or choice, or a latent with
        two answers.
    """
    found: dict[_Place, int] = {}
    answers = expect(read_json_object(path).get("answers"), list, where=f"'{path}': answers")
    for number, answer in enumerate(answers):
        where = f"'{path}': answers[{number}]"
        answer = expect(answer, dict, where=where)
        run, cell = (expect(answer.get(key), str, where=f"{where}.{key}") for key in ("run", "cell"))
        latent, choice = (expect(answer.get(key), int, where=f"{where}.{key}") for key in ("latent", "choice"))
        if choice not in OPTIONS:
            raise SchemaError(f"{where}: choice is {choice}, expected one of {', '.join(map(str, OPTIONS))}.")
        if (run, cell, latent) in found:
            raise SchemaError(f"{where}: latent {latent} of '{run}', {cell}, has two answers.")
        found[run, cell, latent] = choice
    return found


def _evaluate(
    config: GranularityEvaluation,
    trained: TrainedRun,
    rater: Callable[..., object] | None,
    recorded: dict[_Place, int] | None,
    tick: Callable[[int], None],
) -> Path:
    started_at = StartTime.now()
    not_recorded = ("experiment", "run", "data_path", "device", "output", "answers")
    settings = {key: value for key, value in asdict(config).items() if key not in not_recorded}
    metrics, answers = _measure(config, trained, rater, recorded, tick)
    settings |= {"question": QUESTION, "answers": digest_json(answers)}
    tree = {**trained.result.config, "granularity": settings, "run": trained.result.run}
    run_dir = Path(config.output) / config.experiment / digest_json({**tree, "weights": trained.result.artifacts})[:12]
    run_dir.mkdir(parents=True, exist_ok=True)
    write_json_atomic(run_dir / ANSWERS_FILE, {"question": QUESTION, "answers": answers})
    artifacts = {INPUT + name.removeprefix(INPUT): sha for name, sha in trained.result.artifacts.items()}
    result = make_result(
        run=run_dir.name, experiment=trained.result.experiment or config.experiment, kind=KIND, config=tree,
        seeds={**trained.result.seeds, "bootstrap": config.seed}, metrics=with_channels_of(metrics, trained.result),
        started_at=started_at, artifacts=artifacts,
    )  # fmt: skip
    write_result(result, run_dir / RESULT_FILE)
    return run_dir / RESULT_FILE


def _measure(
    config: GranularityEvaluation,
    trained: TrainedRun,
    rater: Callable[..., object] | None,
    recorded: dict[_Place, int] | None,
    tick: Callable[[int], None],
) -> tuple[list[MetricRecord], list[dict[str, object]]]:
    """Return the records of all cells, and the answers."""
    import torch

    from diffprobe.backbones.device import choose_device
    from diffprobe.evaluation.page_features import open_features, with_data_path
    from diffprobe.evaluation.probe_runs import ProbeRun
    from diffprobe.probes.sae.base import KSAE

    run = ProbeRun(config=trained.config, result=trained.result, folder=trained.folder)
    source, name = open_features(with_data_path(run, config.data_path)), trained.config.data.train_split
    table = source.table(name)
    images = LabelledSplit(name, table, torch.zeros(len(table), dtype=torch.long), None, 1)
    metrics: list[MetricRecord] = []
    answers: list[dict[str, object]] = []
    for folder in trained.saes().values():
        sae = KSAE.from_pretrained(folder).eval().requires_grad_(False).to(choose_device(config.device))
        for cell in trained.cells(folder):
            ranking, top = rank_latents(
                images, sae, cell.name, config.reading, n_top=config.n_top_images, n=config.n_latents
            )
            latents, samples = ranking.latents.tolist(), top.result()
            keys = {latent: [sample.key for sample in samples[latent]] for latent in latents}
            if recorded is not None:
                choices = _recorded(recorded, trained.result.run, cell.name, latents)
                tick(len(latents))
            else:
                assert rater is not None
                shards = dict(zip(table.keys, table.shards, strict=True))
                choices = []
                for shown in _images(source, keys, shards):
                    choices.append(_ask(rater, str(config.rater), shown))
                    tick(1)
            answers += [
                {"run": trained.result.run, "cell": cell.name, "latent": latent, "choice": choice, "keys": keys[latent]}
                for latent, choice in zip(latents, choices, strict=True)
            ]
            metrics.append(_record(config, choices, name, cell.name, trained.config.probe.name, ranking.n_eligible))
    return metrics, answers


def _recorded(recorded: dict[_Place, int], run: str, cell: str, latents: Sequence[int]) -> list[int]:
    missing = [latent for latent in latents if (run, cell, latent) not in recorded]
    if missing:
        raise SchemaError(
            f"{len(missing)} of {len(latents)} latents of '{run}', {cell}, have no recorded answer.",
            f"latents: {', '.join(map(str, missing[:10]))}{' ...' if len(missing) > 10 else ''}",
            fix="answers of this run, or rater=module:callable",
        )
    return [recorded[run, cell, latent] for latent in latents]


def _images(source: "PageFeatures", keys: dict[int, list[str]], shards: dict[str, str]) -> "Iterator[list[Image]]":
    """Yield the images of each latent, the most active first. Raises: ConfigError if they are not at hand."""
    from diffprobe.features.fetch_images import fetch_images

    if source.images is None:
        raise ConfigError(f"the images are not at hand: {source.missing}", fix="data_path=FOLDER, or answers=FILE")
    shard_set, fields = source.images
    latents = list(keys)
    for start in range(0, len(latents), _AT_ONCE):
        part = latents[start : start + _AT_ONCE]
        wanted = dict.fromkeys(key for latent in part for key in keys[latent])
        found = fetch_images(shard_set, wanted, shards=shards, fields=fields)
        for latent in part:
            yield [found[key] for key in keys[latent]]


def _ask(rater: Callable[..., object], name: str, images: "list[Image]") -> int:
    choice = call(rater, name, SIGNATURE, images, QUESTION)
    if isinstance(choice, bool) or not isinstance(choice, int) or choice not in OPTIONS:
        raise RunFailed(f"'{name}' answered {choice!r}.", f"needed: {SIGNATURE}")
    return choice


def _record(
    config: GranularityEvaluation, choices: Sequence[int], split: str, cell: str, probe: str, n_eligible: int
) -> MetricRecord:
    """Return the mean choice, with its interval over latents."""
    import numpy as np

    from diffprobe.analysis.statistics.bootstrap import bootstrap_interval
    from diffprobe.analysis.statistics.forms import mean_of

    values = np.array(choices, dtype=np.float64)
    counts = Counter(choices)
    detail: dict[str, object] = {
        "n_latents": len(choices), "n_top_images": config.n_top_images, "n_eligible": n_eligible,
        "reading": config.reading, "choices": {str(option): counts[option] for option in OPTIONS},
    }  # fmt: skip
    if len(choices) > 1:
        interval = bootstrap_interval(mean_of(values), list(range(len(values))), seed=config.seed)
        detail["interval"] = [interval.low, interval.high]
    return MetricRecord(
        name=f"granularity_{config.reading}", value=float(values.mean()), split=split, n=len(choices), cell=cell,
        probe=probe, detail=detail,
    )  # fmt: skip
