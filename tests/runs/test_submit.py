"""Stages of a command: what runs before what, what is left out, and what a cluster refuses, all before submission."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from diffprobe.config.cluster import ClusterConfig
from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.launch.plan import Resources, Stage
from diffprobe.launch.submission import SubmittedTask
from diffprobe.runs.submit import SubmissionPlan, Wanted, plan_submission, store_is_complete, store_key
from tests.launch.test_submission import planned

SMALL = ["trainer.accelerator=cpu"]
GPUS = ClusterConfig(gpus_per_node=4, nodes=2, cpus_per_task=8)
CPUS = ClusterConfig(cpus_per_node=8)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(
    verb: str, *settings: str, cluster: ClusterConfig = CPUS, active: Mapping[str, SubmittedTask] | None = None, **more
) -> SubmissionPlan:
    wanted = Wanted(verb=verb, settings=settings, **more)
    return plan_submission(wanted, cluster, "lab", active=active or {}, check=lambda verb, words: None)


def shown(found: SubmissionPlan) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {stage.name: (len(stage.tasks), stage.after) for stage in found.stages}


def in_queue(tmp_path: Path, *stages: Stage) -> dict[str, SubmittedTask]:
    """What would be in the queue if these stages were submitted."""
    from dataclasses import replace

    sent = replace(planned(tmp_path, *stages), jobs={stage.name: str(70 + i) for i, stage in enumerate(stages)})
    return {task.task.work: task for task in sent.tasks()}


def test_a_run_comes_after_the_extraction_of_its_store() -> None:
    found = plan("train", "experiment=emoji/sae", "seed=0,1")
    assert shown(found) == {"extract": (1, ()), "train": (2, ("extract",))} and found.label == "emoji/sae"
    extract, train = found.stages
    assert extract.tasks[0].command == ("extract", "experiment=emoji/sae", "seed=0")
    assert train.tasks[1].command == ("train", "experiment=emoji/sae", "seed=1")
    assert Path(str(train.tasks[1].run_folder)).is_relative_to(Path.cwd() / "runs/emoji/sae")
    assert shown(plan("train", "experiment=emoji/sae", "features.source=live")) == {"train": (1, ())}


def test_a_list_of_seeds_is_a_job_for_each() -> None:
    train = plan("train", "experiment=emoji/sae", "seed=[0, 1]").stages[-1]
    assert [task.command[-1] for task in train.tasks] == ["seed=0", "seed=1"]
    with pytest.raises(ConfigError, match="at least one whole number"):
        plan("train", "experiment=emoji/sae", "seed=[]")


@pytest.mark.slow
def test_a_ladder_is_a_job_for_each_rung_that_applies(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan("train", "experiment=emoji/classifier", "control=ladder")
    assert shown(found) == {"extract": (5, ()), "train": (5, ("extract",))}
    rungs = ["raw_pixels", "vae_latents", "random_weights", "text_encoder", "none"]
    assert [task.command[-1] for task in found.stages[1].tasks] == [f"control={name}" for name in rungs]
    assert shown(plan("extract", "experiment=emoji/sae", "control=ladder")) == {"extract": (2, ())}
    assert capsys.readouterr().err.count(": left out, ") == 3


def test_runs_share_a_store_or_have_one_each_in_parts() -> None:
    found = plan("train", "experiment=emoji/sae", "features.seed=0,1", "probe.params.k=4,8", parts=3)
    assert shown(found) == {"extract": (6, ()), "train": (4, ("extract",))}
    assert found.stages[0].tasks[2].command[-2:] == ("--process", "2/3")
    assert len({task.work for task in found.stages[0].tasks}) == 6


@pytest.mark.slow
def test_a_table_trains_the_rows_that_its_filter_lets_through() -> None:
    found = plan("table", words=("emoji/sae_table", "--format", "latex"))
    assert shown(found) == {"extract": (1, ()), "train": (4, ("extract",)), "table": (1, ("train",))}
    assert found.stages[2].tasks[0].command == ("table", "emoji/sae_table", "--format", "latex", "--results", "runs")
    of_wandb = plan("table", words=("emoji", "--from", "wandb"))
    assert of_wandb.stages[2].tasks[0].command == ("table", "emoji", "--from", "wandb")
    rows = plan("table", words=("emoji",)).stages[1].tasks
    assert [row.command for row in rows] == [("train", "experiment=emoji/layers")]
    with pytest.raises(ConfigError, match=r"no experiment below experiments/emoji/directions"):
        plan("table", words=("emoji/directions",))
    with pytest.raises(ConfigError, match="no table.yaml"):
        plan("table", words=("emojy",))
    with pytest.raises(ConfigError, match="takes no experiment="):
        plan("table", "experiment=emoji/sae", words=("emoji",))


@pytest.mark.slow
def test_finished_runs_are_left_out_unless_asked_for() -> None:
    settings = ("experiment=emoji/sae", "seed=0,1")
    folder = Path(str(plan("train", *settings).stages[1].tasks[0].run_folder))
    folder.mkdir(parents=True)
    (folder / "result.json").touch()
    found = plan("train", *settings)
    assert [Path(one).resolve() for one in found.finished] == [folder] and shown(found)["train"] == (1, ("extract",))
    assert shown(plan("train", *settings, again=True))["train"][0] == 2
    assert plan("train", "experiment=emoji/sae").stages == []


@pytest.mark.slow
def test_what_is_in_the_queue_is_left_out_and_waited_for(tmp_path: Path) -> None:
    settings = ("experiment=emoji/sae", "seed=0,1")
    extract, train = plan("train", *settings).stages
    both = in_queue(tmp_path, extract, train)
    found = plan("train", *settings, active=both)
    assert found.stages == [] and sorted(found.queued.values()) == ["71_0", "71_1"]
    store = {work: task for work, task in both.items() if work.startswith("store ")}
    found = plan("train", *settings, active=store, parts=4)
    assert shown(found) == {"train": (2, ())} and found.stages[0].after_jobs == ("70",)
    found = plan("extract", "experiment=emoji/sae", active=store)
    assert found.stages == [] and list(found.queued.values()) == ["70"]


def test_parts_that_failed_are_extracted_again_beside_those_in_the_queue(tmp_path: Path) -> None:
    (stage,) = plan("extract", "experiment=emoji/sae", parts=3).stages
    active = {work: task for work, task in in_queue(tmp_path, stage).items() if not work.endswith("1/3")}
    (left,) = plan("extract", "experiment=emoji/sae", parts=3, active=active).stages
    assert [task.command[-1] for task in left.tasks] == ["1/3"]
    (left,) = plan("extract", "experiment=emoji/sae", words=("--process", "1/3"), active=active).stages
    assert [(task.command[-2:], task.work[-3:]) for task in left.tasks] == [(("--process", "1/3"), "1/3")]


@pytest.mark.slow
def test_resources() -> None:
    def of(*settings: str, verb: str = "train", cluster: ClusterConfig = GPUS) -> list[Resources]:
        return [stage.resources for stage in plan(verb, "experiment=emoji/sae", *settings, cluster=cluster).stages]

    one = Resources(gpus=1)
    assert of("trainer.accelerator=cpu") == [one, Resources()]  # extraction takes a GPU where there is one
    assert of("trainer.accelerator=cpu", cluster=CPUS) == [Resources(), Resources()]
    assert of("trainer=gpu", "trainer.devices=4", "trainer.num_nodes=2") == [
        one, Resources(nodes=2, processes=4, gpus=4)
    ]  # fmt: skip
    live = of("trainer.accelerator=cpu", "features.source=live", "trainer.devices=2")
    assert live == [Resources(processes=2, gpus=2)]
    assert of("backbone.device=cpu", verb="extract") == [Resources()]
    stages = plan("train", "experiment=emoji/sae", "trainer.devices=1,2", cluster=CPUS).stages
    assert [(stage.name, stage.resources.processes) for stage in stages[1:]] == [("train", 1), ("train-2", 2)]


@pytest.mark.parametrize(
    ("settings", "cluster", "words"),
    [
        (("trainer=gpu",), CPUS, "1 GPUs per node, but cluster 'lab' has 0"),
        (("trainer=gpu", "trainer.devices=8"), GPUS, "8 GPUs per node, but cluster 'lab' has 4"),
        (("trainer=gpu", "trainer.num_nodes=3"), GPUS, "3 nodes, but cluster 'lab' allows 2"),
        (("trainer.devices=9",), CPUS, "9 processes of 1 cores"),
        (("backbone.device=cuda",), CPUS, "extraction asks for 1 GPUs"),
        (("probe.params.k=-1",), CPUS, "k = -1"),
        (("trainer.max_epoch=3",), CPUS, "trainer.max_epochs"),
        (("seed=0,0",), CPUS, "0 twice"),
        (("output=a,b", "seed=0"), CPUS, None),
    ],
)
def test_all_is_validated_first(settings: tuple[str, ...], cluster: ClusterConfig, words: str | None) -> None:
    if words is None:
        assert len(plan("train", "experiment=emoji/sae", *settings, cluster=cluster).stages[1].tasks) == 2
        return
    with pytest.raises((ConfigError, UnknownName), match=words):
        plan("train", "experiment=emoji/sae", *settings, cluster=cluster)


def test_equal_runs_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two of the runs are the same(.|\n)*a/emoji/sae"):
        plan("train", "experiment=emoji/sae", "output=a,./a")


@pytest.mark.slow  # imports what training of backbones needs
def test_a_backbone_is_trained_without_an_extraction() -> None:
    found = plan("train", "experiment=emoji/train_denoiser")
    assert shown(found) == {"train": (1, ())}


def test_other_verbs_are_one_task_for_each_combination_and_checked() -> None:
    checked = []
    wanted = Wanted(verb="eval", words=("sae", "FOLDER"), settings=("experiment=emoji/evaluate_sae", "data.limit=5,6"))
    found = plan_submission(wanted, GPUS, "lab", active={}, check=lambda verb, words: checked.append((verb, *words)))
    (stage,) = found.stages
    commands = [("eval", "sae", "FOLDER", "experiment=emoji/evaluate_sae", f"data.limit={n}") for n in (5, 6)]
    assert [task.command for task in stage.tasks] == commands == checked and stage.resources.gpus == 1
    with pytest.raises(ConfigError, match="--parts"):
        plan("demo", parts=2)


@pytest.mark.slow
def test_a_store_is_known_by_what_it_holds_and_found_when_it_is_complete(run) -> None:
    from diffprobe.runs.extract import extract_run

    config = run("probe=linear", "probe.targets=[label]", "features.store=stores-here")
    assert not store_is_complete(config)
    assert store_key(config) == store_key(
        run("probe=topk", "seed=3", "features.store=stores-here", "data.batch_size=2")
    )
    assert store_key(config) != store_key(run("probe=linear", "control=random_weights", "features.store=stores-here"))
    extract_run(config, progress=False)
    assert store_is_complete(config)
