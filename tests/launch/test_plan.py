"""What a command expands to, and what a cluster has not got."""

import pytest

from diffprobe.config.cluster import ClusterConfig
from diffprobe.core.errors import ConfigError
from diffprobe.launch.plan import (
    MAX_TASKS,
    Resources,
    Stage,
    Task,
    by_resources,
    check_resources,
    expand,
    narrowed,
    stage_of,
    stage_tree,
)

NAMES = ["a/one", "a/two", "b/three"]


def test_settings_and_experiments_with_several_values_are_all_combinations() -> None:
    rows = expand(["experiment=a/*,b/three", "seed=0,1", "features.prompt='x, y'"], NAMES)
    assert len(rows) == 6 and rows[0] == ["experiment=a/one", "seed=0", "features.prompt='x, y'"]
    assert [row[0].partition("=")[2] for row in rows] == ["a/one", "a/one", "a/two", "a/two", "b/three", "b/three"]
    assert expand(["seed=range(3)"], []) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert expand([], []) == [[]]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["experiment=c/*"], r"c/\*"),
        (["seed=1,1"], "1 twice"),
        (["experiment=a/*,a/one"], "a/one twice"),
        ([f"seed=range({MAX_TASKS + 1})"], "1,001 runs"),
    ],
)
def test_what_cannot_be_expanded_is_refused(settings: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        expand(settings, NAMES)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Resources(gpus=3), "3 GPUs per node, but cluster 'x' has 2"),
        (Resources(nodes=3), "3 nodes, but cluster 'x' allows 2"),
        (Resources(processes=5), "5 processes of 2 cores per node, but cluster 'x' has 8 cores"),
    ],
)
def test_what_a_cluster_has_not_got_is_refused(asked: Resources, words: str) -> None:
    cluster = ClusterConfig(nodes=2, gpus_per_node=2, cpus_per_node=8, cpus_per_task=2)
    check_resources(Resources(nodes=2, processes=4, gpus=2), cluster, "x", "it")
    with pytest.raises(ConfigError, match=words):
        check_resources(asked, cluster, "x", "it")


def test_tasks_of_other_resources_are_a_stage_of_their_own() -> None:
    a, b, c = (Task(command=("train", name), work=name) for name in "abc")
    one, two = by_resources("train", [(a, Resources()), (b, Resources(processes=2)), (c, Resources())], after=("x",))
    assert (one.name, one.tasks, two.name, two.tasks, two.after) == ("train", (a, c), "train-2", (b,), ("x",))
    assert narrowed(one, [c]).tasks == (c,)


def test_a_stage_comes_back_from_its_record() -> None:
    task = Task(command=("train", "seed=1"), run_folder="/x", work="/x")
    stage = Stage(
        name="train", tasks=(task,), resources=Resources(nodes=2, gpus=1), after=("extract",), after_jobs=("7",)
    )
    assert stage_of(stage_tree(stage), "it") == stage
